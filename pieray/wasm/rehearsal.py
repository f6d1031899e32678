"""Handlers for a guest that rehearses before it has a program: nothing is done, each call has an answer of its type."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

from pieray.wasm.handlers import U32s
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
_TYPES = {
    f"{interface}_{name}".replace("-", "_"): signature.ok
    for interface, functions in HANDLERS.items()
    for name, signature in functions.items()
}


class RehearsalHandlers:
    """See `pieray.wasm.handlers.Handlers`.  `called` has the names of all calls, in order."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self._num_left = 0  # tokens that a plan draws

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in _TYPES:
            raise AttributeError(name)
        self.called.append(name)
        answer = _ANSWERS[_TYPES[name]]
        return lambda *_: answer

    def tickets_flush(self) -> None: ...

    def tickets_ready(self, tickets: U32s) -> list[int]:
        return [int(ticket) for ticket in tickets]

    def plans_create(self, _queue: int, _pages: U32s, _kv_len: int, _tokens: U32s, max_tokens: int, _: int) -> int:
        self.called.append("plans_create")
        self._num_left = max_tokens
        return 1

    def plans_read(
        self, _plan: int, stream: int, _most: int, _timeout_ms: int
    ) -> tuple[list[int], list[str], list[float]]:
        self.called.append("plans_read")
        count, self._num_left = self._num_left, 0
        return [DRAWN] * count, [" "] * count if stream else [], []

    def plans_state(self, _plan: int) -> str:
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

    def stdout(self, _fd: int, _text: bytes) -> None: ...

    def kv_alloc(self, count: int) -> list[int]:
        return list(range(1, count + 1))

    def model_info(self, _name: str) -> str:
        return json.dumps({"name": "rehearsal", "vocab_size": 1024, "max_context": 4096, "page_size": 16})

    def runtime_monotonic_now(self) -> int:
        return 0

    def runtime_wall_now(self) -> int:
        return 0

    def runtime_random_u64(self) -> int:
        return secrets.randbits(64)
