"""Decode plans of the fake host: a plan is passes that the host enqueues by itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import fake_model as lm
from fake_samplers import GREEDY, Chain

from pieray.errors import InvalidRequest, PierayError, QuotaExceeded


@dataclass(eq=False)
class FakePlan:
    """`line`: tokens of the run and what was drawn; `given`: drawn tokens that `next` has handed out."""

    queue: int
    pages: list[int]
    kv_len: int
    line: list[int]
    max_tokens: int
    sampler: int
    chain: Chain
    state: str = "ready"
    stop_tokens: frozenset[int] = frozenset()
    stop_texts: tuple[str, ...] = ()
    is_scored: bool = False
    num_drafts: int = 0
    done: int = 0
    drawn: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    given: int = 0
    waiters: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: PierayError | None = None
    watch: int = 0
    flow: int = 0  # ticket of what is streamed
    stream: int = 0
    num_sent: int = 0
    parts: list[str] = field(default_factory=list)


class FakePlans:
    """Mixed into FakeHost, which has pages, passes and tickets."""

    plans: dict[int, FakePlan]
    samplers: dict[int, Chain]
    rng: Random | None
    is_stalled: bool
    clock: float

    def start_plans(self, num_plans: int) -> None:
        self.num_plans = num_plans
        self.plans, self.samplers = {}, {}

    def draw(self, digest: int, position: int, sampler: int) -> int:
        token: int = (self.samplers[sampler] if sampler else GREEDY).draw(digest, position)[1][0]
        return token

    # -- plans

    def plans_create(self, queue: int, pages: Any, kv_len: int, tokens: Any, max_tokens: int, sampler: int) -> int:
        self._check(queue in self.queues, f"queue {queue}")
        self._check(all(int(page) in self.pages for page in pages), f"pages {pages}")
        if len(self.plans) >= self.num_plans:
            raise QuotaExceeded(f"plans: the limit is {self.num_plans}")
        end = kv_len + len(tokens) + max_tokens - 1
        if not len(tokens) or not max_tokens or end > len(pages) * self.page_size or end > self.max_context:
            raise InvalidRequest(f"{len(pages)} pages for {end} tokens")
        chain = replace(self.samplers[sampler] if sampler else GREEDY)
        plan = FakePlan(queue, [*map(int, pages)], kv_len, [*map(int, tokens)], max_tokens, sampler, chain)
        self.plans[handle := next(self.ids)] = plan
        return handle

    def plan(self, handle: int) -> FakePlan:
        self._check(handle in self.plans, f"plan {handle}")
        return self.plans[handle]

    def plans_set_stop(self, plan: int, tokens: Any, texts: Any) -> None:
        found = self.plan(plan)
        assert found.state == "ready"
        found.stop_tokens, found.stop_texts = frozenset(map(int, tokens)), tuple(texts)

    def plans_set_drafter(self, plan: int, num_drafts: int, history: Any) -> None:
        self.plan(plan).num_drafts = num_drafts

    def plans_score(self, plan: int) -> None:
        self.plan(plan).is_scored = True

    def plans_start(self, plan: int) -> None:
        self.plan(plan).state = "running"

    def plans_next(self, plan: int) -> int:
        found = self.plan(plan)
        assert found.state != "ready"
        found.waiters.append(ticket := self._new_ticket())
        self._hand_out(found)
        return ticket

    plans_next_scored = plans_next

    def plans_read(self, plan: int, stream: int, most: int, timeout_ms: int) -> tuple[Any, ...]:
        found = self.plan(plan)
        if stream:
            self.stream(stream)
        if timeout_ms:
            self.tickets_flush()
        while timeout_ms and found.given == len(found.drawn) and found.state == "running":
            if self.is_stalled:
                assert timeout_ms > 0
                self.clock += timeout_ms / 1000
                break
            self.step_plans()
        if found.given == len(found.drawn) and found.error is not None:
            raise found.error
        start, stop = found.given, found.given + most if most else None
        texts: list[str] = []
        for token in found.drawn[start:stop] if stream else ():
            texts.append(self._text(found, token, stream))
            if self.streams[stream].stopped_by:
                del found.drawn[start + len(texts) :], found.scores[start + len(texts) :]
                break
        tokens = found.drawn[start:stop]
        found.given += len(tokens)
        self._hand_out(found)
        return tokens, texts, found.scores[start : found.given] if found.is_scored else []

    def plans_watch(self, plan: int) -> int:
        found = self.plan(plan)
        if found.watch not in self.pending:
            found.watch = self._new_ticket()
        self._hand_out(found)
        return found.watch

    def plans_stream_text(self, plan: int, stream: int) -> int:
        found = self.plan(plan)
        self.stream(stream)
        ticket = found.flow = self._new_ticket()
        found.stream = stream
        self._flow(found)
        self._hand_out(found)
        return ticket

    def plans_cancel(self, plan: int) -> int:
        found = self.plan(plan)
        if found.state == "running":
            found.state, found.finish_reason = "ended", "cancelled"
        self._hand_out(found)
        ticket = self._new_ticket()
        self.results[ticket] = ("none", None)
        return ticket

    def _text(self, plan: FakePlan, token: int, stream: int) -> str:
        text = "" if token in plan.stop_tokens else self.streams[stream].push(token)
        if self.streams[stream].stopped_by:
            plan.state, plan.finish_reason = "ended", "stop"
        return text

    def _flow(self, plan: FakePlan) -> None:
        """Send the text of what was drawn and not sent."""
        if not plan.flow:
            return
        plan.num_sent = max(plan.num_sent, plan.given)
        for token in plan.drawn[plan.num_sent :]:
            plan.num_sent += 1
            if text := self._text(plan, token, plan.stream):
                self.session_send(text)
                plan.parts.append(text)
            if self.streams[plan.stream].stopped_by:
                del plan.drawn[plan.num_sent :], plan.scores[plan.num_sent :]
                break

    def plans_state(self, plan: int) -> str:
        found = self.plan(plan)
        return json.dumps({"state": found.state, "finish_reason": found.finish_reason, "num_tokens": len(found.drawn)})

    def plans_close(self, plan: int) -> None:
        found = self.plan(plan)
        if found.state == "running":
            found.state, found.finish_reason = "ended", "cancelled"
        self._hand_out(found)
        self.tickets_cancel([found.watch])
        del self.plans[plan]

    def step_plans(self) -> bool:
        """Let plans that run go on for a while; False: there are none."""
        running = [plan for plan in self.plans.values() if plan.state == "running"]
        for plan in running:
            for _ in range(3 if self.rng is None else self.rng.randint(1, 5)):
                if plan.state == "running":
                    self._step(plan)
            self._hand_out(plan)
        return bool(running)

    def _step(self, plan: FakePlan) -> None:
        from fake_host import Pass

        command = Pass(plan.queue, plan.pages, plan.kv_len + plan.done, plan.line[plan.done :])
        if error := self.fail_pass(command):
            plan.state, plan.error = "ended", error
            return
        digest = self._compute(command)[-1]
        self.num_passes += 1
        self.num_computed += len(command.tokens)
        plan.done = len(plan.line)
        token = plan.chain.draw(digest, plan.kv_len + plan.done - 1)[1][0]
        plan.line.append(token)
        plan.drawn.append(token)
        plan.scores.append(self._score(digest, token))
        self._flow(plan)
        if plan.state == "ended":
            return
        text = lm.detokenize(plan.drawn, skip_special=True)
        if token in plan.stop_tokens or any(stop in text for stop in plan.stop_texts):
            plan.state, plan.finish_reason = "ended", "stop"
        elif len(plan.drawn) == plan.max_tokens:
            plan.state, plan.finish_reason = "ended", "length"

    def _score(self, digest: int, token: int) -> float:
        from fake_host import _log

        return _log(dict(lm.distribution(digest))[token])

    def _hand_out(self, plan: FakePlan) -> None:
        if plan.watch in self.pending:
            if plan.given < len(plan.drawn) or plan.state != "running":
                self.results[plan.watch] = ("none", None)
            else:
                self.results.pop(plan.watch, None)
        if plan.flow in self.pending and plan.state != "running":
            self.results[plan.flow] = ("error", plan.error) if plan.error else ("text", "".join(plan.parts))
            plan.flow = 0
        while plan.waiters and (plan.given < len(plan.drawn) or plan.state != "running"):
            ticket = plan.waiters.pop(0)
            if ticket not in self.pending:
                continue
            fresh, scores = plan.drawn[plan.given :], plan.scores[plan.given :]
            if not fresh and plan.error is not None:
                self.results[ticket] = ("error", plan.error)
            else:
                self.results[ticket] = ("distribution", (fresh, scores)) if plan.is_scored else ("tokens", fresh)
            plan.given = len(plan.drawn)
