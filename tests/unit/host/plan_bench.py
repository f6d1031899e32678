"""One inferlet's handlers on a BatcherCore whose runner checks all KV, in one thread."""

from __future__ import annotations

import json
import random

from arrays import u32
from fakes import NUMBER, PAGE_SIZE, Bench, byte_tokenizer

from pieray.config import Limits
from pieray.errors import OutOfPages, error_from
from pieray.messages import Completed, Failed, PlanTokens, RunEnded
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from tests.support.digest_runner import DigestRunner


class PlanBench(Bench):
    """`turn` is one exchange with the batcher: frames out, one step, frames back."""

    preempts: random.Random | None = None
    """Set: now and then it has to give up all its pages, which come back at once."""

    def __init__(self, num_pages: int = 256, limits: Limits | None = None, num_slots: int = 512, **settings) -> None:
        super().__init__(limits, num_pages=num_pages)
        self.runner = DigestRunner(PAGE_SIZE)
        spec = byte_tokenizer().spec
        self.core = BatcherCore(
            self.runner, ModelSettings(page_size=PAGE_SIZE, **settings), tokenizer=spec, num_swap_slots=num_slots
        )
        self.core.plans.vocab_size = 256
        self.free = list(range(num_pages))
        self.waiting: list[int] = []
        self.queue = self.handlers.queues.create("")

    def pump(self) -> list:
        """Leases are granted, what is posted goes to the batcher; its answers at once."""
        while self.device.leases or self.device.posted:
            if self.preempts is not None:
                self.free += self.device.released
                self.device.released.clear()
            leases, self.device.leases = self.device.leases, []
            num_more, self.device.num_more = self.device.num_more, []
            for (count, deadline), more in zip(leases, [*num_more, *[0] * len(leases)], strict=False):
                if count <= len(self.free):
                    pages, self.free = self.free[: count + more], self.free[count + more :]
                    self.outbox.leases.granted(pages)
                elif deadline == 0:
                    self.outbox.leases.lease_failed(OutOfPages("none free"))
                else:
                    self.waiting.append(count)
            posted, self.device.posted = self.device.posted, []
            self.route(self.core.submit("p", posted, 0.0))

    def add_pages(self, count: int) -> None:
        """More pages are free: a lease that waits gets them."""
        self.free += range(1000 + len(self.runner.slots) * 64, 1000 + len(self.runner.slots) * 64 + count)
        if self.waiting:
            self.device.leases.append((self.waiting.pop(0), 9.0))
        self.pump()

    def route(self, answers) -> None:
        for _, message in answers:
            if isinstance(message, PlanTokens):
                for row in message.rows():
                    assert row.ticket >> 32 == NUMBER
                    self.outbox.drew(row.ticket & 0xFFFFFFFF, row.tokens, row.logprobs, row.counts)
            elif isinstance(message, RunEnded):
                ended = error_from(*message.error) if message.error else [message.reason, message.stopped_by]
                self.outbox.answered(message.ticket & 0xFFFFFFFF, ended)
            else:
                assert isinstance(message, (Completed, Failed))
                found = message.value if isinstance(message, Completed) else error_from(message.code, message.message)
                self.outbox.answered(message.ticket & 0xFFFFFFFF, found)

    @property
    def num_swapped(self) -> int:
        """Host slots in use."""
        return self.core.stats()["swap"]["used"]

    def turn(self) -> None:
        if self.preempts is not None and self.preempts.random() < 0.3:
            with self.parts.lock:
                self.outbox.preempt(())
        self.handlers.tickets.flush()
        self.pump()
        self.route(self.core.step(0.0))
        self.pump()

    def run(self, most: int = 1000) -> None:
        """Until nothing is left to be done."""
        self.handlers.tickets.flush()
        self.pump()
        while self.core.has_work and most:
            most -= 1
            self.turn()

    # --- as a guest --------------------------------------------------------------------------------

    def plan(
        self,
        prompt: list[int],
        max_tokens: int,
        *,
        pages=None,
        kv_len: int = 0,
        sampler: int = 0,
        queue: int | None = None,
    ) -> int:
        if pages is None:
            pages = self.handlers.kv.alloc(-(-(kv_len + len(prompt) + max_tokens) // PAGE_SIZE))
        return self.handlers.plans.create(queue or self.queue, pages, kv_len, u32(*prompt), max_tokens, sampler)

    def next(self, plan: int) -> list[int]:
        """All that was drawn since the last time."""
        ticket = self.handlers.plans.next(plan)
        for _ in range(200):
            if self.handlers.tickets.ready(u32(ticket)):
                return self.handlers.tickets.take_tokens(ticket).tolist()
            self.turn()
        raise AssertionError("no token came")

    def all(self, plan: int) -> list[int]:
        found: list[int] = []
        while got := self.next(plan):
            found += got
        return found

    def wait(self, ticket: int) -> None:
        for _ in range(200):
            if self.handlers.tickets.ready(u32(ticket)):
                return self.handlers.tickets.take_none(ticket)
            self.turn()
        raise AssertionError("the ticket did not resolve")

    def state_of(self, plan: int) -> dict:
        return json.loads(self.handlers.plans.state(plan))

    def check(self) -> None:
        """All pages add up."""
        self.pages.check()
