"""What `pieray top` draws."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pieray.cli.top import Screen

PAGES = {"total": 100, "leased": 25, "cached": 10, "quarantined": 0, "free": 65, "waiting": 2}
NOW = 1000.0


def batcher(tokens: int, steps: int) -> dict[str, Any]:
    facts = {"tokens": tokens, "steps": steps, "busy_s": steps / 100, "mean_batch": 1.5, "queued": 3}
    return {"role": "batcher", "state": "up", "swap": {"used": 7}, **facts}


def status(tokens: int = 0, steps: int = 0, **more: Any) -> dict[str, Any]:
    actors = [batcher(tokens, steps), {"role": "resource-manager", "state": "up", **PAGES}]
    admission = {"waiting": {"lab": 4}, "refused": {}, "quotas": {}}
    return {"actors": actors, "admission": admission, "num_restarts": 1, "failure": None, "silent": [], **more}


def row(name: str, parent: str = "", state: str = "running", tokens: int = 5, **more: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"instance_id": f"{name}-1", "name": name, "state": state, "parent": parent}
    facts |= {"tenant": "lab", "user": "ada", "started_at": NOW - 65, "ended_at": None, "cpu_time_s": 0.5}
    return {**facts, "pages": 3, "swapped": 1, "tokens_computed": tokens, "tokens_found": 2, **more}


def drawn(screen: Screen, *told: Any) -> str:
    console = Console(width=160, record=True, file=None, force_terminal=False, quiet=False)
    with console.capture() as captured:
        console.print(screen.drawn(*told))
    return captured.get()


def test_inferlets_are_a_tree_of_those_that_run() -> None:
    rows = [row("child", parent="mother-1"), row("mother"), row("old", state="done", ended_at=NOW)]
    text = drawn(Screen(all_=False), status(), rows, NOW)
    lines = text.splitlines()
    assert "2 inferlets run, 4 launches wait; 2 of 2 actors are up, 1 were replaced lately" in lines[0]
    assert "25 leased, 10 cached, 0 quarantined, 65 free, 7 in host memory; 2 wait for some" in text
    found = [line.rstrip().split() for line in lines if "-1 " in line]
    assert [cells[0] for cells in found] == ["mother", "child"]
    assert "  child" in text
    assert found[0][2:] == ["running", "lab/ada", "1m", "5s", "0.50", "3", "1", "7", "-"]
    assert "old-1" in drawn(Screen(all_=True), status(), rows, NOW)


def test_rates_are_from_one_drawing_to_the_next() -> None:
    screen = Screen(all_=False)
    assert "100 tokens in 10 steps" in drawn(screen, status(100, 10), [row("a", tokens=5)], NOW)
    text = drawn(screen, status(300, 60), [row("a", tokens=45), row("b", tokens=9)], NOW + 2)
    assert "100 tokens and 25 steps a second, busy 25%" in text
    assert text.count(" 20\n") == 1
    assert [line.split()[-1] for line in text.splitlines() if "-1 " in line] == ["20", "-"]


def test_what_is_wrong_is_said_and_nothing_steers_the_terminal() -> None:
    facts = status(failure="no device\x1b[2J", silent=["pieray.inferlets-1"])
    lost = {"instance_id": "x-1", "name": "x\x1b]0;y", "state": "unreachable", "pages": 0, "swapped": 0, "error": "e"}
    text = drawn(Screen(all_=False), facts, [lost], NOW)
    assert "\x1b" not in text
    assert "no device" in text
    assert "silent: pieray.inferlets-1" in text
    assert "unreachable" in text
