"""Decode plans of `testing.Host`: each `next` draws one token."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


class HandlerError(Exception):
    """What a handler of a `Host` raises; the program gets the SDK's error of that code, such as "not-found"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


Columns: TypeAlias = tuple[list[int], list[str], list[float]]


@dataclass(slots=True)
class _Plan:
    queue: int
    pages: Sequence[int]
    kv_len: int
    fresh: list[int]  # tokens to run before the next is drawn
    max_tokens: int
    drawn: list[int] = field(default_factory=list)
    stop_tokens: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    state: str = "ready"
    finish_reason: str = ""
    streamed: list[int] = field(default_factory=list)  # whose text has been sent, and that were not read
    watch: int = 0


class PlanHandlers:
    """Mixed into `testing.Host`, which has passes and tickets."""

    _ids: itertools.count[int]
    _plans: dict[int, _Plan]
    tickets_cancel: Callable[[Sequence[int]], None]

    def plans_create(
        self, queue: int, pages: Sequence[int], kv_len: int, tokens: Sequence[int], max_tokens: int, _sampler: int
    ) -> int:
        self._plans[number := next(self._ids)] = _Plan(queue, list(pages), kv_len, list(tokens), max_tokens)
        return number

    def plans_set_sampler(self, plan: int, sampler: int) -> None: ...

    def plans_set_adapter(self, plan: int, adapter: int) -> None: ...

    def plans_set_drafter(self, plan: int, num_drafts: int, history: Sequence[int]) -> None: ...

    def plans_score(self, plan: int) -> None: ...

    def plans_set_stop(self, plan: int, tokens: Sequence[int], texts: Sequence[str]) -> None:
        found = self._plan(plan)
        found.stop_tokens, found.stop_texts = frozenset(tokens), tuple(texts)

    def plans_start(self, plan: int) -> None:
        self._plan(plan).state = "running"

    def plans_next(self: Any, plan: int) -> int:
        drawn = self._draw(plan)
        return int(self.ticket([] if drawn is None else [drawn[0]]))

    def plans_next_scored(self: Any, plan: int) -> int:
        drawn = self._draw(plan)
        return int(self.ticket(([], []) if drawn is None else ([drawn[0]], [drawn[1]])))

    def plans_read(self: Any, plan: int, stream: int, most: int, timeout_ms: int) -> Columns:  # noqa: ARG002 - as above
        found = self._plan(plan)
        if found.streamed:
            tokens, found.streamed = found.streamed, []
            return tokens, [], []
        drawn = self._draw(plan)
        if drawn is None:
            return [], [], []
        return [drawn[0]], [self._text_of(found, drawn[0], stream)] if stream else [], [drawn[1]]

    def plans_watch(self: Any, plan: int) -> int:
        found = self._plan(plan)
        found.watch = found.watch or self.ticket()
        return int(found.watch)

    def plans_stream_text(self: Any, plan: int, stream: int) -> int:
        found = self._plan(plan)
        sent = ""
        while (drawn := self._draw(plan)) is not None:
            found.streamed.append(drawn[0])
            if text := self._text_of(found, drawn[0], stream):
                self.session_send(text)
                sent += text
        return int(self.ticket(sent))

    def _text_of(self: Any, plan: _Plan, token: int, stream: int) -> str:
        text = "" if token in plan.stop_tokens else str(self.model_stream_push(stream, [token]))
        if self.model_stream_stopped(stream):
            plan.state, plan.finish_reason = "ended", "stop"
        return text

    def plans_cancel(self: Any, plan: int) -> int:
        found = self._plan(plan)
        found.finish_reason = found.finish_reason or "cancelled"
        found.state = "ended"
        return int(self.ticket())

    def plans_state(self, plan: int) -> str:
        found = self._plan(plan)
        facts = {"num_tokens": len(found.drawn), "kv_len": found.kv_len, "finish_reason": found.finish_reason}
        return json.dumps({"state": found.state, **facts})

    def plans_close(self, plan: int) -> None:
        watch = self._plan(plan).watch
        del self._plans[plan]
        if watch:
            self.tickets_cancel([watch])

    def _plan(self, plan: int) -> _Plan:
        if plan not in self._plans:
            raise HandlerError("bad-handle", f"plan {plan} is not open")
        return self._plans[plan]

    def _draw(self: Any, plan: int) -> tuple[int, float] | None:
        """Run what is new, draw a token; None: it has ended."""
        found = self._plan(plan)
        if found.finish_reason:
            return None
        pass_ = self.forward_forward(found.queue, found.pages, found.kv_len, found.fresh, [], [])
        last = len(found.fresh) - 1
        token = self.tickets_take_none(self.forward_sample(pass_, last))[0]
        self.tickets_cancel([pass_])
        found.kv_len += len(found.fresh)
        found.fresh = [token]
        found.drawn.append(token)
        text = self.model_detokenize("", found.drawn, True)
        if token in found.stop_tokens or any(stop in text for stop in found.stop_texts):
            found.state, found.finish_reason = "ended", "stop"
        elif len(found.drawn) == found.max_tokens:
            found.state, found.finish_reason = "ended", "length"
        return token, math.log(self._probability(token, token))
