"""`pieray ps`, `kill`, `models`, `adapters`, `inferlets` and `version`: what there is, as a table or as JSON."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

import pieray
from pieray.assets import embedded_models, model_folder
from pieray.cli.engines import open_running
from pieray.cli.guard import Debug, guard
from pieray.cli.options import Address, InstanceId, Json, Namespace
from pieray.cli.output import escaped, say
from pieray.client.engine import Engine
from pieray.engine_metrics import pages_of_groups, steps_of_groups
from pieray.errors import EngineError
from pieray.programs.sources import embedded_inferlets

ADAPTER_COLUMNS = ("name", "rank", "alpha", "num_bytes", "owner")
MOST_TENANTS = 5
"""Named in a line."""
PS_COLUMNS = (
    "instance_id",
    "name",
    "state",
    "owner",
    "age",
    "cpu_time_s",
    "pages",
    "swapped",
    "output_bytes",
    "parent",
    "error",
)


def ps(address: Address = None, namespace: Namespace = None, json: Json = False, debug: Debug = False) -> None:
    """Show inferlets that run or have ended lately."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        rows = engine.ps()
        now = time.time()
        told = rows if json else [{**row, **_told(row, now)} for row in rows]
        show(told, PS_COLUMNS, json=json, nothing="no inferlet has run lately")
        if not json:
            _say_admission(engine.admission())
            _say_pages(engine.status()["actors"])


def _say_admission(facts: Mapping[str, Mapping[str, int]]) -> None:
    """A line where launches wait, or were refused."""
    waiting, refused = facts["waiting"], facts["refused"]
    if waiting:
        say(f"{sum(waiting.values())} launches wait for a place ({_by_tenant(waiting)})")
    if refused:
        say(f"{sum(refused.values())} launches were refused one ({_by_tenant(refused)})")


def _say_pages(actors: Sequence[Mapping[str, Any]]) -> None:
    """What the KV pages of the engine are used for, and what has happened to programs that were short of them."""
    if (pages := pages_of_groups(actors)) is None:
        return
    states = ", ".join(f"{pages[state]} {state}" for state in ("free", "cached", "leased", "quarantined"))
    swap = (steps_of_groups(actors) or {"swap": {"used": 0}})["swap"]
    say(f"{pages['total']} KV pages: {states}; {swap['used']} more are swapped to host memory")
    for name, what in _ABOUT_PAGES.items():
        if counts := {tenant: row[name] for tenant, row in pages["tenants"].items() if row[name]}:
            say(f"{sum(counts.values())} {what} ({_by_tenant(counts)})")


_ABOUT_PAGES = {
    "waiting": "requests wait for pages",
    "waited": "requests have waited for pages",
    "preempted": "times programs gave up their pages for others",
    "swapped": "pages were given up so",
    "found": "pages were found, and not computed",
}


def _by_tenant(counts: Mapping[str, int]) -> str:
    shown = sorted(counts.items(), key=lambda item: -item[1])[:MOST_TENANTS]
    return ", ".join(f"{tenant}: {count}" for tenant, count in shown) + (", ..." if len(counts) > len(shown) else "")


def _told(row: Mapping[str, Any], now: float) -> dict[str, str]:
    """What a table shows in place of several fields of an inferlet's facts."""
    is_known = "tenant" in row  # its actor has answered
    return {
        "owner": f"{row['tenant']}/{row['user']}" if is_known else "-",
        "age": duration(now - row["started_at"]) if is_known else "-",
        "parent": row.get("parent") or "-",
        "error": row["error"] or "-",
    }


def duration(seconds: float) -> str:
    """The two largest units: 12s, 3m 20s, 5h 2m, 4d 7h."""
    left = max(int(seconds), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        number, left = divmod(left, size)
        if number or parts or unit == "s":
            parts.append(f"{number}{unit}")
    return " ".join(parts[:2])


def kill(instance_id: InstanceId, address: Address = None, namespace: Namespace = None, debug: Debug = False) -> None:
    """End an inferlet."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        engine.kill(instance_id, "killed with `pieray kill`")
        say(f"{instance_id} has ended")


def models(address: Address = None, namespace: Namespace = None, json: Json = False, debug: Debug = False) -> None:
    """Show the models that come with pieray, and what a running engine serves: by a decoder of pieray's own or through
    transformers' module (way), and why not by one of its own."""
    with guard(debug=debug):
        served = {row["name"]: row for row in _asked(address, namespace, lambda engine: engine.models())}
        embedded = {name: _facts_of(model_folder(name)) for name in embedded_models()}
        rows = [
            {"name": name, "served": name in served, **embedded.get(name, {}), **served.get(name, {})}
            for name in sorted({*embedded, *served})
        ]
        columns = (
            "name",
            "served",
            "architecture",
            "vocab_size",
            "max_context",
            "num_pages",
            "dtype",
            "device",
            "way",
            "why",
        )
        show(rows, columns, json=json, nothing="there is no model")


def adapters(address: Address = None, namespace: Namespace = None, json: Json = False, debug: Debug = False) -> None:
    """Show the LoRA adapters that a running engine has loaded."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        rows = engine.adapters()
        show(rows, ADAPTER_COLUMNS, json=json, nothing="no adapter is loaded")


def inferlets(address: Address = None, namespace: Namespace = None, json: Json = False, debug: Debug = False) -> None:
    """Show the inferlets that come with pieray, and those installed on a running engine."""
    with guard(debug=debug):
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "version": one.version,
                "where": "embedded",
                "description": one.description,
                "origin": one.origin,
            }
            for name, one in embedded_inferlets().items()
        ]
        installed = _asked(address, namespace, lambda engine: engine.programs())
        rows += [{**facts, "where": "installed"} for facts in installed]
        show(rows, ("name", "version", "where", "description", "origin"), json=json, nothing="no inferlet is embedded")


def version() -> None:
    """Show the version of pieray."""
    typer.echo(pieray.__version__)


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, json: bool, nothing: str) -> None:
    """Print rows: all their fields as JSON, or the columns that any row has as a table (tabs if piped)."""
    if json:
        typer.echo(json_module.dumps(list(rows)))
    elif not rows:
        say(nothing)
    elif sys.stdout.isatty():
        _draw(rows, [c for c in columns if any(c in row for row in rows)])
    else:
        for row in rows:
            typer.echo("\t".join(_cell(row.get(column)) for column in columns))


def _draw(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(column))) for column in columns))
    Console().print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else escaped(str(value))


def _asked(
    address: str | None, namespace: str | None, ask: Callable[[Engine], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What an engine answers; nothing if none runs, unless one was named."""
    try:
        with open_running(address, namespace) as engine:
            return ask(engine)
    except EngineError:
        if address is not None or namespace is not None:
            raise
        return []


def _facts_of(folder: Path) -> dict[str, Any]:
    """What the config of a model says, and which way it runs."""
    from pieray.models.ways import glance

    way, why, _ = glance(folder)
    values = json_module.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {
        "architecture": values.get("model_type"),
        "vocab_size": values.get("vocab_size"),
        "max_context": values.get("max_position_embeddings"),
        "way": way,
        "why": why,
    }
