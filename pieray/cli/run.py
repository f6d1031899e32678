"""`pieray run`: launch one inferlet, show what it does, leave with how it went."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from json import loads as parse_json
from typing import Annotated, Any

import typer

from pieray import config
from pieray.cli.arguments import parse_arguments, parse_input, parse_limits
from pieray.cli.engines import open_existing, open_running, start_for_run
from pieray.cli.exchange import Received, out_folder, read_files, send_lines
from pieray.cli.guard import Debug, InferletFailed, guard
from pieray.cli.options import Address, Device, InstanceId, Json, Model, Namespace, NumPages, Set, engine_settings
from pieray.cli.output import JsonPrinter, Printer, TextPrinter, say
from pieray.cli.progress import progress
from pieray.cli.signals import StopSignals
from pieray.client.engine import Engine
from pieray.client.process import Event, Process
from pieray.errors import Cancelled, ConfigError, EngineError, PierayError
from pieray.programs.manifest import is_spec
from pieray.programs.signature import main_of
from pieray.programs.sources import ProgramSource, is_embedded, resolve
from pieray.world.mcp.spec import parse_option

log = logging.getLogger(__name__)

KILL_TIMEOUT_S = 5.0

Program = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_FILE",
        help="An embedded or installed inferlet (see `pieray inferlets`), a .py or .wasm file, or a folder.",
        show_default=False,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- --KEY VALUE ...]",
        help="Arguments of the inferlet's main: --max-tokens 64 --flag --no-flag.",
        show_default=False,
    ),
]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="JSON", help="Arguments of main as a JSON object, or @file, or @- for stdin."),
]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", metavar="NAME=VALUE", help="A limit of this inferlet, such as wall_time_s=10 or pages=64."),
]


Files = Annotated[
    list[str] | None,
    typer.Option("--file", metavar="PATH", help="A file to send to the inferlet at its start; may be repeated."),
]
Out = Annotated[
    str | None, typer.Option("--out", metavar="FOLDER", help="Where files that the inferlet sends are saved.")
]
Interactive = Annotated[
    bool, typer.Option("--interactive", "-i", help="Send each line of stdin as a message, and an empty one at its end.")
]


Detach = Annotated[
    bool, typer.Option("--detach", help="Leave the inferlet running on an engine that is up, and print its id.")
]
Priority = Annotated[int, typer.Option(help="From -100 to 100: where something is short, higher goes first.")]
Deadline = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="When the result is wanted; earlier goes first.  Nothing ends at it."),
]
Mcp = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp", metavar="NAME=COMMAND", help="An MCP server for the inferlet, run here, or NAME=URL; may be repeated."
    ),
]


On = Annotated[
    str, typer.Option("--on", metavar="MODEL", help="Which of an engine's models it uses where it names none.")
]
TraceFile = Annotated[
    str | None,
    typer.Option("--trace", metavar="PATH", help="Trace the run, and write a Chrome trace there when it has ended."),
]


def run(
    program: Program,
    words: Words = None,
    model: Model = None,
    address: Address = None,
    namespace: Namespace = None,
    input_json: Input = None,
    limit: Limit = None,
    device: Device = None,
    num_pages: NumPages = None,
    pairs: Set = None,
    files: Files = None,
    out: Out = None,
    servers: Mcp = None,
    interactive: Interactive = False,
    detach: Detach = False,
    priority: Priority = 0,
    deadline: Deadline = None,
    on_model: On = "",
    trace_file: TraceFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run an inferlet; its texts stream to stdout.  Arguments after -- are those of its main()."""
    printer: Printer = JsonPrinter() if json else TextPrinter(debug=debug)
    with guard(debug=debug, report=printer.error) as signals, _closing(signals) as closing:
        if interactive and input_json == "@-":
            raise ConfigError("--interactive and --input @- both read stdin")
        if detach and (interactive or files or out is not None or servers):
            raise ConfigError("--detach leaves the inferlet alone: --interactive, --file, --out and --mcp stay with it")
        tools = dict(parse_option(text) for text in servers or [])
        sent, received = read_files(files or []), Received(out_folder(out))
        settings = engine_settings(model, device, num_pages, pairs)
        given, limits = parse_input(input_json), parse_limits(limit or [])
        with progress() as show, signals.starting_ray():
            engine = open_existing(address, namespace, settings, show)
            if engine is not None:
                closing.callback(engine.close)
            source = _find(program, engine, settings)
            arguments = None if source is None else _arguments(source, engine, words, given)
            if engine is None and detach:
                raise EngineError("--detach needs an engine that stays; `pieray up` starts one")
            if engine is None:
                engine = start_for_run(address, namespace, settings, show)
                closing.callback(engine.close)
        if source is None:
            source = engine.find(program)
        if arguments is None:
            arguments = _arguments(source, engine, words, given)
        process = engine.launch(
            source,
            arguments,
            limits=limits,
            mcp=tools or None,
            attached=not detach,
            priority=priority,
            deadline_s=deadline,
            trace=trace_file is not None,
            on_model=on_model,
        )
        if trace_file is not None:
            closing.callback(_keep_trace, engine, process.id, trace_file)
        printer.started(process.name, process.id)
        if detach:
            say(f"{process.id} runs on; `pieray attach {process.id}` shows what it does, `pieray kill` ends it")
            return
        _follow(process, printer, sent, received, interactive=interactive)


@contextmanager
def _closing(signals: StopSignals) -> Iterator[ExitStack]:
    """What a command has opened: closed at its end, which no signal cuts short."""
    stack = ExitStack()
    try:
        yield stack
    finally:
        with signals.held():
            stack.close()


def _keep_trace(engine: Engine, instance_id: str, path: str) -> None:
    """Of a run that has ended, however it has."""
    from pieray.cli.trace import write_trace

    try:
        write_trace(engine.trace(instance_id), path)
    except PierayError as error:
        say(f"there is no trace: {error.message}")


def _find(program: str, engine: Engine | None, settings: Mapping[str, Any]) -> ProgramSource | None:
    """The program, as long as no engine is needed to find it that does not run yet: then None."""
    is_installed = is_spec(program) and not is_embedded(program)
    if engine is not None:
        return engine.find(program) if is_installed else resolve(program)
    return None if is_installed and config.load(settings).registry_path else resolve(program)


def _arguments(
    source: ProgramSource, engine: Engine | None, words: list[str] | None, given: dict[str, Any]
) -> dict[str, Any]:
    """What the user gives to main, checked against what is known of it; raises ConfigError."""
    if engine is not None and not source.source and not source.component and source.filename.endswith(".py"):
        source = engine.program(f"{source.name}@{source.version}")
    main = main_of(source)
    found = {**given, **parse_arguments(words or [], main)}
    main.check(found)
    return found


def _follow(
    process: Process, printer: Printer, sent: list[tuple[str, bytes]], received: Received, *, interactive: bool
) -> None:
    """Send what is to be sent, print events to the end.  However this is left, the inferlet does not run on."""
    try:
        for name, content in sent:
            _send_file(process, name, content)
        if interactive:
            send_lines(process)
        _print(process, printer, received)
    finally:
        _end(process)


def _print(process: Process, printer: Printer, received: Received) -> None:
    for event in _events(process):
        _show(event, printer, received)
    printer.result(process.result())


def attach(
    instance_id: InstanceId,
    address: Address = None,
    namespace: Namespace = None,
    out: Out = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an inferlet has done and does, to its end, as `run` does; it runs on if this is interrupted."""
    printer: Printer = JsonPrinter() if json else TextPrinter(debug=debug)
    with guard(debug=debug, report=printer.error) as signals, _closing(signals) as closing:
        received = Received(out_folder(out))
        engine = open_running(address, namespace)
        closing.callback(engine.close)
        process = engine.attach(instance_id)
        printer.started(process.name, process.id)
        _print(process, printer, received)


def _send_file(process: Process, name: str, content: bytes) -> None:
    try:
        process.send_file(name, content)
    except Cancelled as error:  # it has ended: its result says how
        log.info("%s does not take %s: %s", process.id, name, error.message)


def _show(event: Event, printer: Printer, received: Received) -> None:
    if event.kind == "text":
        printer.text(event.text)
    elif event.kind == "log":
        printer.log(event.text)
    elif event.kind == "data":
        printer.data(**parse_json(event.text))
    elif event.kind == "file" and (found := received.add(event)) is not None:
        file, path = found
        printer.file(file.name, len(file.data), None if path is None else str(path))


def _events(process: Process) -> Iterator[Event]:
    try:
        yield from process.events()
    except PierayError as error:
        raise InferletFailed(error) from None


def _end(process: Process) -> None:
    try:
        process.kill("its client has left", timeout=KILL_TIMEOUT_S)
    except PierayError as error:
        log.info("%s: %s", process.id, error.message)  # it has ended, or its host has: nothing runs on
