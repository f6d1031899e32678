"""Children that answer, die, hang and are closed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pieray.concurrency.child_process import Child, ChildDied
from pieray.errors import Cancelled, EngineError

MODULE = """
import os, time
from pieray.concurrency.child_process import serve

def open_with(opening):
    if opening == "refuse":
        raise ValueError("refused")
    def answer(request):
        what, value = request
        if what == "sleep": time.sleep(value)
        if what == "exit": os._exit(value)
        if what == "allocate": value = len(bytearray(value))
        if what == "noise": print("noise", flush=True)
        if what == "pid": value = os.getpid()
        return value
    return answer

if __name__ == "__main__":
    serve(open_with, memory_bytes=256 << 20)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "answers_for_tests.py").write_text(MODULE)
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


@pytest.fixture
def child(environment: dict[str, str]) -> Iterator[Child]:
    child = Child("answers_for_tests", "", environment)
    yield child
    child.close()


def test_it_answers_what_it_is_asked_in_one_process(child: Child) -> None:
    large = {"text": "é" * 300_000, "bytes": bytes(range(256)) * 8000, "numbers": list(range(5000))}
    assert child.ask(["echo", large], 30) == large
    assert child.ask(["noise", 1], 30) == 1  # what it prints is no answer
    assert child.ask(["pid", 0], 30) == child.ask(["pid", 0], 30) != os.getpid()


def test_one_that_takes_too_long_is_ended_and_its_late_answer_is_nobodys(child: Child) -> None:
    pid = child.ask(["pid", 0], 30)
    with pytest.raises(TimeoutError):
        child.ask(["sleep", 30], 0.05)
    assert child.ask(["echo", "next"], 30) == "next"
    assert child.ask(["pid", 0], 30) != pid


def test_one_that_dies_says_how_and_the_next_request_finds_another(child: Child) -> None:
    for _ in range(2):
        with pytest.raises(ChildDied) as died:
            child.ask(["exit", 7], 30)
        assert died.value.status == 7
    assert child.ask(["echo", 1], 30) == 1
    with pytest.raises(ChildDied):
        child.ask(["allocate", 1 << 30], 30)


def test_an_opening_that_is_refused_is_told(environment: dict[str, str]) -> None:
    child = Child("answers_for_tests", "refuse", environment)
    with pytest.raises(EngineError, match="refused"):
        child.ask(["echo", 1], 30)
    child.close()


def test_closing_ends_what_is_under_way(child: Child) -> None:
    child.ask(["echo", 1], 30)
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            child.ask(["sleep", 60], 60)
        except Cancelled as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    child.close()
    thread.join(30)
    assert time.monotonic() - began < 25
    assert len(failures) == 1
    with pytest.raises(Cancelled, match="closed"):
        child.ask(["echo", 1], 30)
