"""`pieray trace`: what a run has done in time, as a file for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pieray.cli.engines import open_running
from pieray.cli.guard import Debug, guard
from pieray.cli.options import Address, InstanceId, Namespace
from pieray.cli.output import say
from pieray.errors import ConfigError

Out = Annotated[
    str,
    typer.Option(metavar="PATH", help="The file; ID.trace.json here if not given, - for stdout.", show_default=False),
]


def trace(
    instance_id: InstanceId, out: Out = "", address: Address = None, namespace: Namespace = None, debug: Debug = False
) -> None:
    """Write what a traced inferlet and its children have done as a Chrome trace."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        write_trace(engine.trace(instance_id), out or f"{instance_id}.trace.json")


def write_trace(traces: Sequence[Mapping[str, Any]], path: str) -> None:
    """What `Engine.trace` has told, as a file, or to stdout ("-").  Raises ConfigError."""
    from pieray.client.chrome_trace import chrome_trace

    found = chrome_trace(traces)
    text = json.dumps(found)
    if path == "-":
        typer.echo(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None
    say(f"{path} has {len(found['traceEvents'])} events: open it with ui.perfetto.dev or chrome://tracing")
