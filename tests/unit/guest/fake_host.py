"""A host of one inferlet that runs its commands on `fake_model` and checks what it sees.

A slot of a page keeps its token and the digest of the whole sequence up to it.  A pass may only build on slots
that form one sequence from position 0 on: a page that is shared, stale, misplaced or freed fails the pass
(`KvMismatch`), so a context whose paging is wrong cannot get a result.  Method names are `interface_function`
of the WIT; `ByInterface` makes of it what the wasm host calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import fake_model as lm
from fake_plans import FakePlans
from fake_samplers import FakeSamplers
from fake_services import FakeServices

from inferlet._host import INTERFACES
from pieray.errors import BadHandle, InvalidRequest, Pending, PierayError, QuotaExceeded, WrongType


class KvMismatch(AssertionError):
    """A pass would attend to KV that is not the sequence before it."""


@dataclass(eq=False)
class Page:
    """Slots of (token, digest), and how many handles lead here."""

    slots: list[tuple[int, int] | None]
    num_handles: int = 1


@dataclass
class Pass:
    """An enqueued forward pass and the outputs asked for: (ticket, row, function of digest and position)."""

    queue: int
    pages: list[int]
    kv_len: int
    tokens: list[int]
    outputs: list[tuple[int, int, Callable[[int, int], tuple[str, Any]]]] = field(default_factory=list)


class FakeHost(FakeSamplers, FakePlans, FakeServices):
    """`order` (a seed) answers commands one or a few at a wait, in random order; None answers all at once."""

    def __init__(
        self,
        page_size: int = 4,
        order: int | None = None,
        num_queues: int = 64,
        num_pages: int = 4096,
        max_context: int = 10_000,
        num_plans: int = 64,
    ) -> None:
        self.page_size, self.num_queues = page_size, num_queues
        self.num_pages, self.max_context = num_pages, max_context
        self.rng = None if order is None else Random(order)
        self.start_plans(num_plans)
        self.ids = itertools.count(1)
        self.pages: dict[int, Page] = {}
        self.queues: set[int] = set()
        self.not_reusing: set[int] = set()
        self.owners: dict[int, int] = {}  # passes by outputs not taken
        self.unsent: dict[int, Pass | None] = {}
        self.results: dict[int, tuple[str, Any]] = {}
        self.hidden: list[tuple[int, tuple[str, Any]]] = []
        self.pending: set[int] = set()
        self.streams: dict[int, tuple[Any, bool]] = {}
        self.receivers: list[int] = []
        self.inbox: list[tuple[float, str]] = []
        self.sent: list[str] = []
        self.logs: list[tuple[str, str]] = []
        self.clock = 0.0
        self.calls: list[str] = []
        self.is_stalled = False  # nothing is computed
        self.num_pins = 0
        self.expected: list[int] = []
        self.idle_at: list[float] = []
        self.num_passes = 0
        self.num_computed = 0
        self.fail_pass: Callable[[Pass], PierayError | None] = lambda _: None

    # -- tickets

    def tickets_wait(self, tickets: list[int], timeout_ms: int) -> list[int]:
        self.tickets_flush()
        end = math.inf if timeout_ms < 0 else self.clock + timeout_ms / 1000
        while True:
            self._deliver()
            if ready := self.tickets_ready(tickets):
                return ready
            if self.hidden and not self.is_stalled:
                self._reveal()
            elif self.receivers and self.inbox and self.inbox[0][0] <= end:
                self.clock = max(self.clock, self.inbox[0][0])
            elif not self.is_stalled and self.step_plans():
                continue
            elif end == math.inf:
                raise AssertionError(f"the inferlet waits for ever for {tickets}")
            else:
                self.clock = end
                return []

    def tickets_flush(self) -> None:
        for handle, command in list(self.unsent.items()):
            del self.unsent[handle]
            for ticket, result in self._run(handle, command):
                if ticket in self.pending:
                    self.hidden.append((ticket, result))
        while self.hidden and self.rng is None and not self.is_stalled:
            self._reveal()

    def _reveal(self) -> None:
        count = 1 if self.rng is None else self.rng.randint(1, 3)
        for _ in range(min(count, len(self.hidden))):
            index = 0 if self.rng is None else self.rng.randrange(len(self.hidden))
            ticket, result = self.hidden.pop(index)
            if ticket in self.pending:
                self.results[ticket] = result

    def _deliver(self) -> None:
        while self.receivers and self.inbox and self.inbox[0][0] <= self.clock:
            ticket = self.receivers.pop(0)
            if ticket in self.pending:
                self.results[ticket] = ("text", self.inbox.pop(0)[1])

    def tickets_ready(self, tickets: Any) -> list[int]:
        wanted = [int(ticket) for ticket in tickets]
        for ticket in wanted:
            self._check(ticket in self.pending, f"ticket {ticket}")
        return [ticket for ticket in wanted if ticket in self.results]

    def _new_ticket(self) -> int:
        ticket = next(self.ids)
        self.pending.add(ticket)
        if len(self.pending) > 4096:
            raise QuotaExceeded("tickets: 4096 are outstanding")
        return ticket

    def _take(self, ticket: int, kind: str) -> Any:
        self._check(ticket in self.pending, f"ticket {ticket}")
        if ticket not in self.results:
            raise Pending(f"ticket {ticket}")
        self._forget(ticket)
        found, value = self.results.pop(ticket)
        if found == "error":
            raise value
        if found != kind:
            raise WrongType(f"ticket {ticket} holds {found}, not {kind}")
        return value

    def tickets_take_none(self, ticket: int) -> None:
        self._take(ticket, "none")

    def tickets_take_tokens(self, ticket: int) -> list[int]:
        return self._take(ticket, "tokens")

    def tickets_take_floats(self, ticket: int) -> list[float]:
        return self._take(ticket, "floats")

    def tickets_take_text(self, ticket: int) -> str:
        return self._take(ticket, "text")

    def tickets_take_distribution(self, ticket: int) -> tuple[list[int], list[float]]:
        return self._take(ticket, "distribution")

    def tickets_cancel(self, tickets: Any) -> None:
        for ticket in map(int, tickets):
            self._forget(ticket)
            self.results.pop(ticket, None)

    def _forget(self, ticket: int) -> None:
        """Close a ticket, and its pass if it is the last output of it."""
        self.pending.discard(ticket)
        owner = self.owners.pop(ticket, None)
        if owner is not None and owner not in self.owners.values():
            self.pending.discard(owner)
            self.results.pop(owner, None)

    # -- queues

    def queues_create(self, model: str) -> int:
        if len(self.queues) >= self.num_queues:
            raise QuotaExceeded(f"queues: {self.num_queues} are open")
        self.queues.add(queue := next(self.ids))
        return queue

    def queues_set_priority(self, queue: int, priority: int) -> None:
        self._check(queue in self.queues, f"queue {queue}")

    def queues_set_reuse(self, queue: int, reuse: bool) -> None:
        self._check(queue in self.queues, f"queue {queue}")
        if not reuse:
            self.not_reusing.add(queue)

    def queues_flush(self, queue: int) -> None:
        self.tickets_flush()

    def queues_synchronize(self, queue: int) -> int:
        self._check(queue in self.queues, f"queue {queue}")
        self.unsent[ticket := self._new_ticket()] = None
        return ticket

    def queues_close(self, queue: int) -> None:
        self.queues.remove(queue)

    # -- pages

    def kv_page_size(self) -> int:
        return self.page_size

    def kv_alloc(self, count: int) -> list[int]:
        if len(self.pages) + count > self.num_pages:
            raise QuotaExceeded(f"pages: {self.num_pages} is the limit; {len(self.pages)} held, {count} asked for")
        handles = [next(self.ids) for _ in range(count)]
        self.pages |= {handle: Page([None] * self.page_size) for handle in handles}
        return handles

    def kv_free(self, pages: Any) -> None:
        handles = [int(page) for page in pages]
        self.tickets_flush()
        self._check(all(page in self.pages for page in handles), f"pages {handles}")
        for handle in handles:
            self.pages.pop(handle).num_handles -= 1

    def kv_fork(self, pages: Any) -> list[int]:
        self.tickets_flush()
        forks = [next(self.ids) for _ in pages]
        for old, new in zip(map(int, pages), forks, strict=True):
            self._check(old in self.pages, f"page {old}")
            self.pages[new] = self.pages[old]
            self.pages[new].num_handles += 1
        return forks

    def kv_copy(self, queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> int:
        for i in range(count):
            self._write(dst, dst_offset + i, self.pages[src].slots[src_offset + i])
        self.unsent[ticket := self._new_ticket()] = None
        return ticket

    def _write(self, handle: int, slot: int, value: tuple[int, int] | None) -> None:
        page = self.pages[handle]
        if page.num_handles > 1:
            page.num_handles -= 1
            page = self.pages[handle] = Page(list(page.slots))
        page.slots[slot] = value

    def kv_idle(self, pages: Any) -> None:
        self._check(all(int(page) in self.pages for page in pages), f"pages {pages}")
        self.idle_at.append(self.clock)

    def kv_reserve(self, count: int) -> int:
        self.unsent[ticket := self._new_ticket()] = None
        return ticket

    def kv_pin(self) -> None:
        self.num_pins += 1

    def kv_unpin(self) -> None:
        if not self.num_pins:
            raise InvalidRequest("not pinned")
        self.num_pins -= 1

    def kv_expect(self, count: int) -> None:
        self.expected.append(count)

    # -- passes

    def forward_forward(self, queue: int, pages: Any, kv_len: int, tokens: Any, positions: Any, mask: Any) -> int:
        self._check(queue in self.queues, f"queue {queue}")
        command = Pass(queue, [int(p) for p in pages], kv_len, [int(t) for t in tokens])
        self._check(all(page in self.pages for page in command.pages), f"pages {command.pages}")
        if not command.tokens or kv_len + len(command.tokens) > len(command.pages) * self.page_size:
            raise InvalidRequest(f"{len(command.pages)} pages are too few for {kv_len} + {len(command.tokens)} tokens")
        self.unsent[handle := self._new_ticket()] = command
        return handle

    def _ask(self, pass_: int, row: int, output: Callable[[int, int], tuple[str, Any]]) -> int:
        command = self.unsent.get(pass_)
        self._check(command is not None, f"pass {pass_}")
        if not 0 <= row < len(command.tokens):
            raise InvalidRequest(f"row {row} of {len(command.tokens)}")
        command.outputs.append((ticket := self._new_ticket(), row, output))
        self.owners[ticket] = pass_
        return ticket

    def forward_sample(
        self, pass_: int, row: int, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
    ) -> int:
        return self._ask(pass_, row, lambda d, p: ("tokens", [lm.sample(d, p, temperature, top_k, seed)]))

    def forward_distribution(self, pass_: int, row: int, k: int) -> int:
        def top(digest: int, position: int) -> tuple[str, Any]:
            tokens, probabilities = zip(*lm.distribution(digest)[:k], strict=True)
            return "distribution", (list(tokens), list(probabilities))

        return self._ask(pass_, row, top)

    def forward_logprobs(self, pass_: int, row: int, tokens: Any) -> int:
        wanted = [int(token) for token in tokens]

        def score(digest: int, position: int) -> tuple[str, Any]:
            probabilities = dict(lm.distribution(digest))
            return "floats", [_log(probabilities.get(token, 0)) for token in wanted]

        return self._ask(pass_, row, score)

    def forward_logits(self, pass_: int, row: int) -> int:
        def logits(digest: int, position: int) -> tuple[str, Any]:
            probabilities = dict(lm.distribution(digest))
            return "floats", [_log(probabilities.get(token, 0)) for token in range(lm.VOCABULARY)]

        return self._ask(pass_, row, logits)

    def _run(self, handle: int, command: Pass | None) -> list[tuple[int, tuple[str, Any]]]:
        if command is None:
            return [(handle, ("none", None))]
        if error := self.fail_pass(command):
            return [(ticket, ("error", error)) for ticket in (handle, *(t for t, _, _ in command.outputs))]
        digests = self._compute(command)
        self.num_passes += 1
        self.num_computed += len(digests)
        outputs = [(t, make(digests[row], command.kv_len + row)) for t, row, make in command.outputs]
        return [(handle, ("none", None)), *outputs]

    def _compute(self, command: Pass) -> list[int]:
        """Write the pass's KV; the digest of each row.  Raises KvMismatch if what it builds on is no sequence."""
        digest = 0
        for position in range(command.kv_len):
            held = self.pages[command.pages[position // self.page_size]].slots[position % self.page_size]
            if held is None or held[1] != lm.chain(digest, held[0]):
                raise KvMismatch(f"slot {position} of {command} holds {held}")
            digest = held[1]
        digests = []
        for position, token in enumerate(command.tokens, command.kv_len):
            digest = lm.chain(digest, token)
            digests.append(digest)
            self._write(command.pages[position // self.page_size], position % self.page_size, (token, digest))
        return digests

    def forward_verify(
        self, queue: int, pages: Any, kv_len: int, tokens: Any, drafts: Any, parents: Any, sampler: int, adapter: int
    ) -> int:
        line = [*map(int, tokens), *map(int, drafts)]
        pass_ = self.forward_forward(queue, pages, kv_len, line, [], [])
        digests = self._compute(self.unsent.pop(pass_))
        self.num_passes += 1
        drawn: list[int] = []
        for row in range(len(tokens) - 1, len(line)):
            drawn.append(self.draw(digests[row], kv_len + row, sampler))
            if row + 1 == len(line) or line[row + 1] != drawn[-1]:
                break
        self.hidden.append((pass_, ("tokens", drawn)))
        return pass_

    # -- for tests

    def _check(self, is_known: bool, what: str) -> None:
        if not is_known:
            raise BadHandle(f"{what} is not this inferlet's")

    def assert_clean(self) -> None:
        """Nothing is left: pages, tickets, text streams, samplers, plans."""
        left = {
            "pages": self.pages,
            "plans": self.plans,
            "samplers": self.samplers,
            "streams": self.streams,
            "tickets": self.pending - set(self.receivers),
        }
        assert not any(left.values()), left


def interfaces(host: FakeHost, err: type[Exception]) -> SimpleNamespace:
    """`host` as `inferlet._host.install` wants it: by interface, raising what the bindings raise."""

    def bound(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            host.calls.append(name)
            try:
                return method(*args)
            except PierayError as error:
                code = SimpleNamespace(name=error.code.upper().replace("-", "_"))
                raise err(SimpleNamespace(code=code, message=error.message)) from None

        return call

    grouped: dict[str, dict[str, Any]] = {}
    for name in dir(host):
        interface, _, function = name.partition("_")
        if function and interface in INTERFACES:
            grouped.setdefault(interface, {})[function] = bound(getattr(host, name), name)
    return SimpleNamespace(**{interface: SimpleNamespace(**found) for interface, found in grouped.items()})


def _log(probability: float) -> float:
    return math.log(probability) if probability else -math.inf
