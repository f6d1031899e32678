"""Random programs of handler calls, made from the WIT so that no handler is forgotten.

A program is a list of calls with arguments of the right types: numbers in and out of range, handles that earlier
calls gave, of the right kind and of others, closed ones, forged ones.  `as_json` is for a Python guest, `as_text` for
one in C.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from pieray.wit import Function, api

GOOD, BAD = 0.5, 0.35
"""How often an argument is as it should be, and how often garbage; else it is of another kind."""
HONEST, ONE_WRONG = 0.4, 0.4
"""How often a call has nothing but good arguments, and how often all but one; else each is left to chance."""
U32, U64 = 2**32 - 1, 2**64 - 1
HANDLES = (
    "queue",
    "page",
    "pass",
    "plan",
    "matcher",
    "sampler",
    "adapter",
    "embed",
    "ticket",
    "subscription",
    "child",
    "stream",
)
#: parameters whose name is not their handle's
KINDS = {"pages": "page", "src": "page", "dst": "page", "tickets": "ticket", "embeds": "embed", "handle": "stream"}
#: what the u32 (or list<u32>) that a function gives is; a ticket unless it is here, nothing if ""
GIVES = {
    "queues.create": "queue",
    "kv.alloc": "page",
    "kv.fork": "page",
    "kv.page-size": "",
    "model.stream-open": "stream",
    "model.tokenize": "",
    "model.stop-tokens": "",
    "embeds.text": "embed",
    "embeds.put": "embed",
    "embeds.size": "",
    "samplers.create": "sampler",
    "forward.forward": "pass",
    "forward.forward-embeds": "pass",
    "plans.create": "plan",
    "grammar.fork": "matcher",
    "grammar.accept": "",
    "grammar.mask": "",
    "grammar.forced": "",
    "adapters.open": "adapter",
    "children.launch": "child",
    "tickets.wait": "ticket",
    "tickets.take-tokens": "",
}
NUMBERS = (0, 1, 2, 3, 7, 16, 17, 255, 4096, 2**16, 2**31 - 1, 2**31, U32 - 1, U32)
TEXTS = (
    "",
    "a",
    "é😀",
    "\0",
    "../../etc/passwd",
    "/",
    "a/b",
    "x" * 600,
    "{}",
    "[]",
    '{"a": 1}',
    "[" * 5000,
    "null",
    "1e999",
    "pie-tiny",
    "text-completion",
    '[{"role": "user", "content": "hi"}]',
    "AAAA",
    "=",
    "(a+)+$",
    'start: "a"',
    "%",
    '{"a": "\\ud800"}',
    '[{"role": "user", "content": "\\ud800"}]',
    '[{"name": "a", "arguments": {"b": "\\udfff"}}]',
)
HIDDEN_SIZE = 192
"""Of pie-tiny."""
FLOATS = (0.0, -0.0, 1.0, 0.5, -1.0, 1.5, 1e38, -1e38, 1e-45, math.nan, math.inf, -math.inf)
#: what an honest guest gives, by parameter or by function and parameter; 0, "" and [] where nothing is said
HONEST_VALUES: dict[str, Any] = {
    "count": 1,
    "max-tokens": 4,
    "num-tokens": 1,
    "k": 3,
    "num-drafts": 2,
    "ms": 1,
    "tokens": [1, 2],
    "drafts": [1],
    "history": [1, 2, 1],
    "samplers.bias.values": [0.5, -1.0],
    "values": [0.25] * HIDDEN_SIZE,
    "texts": ["x"],
    "temperature": 0.7,
    "top-p": 0.9,
    "typical-p": 1.0,
    "queue": "q",
    "topic": "topic",
    "name": "n",
    "key": "k",
    "path": "f",
    "data": "AAAA",
    "method": "GET",
    "url": "http://127.0.0.1:9/",
    "input": "{}",
    "value": "1",
    "source": "def main(): return 1",
    "messages": '[{"role": "user", "content": "hi"}]',
    "arguments": "{}",
    "grammar.compile.text": "[0-9]+",
    "kind": "regex",
    "link": "none",
    "level": "info",
    "access": "tenant",
    "replace": True,
    "timeout-ms": 5,
}


@dataclass(frozen=True, slots=True)
class Ref:
    """The number that an earlier call gave."""

    call: int


@dataclass(frozen=True, slots=True)
class Call:
    interface: str
    function: Function
    args: tuple[Any, ...]

    @property
    def name(self) -> str:
        return f"{self.interface}.{self.function.name}"


def functions(names: Sequence[str] | None = None) -> list[tuple[str, Function]]:
    """All functions of the WIT with their interfaces, or those named "interface.function"."""
    found = [(i.name, f) for i in api().interfaces for f in i.functions]
    return [(i, f) for i, f in found if names is None or f"{i}.{f.name}" in names]


class Programs:
    """A seeded source of programs.  `names`: what may be called."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._random = Random(seed)
        self._functions = {f"{i}.{f.name}": (i, f) for i, f in functions(names)}
        self._on_passes = sorted(n for n, (_, f) in self._functions.items() if f.params and f.params[0][0] == "pass")
        self._due: list[str] = []
        self._calls: list[Call] = []
        self._given: dict[str, list[Ref]] = defaultdict(list)

    def next(self, num_calls: int) -> list[Call]:
        """A program that opens some things of each kind and then does anything with them."""
        self._calls, self._given = [], defaultdict(list)
        self._open()
        while len(self._calls) < num_calls:
            if not self._due:
                self._due = self._random.sample(sorted(self._functions), len(self._functions))
            interface, function = self._functions[self._due.pop()]
            self._add(interface, function, self._arguments(interface, function))
            if function.name.startswith("forward"):  # outputs can be asked for only until the pass is sent
                self._due += self._random.sample(self._on_passes, min(3, len(self._on_passes)))
        return self._calls

    def _open(self) -> None:
        """One of each kind of handle, as an honest guest opens it."""
        queue = self._call("queues.create", "")
        pages = [self._call("kv.alloc", 1) for _ in range(4)]
        self._call("model.stream-open", "", True, [])
        sampler = self._call("samplers.create", 0.7, 0, 1.0, 0.0, 1.0, 1)
        self._call("embeds.text", [1, 2])
        self._call("plans.create", queue, pages[2:], 0, [1], 8, sampler)
        self._taken("grammar.compile", "matcher", "", "regex", "[0-9]+")
        self._taken("messaging.subscribe", "subscription", "topic")
        self._call("children.launch", "", "def main(): return 1", "{}", "", "none")
        self._call("forward.forward", queue, [pages[0]], 0, [1, 2], [], [])

    def _call(self, name: str, *args: Any) -> Ref | int:
        if name not in self._functions:
            return 0
        return self._add(*self._functions[name], args)

    def _taken(self, name: str, kind: str, *args: Any) -> None:
        """A call whose ticket gives a handle."""
        ticket = self._call(name, *args)
        if isinstance(ticket, Ref):
            self._call("tickets.wait", [ticket], 2000)
            taken = self._call("tickets.take-tokens", ticket)
            if isinstance(taken, Ref):
                self._given[kind].append(taken)

    def _add(self, interface: str, function: Function, args: tuple[Any, ...]) -> Ref:
        ref = Ref(len(self._calls))
        self._calls.append(Call(interface, function, args))
        if function.ok in ("u32", "list<u32>") and (kind := GIVES.get(f"{interface}.{function.name}", "ticket")):
            self._given[kind].append(ref)
            if kind == "pass":
                self._given["ticket"].append(ref)
        return ref

    def _arguments(self, interface: str, function: Function) -> tuple[Any, ...]:
        luck = self._random.random()
        wrong = self._random.randrange(max(1, len(function.params))) if luck > HONEST else -1
        is_honest = luck < HONEST + ONE_WRONG
        return tuple(
            self._honest(f"{interface}.{function.name}.{name}", name, kind)
            if is_honest and place != wrong
            else self._argument(interface, name, kind)
            for place, (name, kind) in enumerate(function.params)
        )

    def _honest(self, path: str, name: str, kind: str) -> Any:
        handle = KINDS.get(name, name)
        if handle in HANDLES and kind in ("u32", "list<u32>"):
            given = self._given[handle][-2:]
            if kind == "u32":
                return self._random.choice(given) if given else 0  # 0 is "none" for some
            return given
        nothing = {"string": "", "bool": False, "f32": 0.0}.get(kind, [] if kind.startswith("list<") else 0)
        return HONEST_VALUES.get(path, HONEST_VALUES.get(name, nothing))

    def _argument(self, interface: str, name: str, kind: str) -> Any:
        if kind == "u32":
            return self._u32(name)
        if kind == "list<u32>":
            return [self._u32(name) for _ in range(self._random.choice((0, 1, 1, 2, 3, 4)))]
        if kind == "s32":  # the time of `wait`: not for ever
            low = 0 if name == "timeout-ms" else -(2**31)
            return self._random.choice((low, low, 0, 1, 20))
        if kind == "u64":
            return self._random.choice((*NUMBERS, 2**63, U64, self._random.getrandbits(64)))
        if kind == "f32":
            return self._random.choice(FLOATS)
        if kind == "list<f32>":
            return [self._random.choice(FLOATS) for _ in range(self._random.choice((0, 1, 3, 128)))]
        if kind == "bool":
            return self._random.random() < 0.5
        if kind in api().enums:
            return self._random.choice(api().enums[kind])
        if kind == "list<string>":
            return [self._text(interface, name) for _ in range(self._random.choice((0, 1, 2, 3)))]
        assert kind == "string", kind
        return self._text(interface, name)

    def _u32(self, name: str) -> Any:
        kind = KINDS.get(name, name)
        luck = self._random.random()
        given = self._given[kind] if luck < GOOD else self._given[self._random.choice(HANDLES)]
        if kind in HANDLES and luck < 1 - BAD and given:
            return self._random.choice(given[-3:] if self._random.random() < 0.7 else given)  # old ones may be closed
        if kind not in HANDLES and luck < GOOD:
            return self._random.choice((0, 1, 1, 2, 3, 5))
        return self._random.choice((*NUMBERS, self._random.getrandbits(32)))

    def _text(self, interface: str, name: str) -> str:
        if name == "model" and self._random.random() < 0.7:
            return ""
        if name in ("queue", "topic", "key") and self._random.random() < 0.6:
            return self._random.choice(("q", "topic", "k"))
        return self._random.choice(TEXTS)


def as_json(program: Sequence[Call]) -> list[Any]:
    """[[interface, function, [argument]]]; a reference is {"call"}, an enum {"enum", "case"}, a float {"float"}."""
    return [
        [
            call.interface.replace("-", "_"),
            call.function.name.replace("-", "_"),
            [_json(value, kind) for value, (_, kind) in zip(call.args, call.function.params, strict=True)],
        ]
        for call in program
    ]


def _json(value: Any, kind: str) -> Any:
    if isinstance(value, Ref):
        return {"call": value.call}
    if isinstance(value, list):
        return [_json(v, kind.removeprefix("list<").removesuffix(">")) for v in value]
    if kind in api().enums:
        name = "".join(part.title() for part in kind.split("-"))
        return {"enum": name, "case": api().enums[kind].index(value)}
    return {"float": repr(value)} if isinstance(value, float) else value


def as_text(program: Sequence[Call]) -> str:
    """A line for each call: the number of the function in the WIT, then its arguments as `fuzz.c` reads them."""
    numbers = {f"{i}.{f.name}": n for n, (i, f) in enumerate(functions())}
    lines = []
    for call in program:
        words = [_word(v, k) for v, (_, k) in zip(call.args, call.function.params, strict=True)]
        lines.append(" ".join([str(numbers[call.name]), *words]))
    return "\n".join(lines) + "\n"


def _word(value: Any, kind: str) -> str:
    if kind == "string":
        return f"s{value.encode().hex()}"
    if kind == "list<string>":
        return "t" + "".join(f"{v.encode().hex()}," for v in value)
    if kind.startswith("list<"):
        return "l" + "".join(f"{_scalar(v)}," for v in value)
    if kind in api().enums:
        return f"n{api().enums[kind].index(value)}"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, Ref):
        return f"c{value.call}"
    if isinstance(value, float):
        return f"n{struct.unpack('<I', struct.pack('<f', value))[0]}"
    return f"n{int(value) % 2**64}"
