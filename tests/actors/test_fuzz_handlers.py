"""Every handler of the WIT, called at random from Python and from C: typed errors, and nothing else happens.

Programs are seeded: a failure names its seed and call.  `PIERAY_FUZZ_ROUNDS=20 pytest ...` makes more of them.
"""

from __future__ import annotations

import json
import os
import secrets
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import assert_pages_return
from fuzz_programs import Call, Programs, as_json, as_text, functions
from programs import GENERATE, program
from rounds import seeds

import pieray
from pieray.errors import WIT_CODES, GuestFailed, GuestTrapped, PierayError, QuotaExceeded
from pieray.host.handlers import GuestHandlers
from pieray.messages import Launch, encode

NUM_PROGRAMS, NUM_CALLS = 40, 160
GUESTS_C = Path(__file__).parent.parent / "inferlets" / "guests_c"
LIMITS = {"cpu_time_s": 20.0, "wall_time_s": 60.0, "memory_bytes": 64 << 20, "pages": 512, "tickets": 2048}
CAPABILITIES = {"messaging": True, "store": True, "children": True, "http": ["*"], "mcp": ["*"]}
ANSWERS = {"ok", *WIT_CODES} - {"internal"}

CALLER = program(
    """
from inferlet import Error, _host

def value(argument, given):
    if isinstance(argument, list):
        return [value(a, given) for a in argument]
    if not isinstance(argument, dict):
        return argument
    if "call" in argument:
        return given[argument["call"]]
    if "enum" in argument:
        return getattr(_host, argument["enum"])(argument["case"])
    return float(argument["float"])

def handle(result):
    if isinstance(result, list):
        result = result[0] if result else 0
    return result if isinstance(result, int) else 0

def main(calls):
    given, said = [], []
    for interface, function, arguments in calls:
        try:
            result = getattr(getattr(_host, interface), function)(*value(arguments, given))
        except Error as error:
            given.append(0)
            said.append([error.code, error.message])
        else:
            given.append(handle(result))
            said.append(["ok", ""])
    return said
""",
    "fuzz",
)

RAW_CALLER = program(
    CALLER.source.replace("import Error, _host", "import _raw as _host")
    .replace(
        "except Error as error:", "except (_host.Err, TypeError, ValueError, OverflowError, AttributeError) as error:"
    )
    .replace("said.append([error.code, error.message])", 'said.append(["refused", repr(error)])'),
    "raw",
)

UNEXPORT = program(
    """
import json
from inferlet import _host

def main():
    listing = _host.kv.list_exports("")
    _host.tickets.wait([listing], -1)
    found = json.loads(_host.tickets.take_text(listing))
    for one in found:
        ticket = _host.kv.unexport(one["name"], _host.Access[one["access"].upper()])
        _host.tickets.wait([ticket], -1)
        _host.tickets.take_none(ticket)
    return len(found)
""",
    "unexport",
)


def served() -> list[str]:
    """Functions that this engine has handlers for; `wait` is the wasm host's own."""
    groups = typing.get_type_hints(GuestHandlers)
    return [
        f"{i}.{f.name}"
        for i, f in functions()
        if hasattr(groups.get(i), f.name.replace("-", "_")) or (i, f.name) == ("tickets", "wait")
    ]


def test_all_that_the_wit_declares_is_called() -> None:
    assert served() == [f"{i}.{f.name}" for i, f in functions()]


@pytest.fixture(scope="module")
def engine(ray_cluster: None) -> Iterator[Any]:
    with pieray.start(namespace="fuzz", inferlets_per_actor=512) as started:
        yield started


class Watch:
    """What must be the same before and after: processes, a neighbour's text, pages."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._text = self._neighbour().result(timeout=60)
        self._pids = self._actors()

    def _neighbour(self) -> Any:
        return self._engine.launch(GENERATE, prompt="12+7=", max_tokens=48)

    def _actors(self) -> set[tuple[str, int]]:
        """The Broker may have come up later than the engine."""
        return {(a["role"], a["pid"]) for a in self._engine.status()["actors"]}

    def __enter__(self) -> Watch:
        self._running = [self._neighbour() for _ in range(3)]
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None:
            return
        for neighbour in [*self._running, self._neighbour()]:
            assert neighbour.result(timeout=60) == self._text
        for row in self._engine.ps():  # children that outlive their parents, if any
            if row["state"] == "running":
                self._engine.kill(row["instance_id"])
        if "kv.unexport" in served():  # what is exported stays, as it should
            self._engine.launch(UNEXPORT).result(timeout=60)
        assert_pages_return(self._engine)
        assert self._pids <= self._actors()
        assert self._engine.status()["failure"] is None


def launch_text(engine: Any, name: str, text: str) -> Any:
    """Launch a C guest with `text` as it is: it reads no JSON."""
    component = (GUESTS_C / name).read_bytes()
    message = Launch(f"raw-{secrets.token_hex(4)}", "raw", name, "", component, text, LIMITS, CAPABILITIES)
    engine._ask("launch", encode([message]))
    return engine.attach(message.instance_id)


def check(seed: int, calls: list[Call], said: list[list[str]], seen: dict[str, Counter[str]]) -> list[str]:
    """The calls whose answers are none of the WIT's, or a fault of the system."""
    assert len(said) == len(calls)
    wrong = []
    for number, (call, (code, message)) in enumerate(zip(calls, said, strict=True)):
        seen.setdefault(call.name, Counter())[code] += 1
        if code not in ANSWERS:
            wrong.append(f"seed {seed}, call {number}: {call.name}{call.args!r:.300} -> {code}: {message[:300]}")
        elif code != "ok" and not message:
            wrong.append(f"seed {seed}, call {number}: {call.name} -> {code} without a message")
    return wrong


def fuzz(engine: Any, first_seed: int, run: Any) -> None:
    names = served()
    seen: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    with Watch(engine):
        running = []
        source = Programs(first_seed, names)
        for number in range(NUM_PROGRAMS):
            calls = source.next(NUM_CALLS)
            running.append((first_seed, number, calls, run(calls)))
        for seed, number, calls, process in running:
            try:
                said = process.result(timeout=90)
            except PierayError as error:
                wrong.append(f"seed {seed}, program {number} ended: {error.code}: {error.message[-600:]}")
                continue
            wrong += check(seed, calls, said, seen)
    if "PIERAY_FUZZ_VERBOSE" in os.environ:
        print("\n".join(f"{name}: {dict(codes)}" for name, codes in sorted(seen.items())))
    assert not wrong, f"{len(wrong)} wrong answers:\n" + "\n".join(wrong[:40])
    assert set(seen) == set(names)
    spoken = Counter(code for codes in seen.values() for code in codes)
    assert {"ok", "bad-handle", "invalid"} <= set(spoken)


@pytest.mark.parametrize("seed", seeds(1))
def test_any_calls_from_python_are_answered(engine: Any, seed: int) -> None:
    fuzz(
        engine,
        seed,
        lambda calls: engine.launch(CALLER, calls=as_json(calls), limits=LIMITS, capabilities=CAPABILITIES),
    )


@pytest.mark.parametrize("seed", seeds(1))
def test_any_calls_from_c_are_answered(engine: Any, seed: int) -> None:
    fuzz(engine, seed, lambda calls: launch_text(engine, "fuzz.wasm", as_text(calls)))


WRONG: dict[str, list[Any]] = {
    "u32": [-1, 2**32, 1.5, "1", None, [], {"float": "nan"}],
    "s32": [-(2**31) - 1, 2**31, "1"],
    "u64": [-1, 2**64, 1.5, None],
    "f32": ["1.0", None, 10**400],
    "bool": ["yes", None, [1]],
    "string": [1, None, ["a"], "\ud800"],
    "list": [["x"], [-1], [2**32], 1, None, [[1]], [None]],
    "enum": [0, "none", None, {"enum": "Access", "case": 2}, {"enum": "LogLevel", "case": 3}],
}


def wrong_calls() -> list[list[Any]]:
    """For each parameter of each function, a call with one value that is none of its type."""
    right = {"u32": 0, "s32": 0, "u64": 0, "f32": 0.5, "bool": False, "string": ""}
    calls = []
    for interface, function in functions(served()):
        for place, (_, kind) in enumerate(function.params):
            other = {"enum": "LogLevel", "case": 0}
            values = [right.get(k, [] if k.startswith("list") else other) for _, k in function.params]
            family = "list" if kind.startswith("list") else kind if kind in WRONG else "enum"
            values[place] = WRONG[family][len(calls) % len(WRONG[family])]
            calls.append([interface, function.name.replace("-", "_"), values])
    return calls


def test_values_of_wrong_types_are_errors_and_their_guest_lives_on(engine: Any) -> None:
    """All of them in one guest, each followed by the next."""
    calls = wrong_calls()
    with Watch(engine):
        for start in range(0, len(calls), NUM_CALLS):
            some = calls[start : start + NUM_CALLS]
            said = engine.launch(CALLER, calls=some, limits=LIMITS, capabilities=CAPABILITIES).result(timeout=90)
            for call, (code, message) in zip(some, said, strict=True):
                assert code in ANSWERS, (call, message)
            assert sum(code == "invalid" for code, _ in said) > len(some) * 0.9, said


def test_values_of_wrong_types_for_the_bindings_end_at_most_the_guest_that_gives_them(engine: Any) -> None:
    """A guest that goes round the SDK: the bindings refuse or abort; the host sees values of its types alone."""
    calls = wrong_calls()
    outcomes: Counter[str] = Counter()
    with Watch(engine):
        for start in range(0, len(calls), 48):
            running = [
                (call, engine.launch(RAW_CALLER, calls=[call], limits=LIMITS, capabilities=CAPABILITIES))
                for call in calls[start : start + 48]
            ]
            for call, process in running:
                try:
                    ((code, message),) = process.result(timeout=90)
                except (GuestTrapped, GuestFailed) as error:
                    outcomes["host failed" if "host function" in error.message else "ended"] += 1
                else:
                    assert code in ANSWERS | {"refused"}, (call, message)
                    outcomes[code] += 1
    assert outcomes["host failed"] == 0
    assert outcomes["ended"] + outcomes["refused"] > len(calls) / 2, outcomes


FAR, HUGE = 0x7FFFFF00, 0xFFFFFFF0


def test_pointers_that_lie_end_their_guest_alone(engine: Any) -> None:
    """For every string and list of every function: outside of memory, and longer than memory."""
    numbers = {f"{i}.{f.name}": n for n, (i, f) in enumerate(functions())}
    lies = [f"n{FAR} n16", f"n1024 n{HUGE}", f"n{HUGE} n{HUGE}"]
    programs = []
    for interface, function in functions(served()):
        kinds = [kind for _, kind in function.params]
        for place, kind in enumerate(kinds):
            if kind == "string" or kind.startswith("list<"):
                lie = lies[len(programs) % len(lies)]
                good = ["s" if k == "string" else "l" if k.startswith("list<") else "n0" for k in kinds]
                good = ["t" if k == "list<string>" else word for k, word in zip(kinds, good, strict=True)]
                words = [lie if at == place else word for at, word in enumerate(good)]
                name = f"{interface}.{function.name}"
                programs.append((f"{name} {words}", f"{numbers[name]} {' '.join(words)}\n"))
    with Watch(engine):
        for start in range(0, len(programs), 32):
            running = [(what, launch_text(engine, "fuzz.wasm", text)) for what, text in programs[start : start + 32]]
            for what, process in running:
                with pytest.raises((GuestTrapped, QuotaExceeded)):
                    pytest.fail(f"{what} gave {process.result(timeout=60)}")
    assert len(programs) > 30


def test_the_table_of_the_c_guest_is_the_wits() -> None:
    folder = str(GUESTS_C)
    import sys

    sys.path.insert(0, folder)
    try:
        import calls
    finally:
        sys.path.remove(folder)
    assert calls.header() == (GUESTS_C / "calls.h").read_text()
    assert json.loads((GUESTS_C / "manifest.json").read_text())["fuzz.wasm"]["sources"]["calls.h"]
