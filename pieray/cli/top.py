"""`pieray top`: what an engine does, drawn again and again until one leaves; once where stdout is no terminal."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pieray.cli.engines import open_running
from pieray.cli.guard import Debug, guard
from pieray.cli.lists import duration
from pieray.cli.options import Address, Namespace
from pieray.cli.output import escaped
from pieray.engine_metrics import pages_of_groups, steps_of_groups
from pieray.errors import PierayError

if TYPE_CHECKING:
    from rich.console import RenderableType

Every = Annotated[float, typer.Option(metavar="SECONDS", min=0.2, max=3600, help="How often it is drawn.")]
Once = Annotated[bool, typer.Option("--once", help="Draw it one time.")]
All = Annotated[bool, typer.Option("--all", help="Inferlets that have ended lately too.")]
RUNS = ("running", "starting", "unreachable")
COLUMNS = ("inferlet", "id", "state", "owner", "age", "cpu s", "pages", "swapped", "tokens", "tok/s")
WIDE, WIDE_ONLY = 110, ("owner", "cpu s", "swapped", "tokens")
"""Columns of a terminal, and what a narrower one has no room for."""
PIPE_WIDTH = 160
PAGES = ("leased", "cached", "quarantined", "free")
BAR = 40


def top(
    every: Every = 2.0,
    once: Once = False,
    all_: All = False,
    address: Address = None,
    namespace: Namespace = None,
    debug: Debug = False,
) -> None:
    """Watch an engine: inferlets as a tree, KV pages, steps.  q leaves."""
    from rich.console import Console
    from rich.live import Live

    with guard(debug=debug), open_running(address, namespace) as engine:
        is_drawn_once = once or not sys.stdout.isatty()
        console = Console(width=PIPE_WIDTH) if not sys.stdout.isatty() else Console()
        screen = Screen(all_=all_, is_wide=console.width >= WIDE)

        def look() -> RenderableType:
            return screen.drawn(engine.status(), engine.ps(), time.time())

        if is_drawn_once:
            console.print(look())
            return
        with _keys() as pressed, Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while pressed(every) != "q":
                with contextlib.suppress(PierayError) if engine.is_open else contextlib.nullcontext():
                    live.update(look(), refresh=True)


class Screen:
    """Draws what the engine tells; rates are from one drawing to the next."""

    def __init__(self, *, all_: bool, is_wide: bool = True) -> None:
        self._all = all_
        self._columns = [name for name in COLUMNS if is_wide or name not in WIDE_ONLY]
        self._before: dict[str, float] = {}
        self._at = 0.0

    def drawn(self, status: Mapping[str, Any], inferlets: Sequence[Mapping[str, Any]], now: float) -> RenderableType:
        """What `Engine.status` and `Engine.ps` have told at a Unix time."""
        from rich.console import Group

        steps = steps_of_groups(status["actors"]) or {}
        totals = {f"of {row['instance_id']}": float(row.get("tokens_computed", 0)) for row in inferlets}
        totals |= {name: float(steps.get(name, 0)) for name in ("steps", "tokens", "busy_s")}
        rates = self._rates(totals, now)
        found = Group(*self._head(status, steps, inferlets, rates), self._tree(inferlets, rates, now))
        self._before, self._at = totals, now
        return found

    def _rates(self, totals: Mapping[str, float], now: float) -> dict[str, float]:
        """A second, of what was there before too."""
        passed, before = now - self._at, self._before
        if not before or passed <= 0:
            return {}
        return {name: max(value - before[name], 0) / passed for name, value in totals.items() if name in before}

    def _head(
        self,
        status: Mapping[str, Any],
        steps: Mapping[str, Any],
        inferlets: Sequence[Mapping[str, Any]],
        rates: Mapping[str, float],
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        running = sum(row["state"] in RUNS for row in inferlets)
        waiting = sum(status["admission"]["waiting"].values())
        alive, actors = sum(row["state"] == "up" for row in status["actors"]), len(status["actors"])
        line = f"{running} inferlets run, {waiting} launches wait; {alive} of {actors} actors are up"
        yield Text(f"{line}, {status['num_restarts']} were replaced lately")
        if status["failure"]:
            yield Text(escaped(status["failure"]), style="bold red")
        if status["silent"]:
            yield Text(f"silent: {escaped(', '.join(status['silent']))}", style="bold red")
        if steps:
            rate = "{tokens:.0f} tokens and {steps:.0f} steps a second, busy {busy:.0%}".format(
                tokens=rates.get("tokens", 0),
                steps=rates.get("steps", 0),
                busy=rates.get("busy_s", 0) / steps["num_groups"],
            )
            told = rate if rates else f"{steps['tokens']} tokens in {steps['steps']} steps"
            yield Text(f"{told}; {steps['mean_batch']:.2f} passes in a step, {steps['queued']} commands wait")
        if (pages := pages_of_groups(status["actors"])) is not None:
            yield _bar(pages, steps.get("swap", {"used": 0})["used"])
        yield Text("")

    def _tree(self, inferlets: Sequence[Mapping[str, Any]], rates: Mapping[str, float], now: float) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for name in self._columns:
            is_text = name in ("inferlet", "id", "state", "owner")
            table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis")
        shown = [row for row in inferlets if self._all or row["state"] in RUNS]
        for row, depth in _family(shown):
            cells = _cells(row, depth, rates.get(f"of {row['instance_id']}"), now)
            style = {"failed": "red", "unreachable": "red", "running": ""}.get(row["state"], "dim")
            shown_cells = (cell for name, cell in zip(COLUMNS, cells, strict=True) if name in self._columns)
            table.add_row(*(Text(cell, style=style) for cell in shown_cells))
        return table if shown else Text("no inferlet runs", style="dim")


def _bar(pages: Mapping[str, Any], num_swapped: int) -> RenderableType:
    from rich.text import Text

    total = max(pages["total"], 1)
    styles = {"leased": "dark_orange", "cached": "steel_blue", "quarantined": "red", "free": "grey37"}
    bar = Text("KV pages ")
    sizes = {state: -(-pages[state] * BAR // total) for state in PAGES[:-1]}
    sizes["free"] = max(BAR - sum(sizes.values()), 0)
    for state in PAGES:
        bar.append("█" * sizes[state], style=styles[state])
    counts = ", ".join(f"{pages[state]} {state}" for state in PAGES)
    return bar.append(f" {counts}, {num_swapped} in host memory; {pages['waiting']} wait for some")


def _family(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Each below who has launched it, with its depth; those that run first, then the latest."""
    known = {row["instance_id"] for row in rows}
    children: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["state"] not in RUNS, -row.get("started_at", 0.0))):
        parent = row.get("parent", "")
        children.setdefault(parent if parent in known else "", []).append(row)
    waiting = [(row, 0) for row in reversed(children.get("", []))]
    while waiting:
        row, depth = waiting.pop()
        yield row, depth
        waiting += [(child, depth + 1) for child in reversed(children.get(row["instance_id"], []))]


def _cells(row: Mapping[str, Any], depth: int, rate: float | None, now: float) -> list[str]:
    name = f"{'  ' * depth}{escaped(row['name'])}"
    if "tenant" not in row:  # its actor does not answer
        return [name, row["instance_id"], row["state"], *["-"] * 7]
    return [
        name,
        row["instance_id"],
        row["state"],
        escaped(f"{row['tenant']}/{row['user']}"),
        duration((row["ended_at"] or now) - row["started_at"]),
        f"{row['cpu_time_s']:.2f}",
        str(row["pages"]),
        str(row["swapped"]),
        str(row["tokens_computed"] + row["tokens_found"]),
        "-" if rate is None else f"{rate:.0f}",
    ]


def _no_key(wait_s: float) -> str:
    time.sleep(wait_s)
    return ""


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A callable that waits so many seconds for a key, and gives it; "" for none."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def pressed(wait_s: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], wait_s)
        return sys.stdin.read(1) if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
