"""Handlers for a guest that rehearses before it has a program: nothing is done, each call has an answer of its type."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from pieray.arrays import U32
from pieray.wasm.signatures import HANDLERS

DRAWN = 3
"""Each token that is drawn; others than those that lists of tokens are made of, which may be stop tokens."""

_ANSWERS: dict[str | None, Any] = {
    None: None,
    "bool": False,
    "u32": 1,
    "u64": 1,
    "f32": 0.0,
    "string": "",
    "list<u32>": [1, 2],
    "list<f32>": [0.0],
    "list<string>": [],
    "tuple<list<u32>, list<f32>>": ([1, 2], [0.5, 0.5]),
    "tuple<list<u32>, list<string>, list<f32>>": ([], [], []),
}


class RehearsalHandlers:
    """See `pieray.wasm.handlers.Handlers`.  `called` has the names of all calls, in order."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.printed = _Unprinted()
        self.tickets = _Tickets("tickets", self.called)
        self.plans = _Plans("plans", self.called)
        self.kv = _Pages("kv", self.called)
        self.model = _Model("model", self.called)
        self.runtime = _Runtime("runtime", self.called)

    def __getattr__(self, name: str) -> _Interface:
        if name not in HANDLERS:
            raise AttributeError(name)
        return _Interface(name, self.called)


class _Interface:
    """Answers each function of an interface with one value of its type."""

    def __init__(self, name: str, called: list[str]) -> None:
        self._functions = {function.replace("-", "_"): kind.ok for function, kind in HANDLERS[name].items()}
        self._name = name
        self._called = called

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._functions:
            raise AttributeError(name)
        self._called.append(f"{self._name}.{name}")
        answer = _ANSWERS[self._functions[name]]
        return lambda *_: answer


class _Tickets(_Interface):
    def flush(self) -> None: ...

    def ready(self, tickets: U32) -> list[int]:
        return [int(ticket) for ticket in tickets]


class _Plans(_Interface):
    _num_left = 0  # tokens that a plan draws

    def create(self, _queue: int, _pages: U32, _kv_len: int, _tokens: U32, max_tokens: int, _: int) -> int:
        self._called.append("plans.create")
        self._num_left = max_tokens
        return 1

    def read(self, _plan: int, stream: int, _most: int, _timeout_ms: int) -> tuple[list[int], list[str], list[float]]:
        self._called.append("plans.read")
        count, self._num_left = self._num_left, 0
        return [DRAWN] * count, [" "] * count if stream else [], []

    def state(self, _plan: int) -> str:
        return json.dumps(
            {
                "state": "ended",
                "num_tokens": 0,
                "kv_len": 0,
                "finish_reason": "length",
                "stopped_by": "",
                "num_steps": 1,
                "num_drafted": 0,
                "num_accepted": 0,
            }
        )


class _Pages(_Interface):
    def alloc(self, count: int) -> list[int]:
        return list(range(1, count + 1))


class _Model(_Interface):
    def info(self, _name: str) -> str:
        return json.dumps({"name": "rehearsal", "vocab_size": 1024, "max_context": 4096, "page_size": 16})


class _Runtime(_Interface):
    def monotonic_now(self) -> int:
        return 0

    def wall_now(self) -> int:
        return 0

    def random_u64(self) -> int:
        return secrets.randbits(64)


class _Unprinted:
    def write(self, _fd: int, _text: bytes) -> None: ...
