"""`pieray run`: launch one inferlet, show what it does, leave with how it went."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from pieray.cli.arguments import parse_arguments, parse_input, parse_limits, text_parameters
from pieray.cli.engines import may_have_programs, open_for_run
from pieray.cli.guard import Debug, InferletFailed, guard
from pieray.cli.options import Address, Device, Json, Model, Namespace, NumPages, Set, engine_settings
from pieray.cli.output import JsonPrinter, Printer, TextPrinter
from pieray.cli.processes import no_children_left
from pieray.cli.progress import progress
from pieray.engine import Engine
from pieray.errors import PierayError
from pieray.manifest import is_spec
from pieray.process import Process
from pieray.programs import ProgramSource, is_embedded, resolve

log = logging.getLogger(__name__)

KILL_PATIENCE_S = 5.0

Program = Annotated[str, typer.Argument(
    metavar="NAME_OR_FILE",
    help="An embedded or installed inferlet (see `pieray inferlets`), a .py or .wasm file, or a folder.",
    show_default=False)]  # fmt: skip
Words = Annotated[list[str] | None, typer.Argument(
    metavar="[-- --KEY VALUE ...]", help="Arguments of the inferlet's main: --max-tokens 64 --flag --no-flag.",
    show_default=False)]  # fmt: skip
Input = Annotated[str | None, typer.Option(
    "--input", metavar="JSON", help="Arguments of main as a JSON object, or @file, or @- for stdin.")]  # fmt: skip
Limit = Annotated[list[str] | None, typer.Option(
    "--limit", metavar="NAME=VALUE", help="A limit of this inferlet, such as wall_time_s=10 or pages=64.")]  # fmt: skip


def run(
    program: Program, words: Words = None, model: Model = None, address: Address = None,
    namespace: Namespace = None, input_json: Input = None, limit: Limit = None, device: Device = None,
    num_pages: NumPages = None, pairs: Set = None, json: Json = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Run an inferlet; its texts stream to stdout.  Arguments after -- are those of its main()."""
    printer: Printer = JsonPrinter() if json else TextPrinter(debug=debug)
    with guard(debug=debug, report=printer.error) as signals, no_children_left(signals) as closing:
        settings = engine_settings(model, device, num_pages, pairs)
        is_asked = is_spec(program) and not is_embedded(program) and may_have_programs(address, namespace, settings)
        source = None if is_asked else resolve(program)
        given = parse_input(input_json)
        arguments = parse_arguments(words or [], text_parameters(source) if source else frozenset())
        limits = parse_limits(limit or [])
        with progress() as show, signals.starting_ray():
            engine = open_for_run(address, namespace, settings, signals.kept(show))
        closing.callback(engine.close)
        if source is None:
            source = engine.find(program)
            arguments = parse_arguments(words or [], text_parameters(_with_content(engine, source)))
        process = engine.launch(source, {**given, **arguments}, limits=limits)
        printer.started(process.name, process.id)
        _follow(process, printer)


def _with_content(engine: Engine, found: ProgramSource) -> ProgramSource:
    """The same program, installed or not, with its source or component."""
    return found if found.source or found.component else engine.program(f"{found.name}@{found.version}")


def _follow(process: Process, printer: Printer) -> None:
    """Print events to the end.  However this is left, the inferlet does not run on."""
    try:
        for event in process.events():
            if event.kind == "text":
                printer.text(event.text)
            elif event.kind == "log":
                printer.log(event.text)
        printer.result(_result(process))
    finally:
        _end(process)


def _result(process: Process) -> object:
    try:
        return process.result()
    except PierayError as error:
        raise InferletFailed(error) from None


def _end(process: Process) -> None:
    try:
        process.kill("its client has left", timeout=KILL_PATIENCE_S)
    except PierayError as error:
        log.info("%s: %s", process.id, error.message)  # it has ended, or its host has: nothing runs on
