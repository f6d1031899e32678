"""Instances made ahead of launches, and code kept of sources: what comes of them is what a fresh guest gives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from fake_host import FakeHost
from interfaces import ByInterface

from pieray.config import Limits
from pieray.errors import PierayError, QuotaExceeded
from pieray.wasm import host as host_module
from pieray.wasm import ready
from pieray.wasm.host import Outcome, Program, WasmHost
from pieray.wasm.pooling import can_pool
from pieray.wasm.python_runtime import component_path
from pieray.wasm.ready import CodeCache

MIB = 1 << 20
READY = 3
Run = Callable[..., Outcome]


def until(check: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[WasmHost, Program]]:
    wasm = WasmHost("fiber")
    program = wasm.load(component_path(), "python-runtime")
    wasm.keep_ready(program, READY)
    yield wasm, program
    wasm.close()
    assert wasm.num_guests == 0


@pytest.fixture
def run(loaded: tuple[WasmHost, Program]) -> Run:
    """Runs source once all instances are ready: run(source, tenant, **limits)."""
    wasm, program = loaded

    def run(source: str, tenant: str = "", host: FakeHost | None = None, **limits: float) -> Outcome:
        until(lambda: wasm.num_ready == READY)
        done, outcomes = threading.Event(), []

        def on_exit(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        wasm.spawn(
            program,
            ByInterface(host or FakeHost()),
            Limits(**limits),
            input="{}",
            source=source,
            on_exit=on_exit,
            tenant=tenant,
        )
        assert done.wait(60)
        return outcomes[0]

    return run


def result(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    return json.loads(outcome.value or "")


def test_a_launch_takes_one_and_another_is_made(loaded: tuple[WasmHost, Program], run: Run) -> None:
    wasm, _ = loaded
    assert wasm._ready is not None
    until(lambda: wasm.num_ready == READY)
    before = list(wasm._ready._instances)
    assert result(run("async def main(): return 7")) == 7
    until(lambda: wasm.num_ready == READY)
    assert [instance in before for instance in wasm._ready._instances] == [True] * (READY - 1) + [False]


def test_the_first_rehearse_a_whole_generation_and_later_ones_have_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    class Noted(host_module.RehearsalHandlers):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(host_module, "RehearsalHandlers", Noted)
    wasm = WasmHost("fiber")
    program = wasm.load(component_path(), "python-runtime")
    wasm.keep_ready(program, 2)
    until(lambda: wasm.num_ready == 2)
    assert len(made) == 2
    for name in ("model.tokenize", "plans.start", "plans.read", "session.send", "plans.stream_text", "kv.free"):
        assert all(name in handlers.called for handlers in made), made[0].called
    for _ in range(3):
        done = threading.Event()
        wasm.spawn(
            program,
            ByInterface(FakeHost()),
            Limits(),
            input="{}",
            source="def main(): return 7",
            on_exit=lambda _outcome, done=done: done.set(),
        )
        assert done.wait(60)
        until(lambda: wasm.num_ready == 2)
    assert len(made) == (2 if can_pool(1) else 5)
    wasm.close()


def test_nothing_of_the_rehearsal_is_left(run: Run) -> None:
    source = """
from inferlet import kv, model
async def main():
    return [kv.page_size(), model.info()['name'], model.tokenize("ab")]
"""
    assert result(run(source, host=FakeHost(page_size=8))) == [8, "fake", [97, 98]]


def test_nothing_of_a_guest_is_seen_by_the_next(run: Run) -> None:
    source = """
import builtins, json, sys, linecache, asyncio
async def main():
    found = [hasattr(builtins, "mine"), json.loads("1") != 1, "mine" in sys.modules, len(linecache.cache),
             len(asyncio.all_tasks())]
    builtins.mine = 1
    json.loads = lambda text: "changed"
    sys.modules["mine"] = sys
    return found
"""
    assert [result(run(source)) for _ in range(READY + 2)] == [[False, False, False, 1, 1]] * (READY + 2)


def test_each_has_randomness_of_its_own(run: Run) -> None:
    source = "import random, uuid\ndef main(): return [random.random(), str(uuid.uuid4())]"
    found = [result(run(source, host=host)) for host in (FakeHost(), FakeHost())]
    assert found[0] == found[1]  # their hosts give the same numbers, and nothing else has been drawn from
    assert len(found[0]) == 2


GREEDY = "def main():\n    held = bytearray({mib} << 20)\n    return len(held) >> 20"


def test_its_own_limit_binds_a_guest_that_was_made_ahead(loaded: tuple[WasmHost, Program], run: Run) -> None:
    wasm, program = loaded
    assert result(run(GREEDY.format(mib=60))) == 60
    least = program.memories.initial_bytes + ready.HEADROOM_BYTES
    small = run(GREEDY.format(mib=60), memory_bytes=least + 8 * MIB)
    assert isinstance(small.error, QuotaExceeded)
    assert f"memory_bytes is {least + 8 * MIB}" in small.error.message
    until(lambda: wasm.num_ready == READY)
    assert isinstance(run("def main(): return 1", memory_bytes=MIB).error, QuotaExceeded)
    assert wasm.num_ready == READY  # it would be larger than that: none was taken


def test_a_guest_that_is_killed_before_its_first_turn_leaves_nothing(
    loaded: tuple[WasmHost, Program], run: Run
) -> None:
    wasm, program = loaded
    until(lambda: wasm.num_ready == READY)
    ends: list[Outcome] = []
    guests = [
        wasm.spawn(
            program,
            ByInterface(FakeHost()),
            Limits(),
            input="{}",
            source="def main():\n  while 1: pass",
            on_exit=ends.append,
        )
        for _ in range(READY + 2)
    ]
    for guest in guests:
        guest.kill(PierayError("enough"))
    until(lambda: len(ends) == READY + 2)
    assert {str(end.error) for end in ends} == {"enough"}
    until(lambda: wasm.num_ready == READY)
    assert result(run("def main(): return 1")) == 1


def test_none_is_made_while_a_guest_waits_for_its_turn(loaded: tuple[WasmHost, Program], run: Run) -> None:
    wasm, program = loaded
    until(lambda: wasm.num_ready == READY)
    spins = "import time\ndef main():\n    end = time.monotonic() + 0.5\n    while time.monotonic() < end: pass"

    class Clocked(FakeHost):
        def runtime_monotonic_now(self) -> int:
            return time.monotonic_ns()

    ends: list[Outcome] = []
    for _ in range(2):
        wasm.spawn(program, ByInterface(Clocked()), Limits(), input="{}", source=spins, on_exit=ends.append)
    time.sleep(0.1)  # one may have been begun before the second guest came
    num_ready = wasm.num_ready
    time.sleep(0.25)
    assert (wasm.num_ready, ends) == (num_ready, [])
    assert num_ready < READY
    until(lambda: len(ends) == 2)
    assert [end.error for end in ends] == [None, None]
    until(lambda: wasm.num_ready == READY)


def test_code_is_made_once_for_a_tenant_and_its_source(
    loaded: tuple[WasmHost, Program], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wasm, _ = loaded
    kept: list[tuple[str, str]] = []
    put = wasm._codes.put
    monkeypatch.setattr(wasm._codes, "put", lambda tenant, *rest: (kept.append((tenant, rest[1])), put(tenant, *rest)))
    source = "def main():\n    return 1 / 0\n"
    traces = [str(run(source, tenant).error) for tenant in ("a", "a", "b", "a")]
    assert kept == [("a", source), ("b", source)]
    assert len(set(traces)) == 1
    assert "line 2, in main\n    return 1 / 0" in traces[0]
    assert "SyntaxError" in str(run("def main(:", "a").error)
    assert len(kept) == 2


def test_the_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    rng = Random(3)
    cache = CodeCache(most_bytes=40_000)
    expected: dict[tuple[str, str, str], str] = {}
    for number in range(2000):
        key = rng.choice("abc"), "main.py", f"{rng.randrange(60)}" * rng.randrange(1, 40)
        found = cache.get(*key)
        assert found == expected.get(key, "")
        if found:
            expected[key] = expected.pop(key)
            continue
        code = str(number) * rng.randrange(1, 100)
        cache.put(*key, code)
        expected[key] = code
        while sum(ready._size_of(k[2], c) for k, c in expected.items()) > 40_000:
            del expected[next(iter(expected))]
    assert len(expected) > 10
    cache.put("a", "main.py", "big", "x" * 6000)
    assert cache.get("a", "main.py", "big") == ""
