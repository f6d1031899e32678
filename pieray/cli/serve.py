"""`pieray serve`: the HTTP door of an engine."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from pieray import config
from pieray.cli.engines import open_existing, start_for_run
from pieray.cli.guard import Debug, guard
from pieray.cli.keys import key_file
from pieray.cli.options import Address, Device, Model, Namespace, NumPages, Set, engine_settings
from pieray.cli.output import escaped, say
from pieray.cli.progress import progress
from pieray.cli.signals import StopSignals
from pieray.errors import ConfigError
from pieray.json_log import JsonLines

Host = Annotated[str, typer.Option(help="Where to listen; any but loopback asks for keys.")]
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--keys", metavar="PATH", help="Ask for keys of this file; ~/.pieray/keys.db if --host is not loopback."
    ),
]
Port = Annotated[int, typer.Option(help="0: any that is free.")]
ModelName = Annotated[
    str | None, typer.Option("--model-name", help="What clients call the model; its own name if not given.")
]
Program = Annotated[
    list[str] | None,
    typer.Option(
        "--program",
        metavar="ROUTE=NAME",
        help="The inferlet that answers: generate=NAME for chats and completions, embed=NAME for embeddings.",
    ),
]
LogLevel = Annotated[
    str, typer.Option("--log-level", help="debug, info (a line for each request), warning or error; on stderr.")
]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", help="text or json (a line of JSON for each entry); as log_format is.")
]
Otlp = Annotated[
    str | None,
    typer.Option(metavar="URL", help="An OTLP collector for traces of requests and runs: http://localhost:4318."),
]
TraceShare = Annotated[
    float, typer.Option("--trace-share", min=0, max=1, help="Part of the requests that are traced, with --otlp.")
]
Drain = Annotated[
    float, typer.Option(metavar="SECONDS", min=0, help="How long requests may go on after SIGTERM.  Ctrl-C ends them.")
]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    model: Model = None,
    model_name: ModelName = None,
    program: Program = None,
    keys: KeyFile = None,
    drain: Drain = 30.0,
    log_level: LogLevel = "info",
    log_format: LogFormat = None,
    otlp: Otlp = None,
    trace_share: TraceShare = 1.0,
    address: Address = None,
    namespace: Namespace = None,
    device: Device = None,
    num_pages: NumPages = None,
    pairs: Set = None,
    debug: Debug = False,
) -> None:
    """Serve OpenAI's API over HTTP, from the engine of `pieray up` or one of its own."""
    with guard(debug=debug) as signals, ExitStack() as closing:
        hosting = _hosting()
        _log(log_level, log_format or config.load().log_format)
        programs: dict[str, Any] = _programs(program or [])
        if otlp is not None:
            programs["telemetry"] = _telemetry(otlp, trace_share)
        opened = _keys(host, keys)
        bound = hosting.listening(host, port)
        closing.callback(bound.close)
        settings = engine_settings(model, device, num_pages, pairs)
        with progress() as show, signals.starting_ray():
            engine = open_existing(address, namespace, settings, show)
            if engine is None:
                engine = start_for_run(address, namespace, settings, show)
        with signals.held():
            try:
                _serve(engine, hosting, bound, signals, opened, model_name, programs, drain)
            finally:
                engine.close()


def _serve(
    engine: Any,
    hosting: Any,
    bound: Any,
    signals: StopSignals,
    keys: Any,
    model_name: str | None,
    programs: dict[str, Any],
    drain: float,
) -> None:
    from pieray.server.app import Door
    from pieray.server.guard import Guard

    served, others = served_names(engine.models(), model_name)
    gate = Guard(keys)
    name, port = bound.getsockname()[:2]
    url = f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def ready() -> None:
        who = "to who has a key" if keys is not None else "to every user of this machine: no key is asked for"
        say(f"serving {', '.join([served, *others])} at {url}/v1, {who}")

    def wants_end() -> float | None:
        if signals.signum is None:
            return None
        say("stopping")
        return drain if signals.signum == signal.SIGTERM else 0.0

    door = Door(engine, model=served, others=others, **programs)
    hosting.serve(door.app(gate), gate, bound, wants_end=wants_end, on_ready=ready, on_end=door.close)


def served_names(models: Sequence[Mapping[str, Any]], asked: str | None) -> tuple[str, list[str]]:
    """The name under which clients ask for the default one of an engine's models, `asked` or its own, and those of the
    others.  Raises ConfigError where one would hide another."""
    default, *others = (str(one["name"]) for one in models)
    served = asked or default
    if served in others:
        raise ConfigError(
            f"--model-name: the engine serves another model as {served}; give the default one another name"
        )
    return served, others


def _log(level: str, form: str) -> None:
    """What the server does, on stderr; control characters, which others may have sent, are shown and not obeyed."""
    if form not in ("text", "json"):
        raise ConfigError(f"--log-format is text or json; given {form!r}")
    if level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level is debug, info, warning or error; given {level!r}")

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return escaped(super().format(record), is_one_line=False)

    handler = logging.StreamHandler()
    as_text = Lines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else as_text)
    log = logging.getLogger("pieray")
    log.addHandler(handler)
    log.setLevel(level.upper())
    logging.getLogger("uvicorn").addHandler(handler)


def _hosting() -> Any:
    try:
        from pieray.server import hosting
    except ModuleNotFoundError as missing:
        raise ConfigError(f"`pieray serve` needs {missing.name}: pip install 'pieray[serve]'") from None
    return hosting


def _telemetry(url: str, share: float) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp is a URL of http or https; given {url!r}")
    try:
        from pieray.server.telemetry import Telemetry
    except ModuleNotFoundError as missing:
        raise ConfigError(f"--otlp needs {missing.name}: pip install 'pieray[otel]'") from None
    return Telemetry(url, share)


def _keys(host: str, path: str | None) -> Any:
    """The keys that are asked for; None: on loopback nobody is, unless a file says so.  Raises ConfigError."""
    from pieray.server.guard import is_loopback
    from pieray.server.keys import Keys

    if path is None and is_loopback(host):
        return None
    found = Keys(key_file(path), wait_s=0.1)  # it is read on the event loop
    if not found.rows():
        raise ConfigError(f"{key_file(path)} has no keys: `pieray keys create` makes one")
    return found


def _programs(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        route, _, name = pair.partition("=")
        if route not in ("generate", "embed") or not name:
            raise ConfigError(f"--program is generate=NAME or embed=NAME; given {pair!r}")
        found[route] = name
    return found
