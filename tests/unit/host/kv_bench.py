"""A real ledger with real exports beneath the handlers of several inferlets; their device is a fake."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from arrays import NONE
from fakes import NUMBER, Bench

from pieray.config import Limits
from pieray.errors import OutOfPages, PierayError
from pieray.leases import export_calls
from pieray.leases.exports import ExportTable
from pieray.leases.ledger import Holder, PageLedger
from pieray.messages import LeasePages


class Engine:
    """A ledger with exports, and inferlets of one peer each."""

    def __init__(self, num_pages: int = 64) -> None:
        self.ledger = PageLedger(num_pages)
        self.table = ExportTable(self.ledger)
        self.benches: list[Bench] = []
        self.now = 0.0
        self.num_on_their_way = 0  # pages leased at most for what is still copied from another group

    def launch(self, user: str = "ann", tenant: str = "acme", num_pages: int = 8, **limits: float) -> Bench:
        bench = Bench(dataclasses.replace(Limits(), **limits))
        bench.change(launch={"user": user, "tenant": tenant})
        self.benches.append(bench)
        bench.outbox.leases.granted(self.ledger.lease(self.holder(bench), num_pages) or [])
        bench.device.leases.clear()
        return bench

    def holder(self, bench: Bench) -> Holder:
        return Holder(f"peer-{self.benches.index(bench)}", NUMBER)

    def serve(self, bench: Bench) -> None:
        """What the inferlet has asked of the ResourceManager, and given back."""
        asked, bench.device.asked = bench.device.asked, []
        for message in asked:
            assert message.ticket >> 32 == NUMBER  # type: ignore[attr-defined]
            bench.outbox.ledger.answered(message.ticket & 0xFFFFFFFF, self.answer(bench, message))  # type: ignore[attr-defined]
        self.take_back(bench)

    def answer(self, bench: Bench, message: object) -> object:
        try:
            if isinstance(message, LeasePages):
                pages = self.ledger.lease(self.holder(bench), message.count)
                return OutOfPages("none free") if pages is None else [np.array(pages, "<u4").tobytes(), 0]
            return export_calls.answer(self.table, self.holder(bench), message, self.now)  # type: ignore[arg-type]
        except PierayError as error:
            return error

    def take_back(self, bench: Bench) -> None:
        released, bench.device.released = bench.device.released, []
        self.ledger.release(self.holder(bench), released)
        self.ledger.check()
        bench.pages.check()
        num_known = bench.pages.num_granted - bench.pages.num_released + self.num_on_their_way
        assert self.ledger.num_pages_of(self.holder(bench)) <= num_known

    def fill(self, bench: Bench, num_tokens: int = 6) -> np.ndarray:
        """Pages with that many tokens run."""
        pages = bench.handlers.kv.alloc(-(-num_tokens // 4))
        forward(bench, pages, 0, num_tokens)
        bench.handlers.tickets.flush()
        bench.complete_all()
        return pages

    def export(self, bench: Bench, name: str, pages: np.ndarray, num_tokens: int, **options: object) -> int:
        given = {"meta": "", "access": "owner", "ttl_ms": 0, "pinned": False, "replace": False, **options}
        return bench.handlers.kv.export_pages(name, pages, num_tokens, *given.values())

    def done(self, bench: Bench, ticket: int) -> None:
        bench.handlers.tickets.flush()
        bench.complete_all()
        self.serve(bench)
        bench.handlers.tickets.take_none(ticket)

    def open(self, bench: Bench, name: str) -> dict[str, object]:
        ticket = bench.handlers.kv.import_pages(name)
        self.serve(bench)
        found: dict[str, object] = json.loads(bench.handlers.tickets.take_text(ticket))
        return found


def forward(bench: Bench, pages: np.ndarray, kv_len: int, num_tokens: int, mask: np.ndarray = NONE) -> int:
    queue = bench.handlers.queues.create("")
    return bench.handlers.forward.forward(queue, pages, kv_len, np.ones(num_tokens, np.uint32), NONE, mask)
