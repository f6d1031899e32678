"""The log as lines of JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

from pieray.json_log import JsonLines, RunOfThread


def line(message: str, *args: object, run: str = "", **options: Any) -> dict[str, Any]:
    """What an entry of the log becomes, on a thread that works for `run`."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Kept()
    handler.setFormatter(JsonLines())
    handler.addFilter(RunOfThread(lambda: run))
    log = logging.Logger("pieray.test")
    log.addHandler(handler)
    log.warning(message, *args, **options)
    (found,) = lines
    assert "\n" not in found
    assert found.isascii()
    told: dict[str, Any] = json.loads(found)
    return told


def test_an_entry_is_an_object() -> None:
    found = line("%s has ended", "a\n\x1b[2J\u202e", extra={"status": 200, "key": "", "labels": {}})
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "pieray.test",
        "message": "a\n\x1b[2J\u202e has ended",
        "status": 200,
    }


def test_the_run_is_that_of_the_entry_or_of_the_thread() -> None:
    assert line("x", run="a-1")["run"] == "a-1"
    assert line("x", run="a-1", extra={"run": "b-2"})["run"] == "b-2"
    assert "run" not in line("x")


def test_a_traceback_is_one_field() -> None:
    try:
        int("no")
    except ValueError:
        found = line("it failed", exc_info=True)
    assert found["error"].splitlines()[-1].startswith("ValueError: invalid literal")
