"""Inferlets on one BatcherCore whose runner checks all KV, with one ledger that knows pages by their content."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from arrays import NONE, u32
from fakes import NUMBER, PAGE_SIZE, Bench, byte_tokenizer

from pieray.config import Limits
from pieray.errors import PierayError, error_from
from pieray.leases import export_calls
from pieray.leases.exports import ExportTable
from pieray.leases.ledger import Holder, Lease, PageLedger
from pieray.leases.queue import Granted, LeaseQueue
from pieray.leases.rank import Facts
from pieray.leases.relief import AGAIN_S, Relief
from pieray.messages import CancelInferlet, Completed, Failed, IndexPages, PlanTokens, RunEnded, Sampled
from pieray.messages.leases import Place
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from tests.support.digest_runner import DigestRunner

GREEDY = (0.0, 0, 1.0, 0.0, 0)


class Guest(Bench):
    """One inferlet."""

    def __init__(self, name: str, tenant: str, lease_pages: int, num_pages: int) -> None:
        super().__init__(Limits(), lease_pages=lease_pages, tenant=tenant, num_pages=num_pages)
        self.name = name
        self.holder = Holder(name, NUMBER)
        self.queue = self.handlers.queues.create("")
        self.plan_queues: dict[int, int] = {}

    def forward(self, pages: np.ndarray, kv_len: int, tokens: list[int], row: int | None = None) -> int:
        """A pass, with a greedy sample of that row; the ticket of the sample, or the pass."""
        pass_ = self.handlers.forward.forward(self.queue, pages, kv_len, u32(*tokens), NONE, NONE)
        return pass_ if row is None else self.handlers.forward.sample(pass_, row, *GREEDY)


class Group:
    """The guests, the ledger and the batcher; `turn` is one exchange of them all."""

    def __init__(
        self, num_pages: int = 64, lease_pages: int = 2, relieves: random.Random | None = None, num_slots: int = 512
    ) -> None:
        """`relieves`: programs give up pages for others, and which of them are idle is left to chance; None: who lacks
        pages fails, when nobody gives back any."""
        self.ledger = PageLedger(num_pages)
        self.line = LeaseQueue(self.ledger)
        self.exports = ExportTable(self.ledger)
        self.runner = DigestRunner(PAGE_SIZE)
        spec = byte_tokenizer().spec
        self.core = BatcherCore(
            self.runner, ModelSettings(page_size=PAGE_SIZE), tokenizer=spec, num_swap_slots=num_slots
        )
        self.relief = Relief(self.ledger, self.line)
        self.relieves = relieves
        self.now = 0.0
        self.core.plans.vocab_size = 256
        self.guests: dict[str, Guest] = {}
        self.num_launched = 0
        self.lease_pages = lease_pages

    def launch(self, tenant: str = "acme") -> Guest:
        guest = Guest(f"p{self.num_launched}", tenant, self.lease_pages, self.ledger.total)
        self.num_launched += 1
        self.guests[guest.name] = guest
        self.line.ranks.open(guest.holder, Facts(tenant, born=self.num_launched))
        return guest

    def end(self, guest: Guest) -> None:
        """It ends: what it has comes back when nothing of it is in flight."""
        with guest.parts.lock:
            guest.outbox.close()
        if self.relieves is None:
            self.run()
        del self.guests[guest.name]
        self._serve(guest)
        self.line.cancel(guest.holder)
        self.relief.close(guest.holder)
        self.route(self.core.submit(guest.name, [CancelInferlet(0, NUMBER)], 0.0), gone=guest)
        self.ledger.close(guest.holder)
        self.line.ranks.close(guest.holder)
        self.ledger.check()
        if self.relieves is not None:
            self.run()

    def _serve(self, guest: Guest) -> bool:
        """What a guest has asked of the ledger, told it and given back."""
        device = guest.device
        asked, device.asked = device.asked, []
        for message in asked:
            if isinstance(message, IndexPages):
                cut = [message.hashes[i : i + 16] for i in range(0, len(message.hashes), 16)]
                before = [message.before[i : i + 16] for i in range(0, len(message.before), 16)]
                depths = np.frombuffer(message.depths, "<u4").tolist()
                pages = np.frombuffer(message.pages, "<u4").tolist()
                self.ledger.enter(guest.holder, pages, list(map(Place, cut, before, depths)))
            else:
                try:
                    value = export_calls.answer(self.exports, guest.holder, message, 0.0)  # type: ignore[arg-type]
                except PierayError as error:
                    value = error
                guest.outbox.ledger.answered(message.ticket & 0xFFFFFFFF, value)  # type: ignore[attr-defined]
        released, device.released = device.released, []
        self.ledger.release(guest.holder, released)
        for _, is_whole in device.preempted_pages:
            self.relief.answered(guest.holder, self.now, is_whole=is_whole)
        device.preempted_pages.clear()
        leases, device.leases = device.leases, []
        hashes, device.hashes = device.hashes, []
        for (count, deadline), packed in zip(leases, hashes, strict=True):
            names = [packed[i : i + 16] for i in range(0, len(packed), 16)]
            try:
                lease = self.line.request(guest.holder, 0, count, self.now, deadline, names)
            except PierayError as error:
                guest.outbox.leases.lease_failed(error)
                continue
            if lease is not None:
                guest.outbox.leases.granted(*lease)
            elif deadline == 0:
                self.refuse(self.now)
        self.ledger.check()
        guest.pages.check()
        return bool(asked or released or leases)

    def refuse(self, now: float) -> None:
        """Those whose time is over by then."""
        for refused in self.line.expire(now):
            self.guests[refused.holder.peer_id].outbox.leases.lease_failed(refused.error)

    def _grant(self) -> None:
        if self.line.shortage:
            self.exports.evict(self.line.shortage)
        for granted in self.line.retry(self.now):
            assert isinstance(granted, Granted)
            lease: Lease = granted.lease
            self.guests[granted.holder.peer_id].outbox.leases.granted(*lease)

    def pump(self) -> None:
        is_busy, most = True, 1000
        while is_busy:
            is_busy, most = False, most - 1
            assert most, "they ask again and again"
            for guest in list(self.guests.values()):
                is_busy |= self._serve(guest)
                posted, guest.device.posted = guest.device.posted, []
                if posted:
                    is_busy = True
                    self.route(self.core.submit(guest.name, posted, 0.0))
            if self.line.shortage:
                waiting = {waiting.holder.peer_id for waiting in self.line._line.values()}
                for guest in [guest for name, guest in self.guests.items() if name not in waiting]:
                    guest.outbox.ledger.release([*guest.pages.take_returned(), *guest.pages.surplus(keep=0)])
                    self._serve(guest)
            self._grant()
            is_busy |= self._relieve()

    def _relieve(self) -> bool:
        """Programs give up pages for whoever goes first; whether any is to."""
        if self.relieves is None:
            return False
        idle = [g.holder for g in self.guests.values() if not g.outbox.num_outstanding and self.relieves.random() < 0.1]
        chosen = self.relief.choose(self.now, idle)
        left = self.relief.left_to_others()
        for holder in chosen:
            guest = self.guests[holder.peer_id]
            with guest.parts.lock:
                guest.outbox.preempt(self.ledger.kept_pages_of(holder), left[holder])
        return bool(chosen)

    def route(self, answers: object, gone: Guest | None = None) -> None:
        for peer, message in answers:  # type: ignore[attr-defined]
            if gone is not None and peer == gone.name:
                continue
            guest = self.guests[peer]
            if isinstance(message, PlanTokens):
                for row in message.rows():
                    guest.outbox.drew(row.ticket & 0xFFFFFFFF, row.tokens, row.logprobs, row.counts)
            elif isinstance(message, RunEnded):
                ended = error_from(*message.error) if message.error else [message.reason, message.stopped_by]
                guest.outbox.answered(message.ticket & 0xFFFFFFFF, ended)
            elif isinstance(message, Sampled):
                tickets, samples = (np.frombuffer(c, "<u8").tolist() for c in (message.tickets, message.sample_tickets))
                for place, (ticket, sample) in enumerate(zip(tickets, samples, strict=True)):
                    guest.outbox.answered(sample & 0xFFFFFFFF, message.tokens[4 * place : 4 * place + 4])
                    guest.outbox.answered(ticket & 0xFFFFFFFF, None)
            else:
                assert isinstance(message, (Completed, Failed))
                found = message.value if isinstance(message, Completed) else error_from(message.code, message.message)
                guest.outbox.answered(message.ticket & 0xFFFFFFFF, found)

    def turn(self, between: Callable[[], None] = lambda: None) -> None:
        """`between`: done when the step's answers have come, and nothing that is asked for then has been answered."""
        self.now += 0.01
        for guest in self.guests.values():
            guest.handlers.tickets.flush()
        self.pump()
        self.route(self.core.step(0.0))
        between()
        self.pump()

    def run(self, most: int = 2000) -> None:
        """Until nothing is left to be done."""
        for guest in self.guests.values():
            guest.handlers.tickets.flush()
        self.pump()
        while self.core.has_work and most:
            most -= 1
            self.turn()
        assert most
        if len(self.line) and self.relieves is not None:
            assert most > 0, "they wait for ever"
            self.now += AGAIN_S / 10
            self.pump()
            self.run(most - 1)
        elif len(self.line):  # nobody will give anything back
            self.refuse(1e9)
            self.run(most)

    def token(self, guest: Guest, ticket: int) -> int:
        self.run()
        (token,) = guest.handlers.tickets.take_tokens(ticket).tolist()
        return int(token)
