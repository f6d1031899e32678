"""What a hostile guest can pile up in its InferletActor, or keep its thread busy with, by calls that are correct."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes import Bench
from plan_bench import PlanBench, u32

from pieray.config import Limits
from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.messages import LeasePages

SMALL = dataclasses.replace(Limits(), tickets=16, pages=8)


@pytest.mark.parametrize(
    "call", [lambda h: h.kv.import_pages("x"), lambda h: h.kv.list_exports("x"), lambda h: h.kv.unexport("x", "owner")]
)
def test_cancelled_requests_for_exports_still_count(call) -> None:  # type: ignore[no-untyped-def]
    bench = Bench(SMALL)
    for _ in range(16):
        bench.handlers.tickets.cancel(u32(call(bench.handlers)))
    with pytest.raises(QuotaExceeded, match="tickets: the limit is 16, as many requests"):
        call(bench.handlers)
    assert len(bench.device.asked) == 16
    bench.outbox.ledger.answered(bench.device.asked[0].ticket & 0xFFFFFFFF, InvalidRequest("no"))  # type: ignore[attr-defined]
    call(bench.handlers)


def test_reservations_under_way_count_towards_the_limit_of_pages() -> None:
    bench = Bench(SMALL)
    tickets = [bench.handlers.kv.reserve(4), bench.handlers.kv.reserve(4)]
    with pytest.raises(QuotaExceeded, match=r"limits\.pages is 8: 0 pages are in use and 8 on their way, 1 more"):
        bench.handlers.kv.reserve(1)
    asked = [message for message in bench.device.asked if isinstance(message, LeasePages)]
    assert [message.count for message in asked] == [4, 4]
    bench.outbox.ledger.answered(tickets[0], InvalidRequest("none"))
    bench.outbox.ledger.answered(tickets[1], [u32(1, 2, 3, 4).tobytes(), 0])
    bench.handlers.kv.reserve(8)
    assert [message.count for message in bench.device.asked[2:]] == [4]  # type: ignore[attr-defined]


def test_a_long_prefix_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="from 0 to 256 bytes; given 300"):
        Bench().handlers.kv.list_exports("p" * 300)


def test_cancelled_tickets_of_a_plan_do_not_pile_up() -> None:
    bench = PlanBench(num_pages=0, limits=SMALL)
    plan = bench.plan([65, 66], 8)
    bench.handlers.plans.start(plan)
    for _ in range(1000):
        bench.handlers.tickets.cancel(u32(bench.handlers.plans.next(plan)))
        bench.handlers.tickets.cancel(u32(bench.handlers.plans.pause(plan)))
    found = bench.handlers.plans._plans.get(plan)
    assert (len(found.drawn.nexts), len(found.stops)) == (0, 0)


def test_a_list_that_names_one_ticket_a_million_times_costs_little() -> None:
    bench = Bench()
    ticket = bench.handlers.runtime.sleep(100_000)
    again = np.full(1 << 20, ticket, np.uint32)
    with pytest.raises(QuotaExceeded, match="tickets: 8192 at most"):
        bench.handlers.tickets.ready(again)
    looked_up = []
    find = bench.tickets.find
    bench.tickets.find = lambda t: looked_up.append(t) or find(t)  # type: ignore[method-assign,func-returns-value]
    bench.handlers.tickets.cancel(again)
    assert len(looked_up) < 10
    assert not bench.tickets.is_open(ticket)


def test_so_many_tokens_to_text_in_one_call() -> None:
    bench = Bench(dataclasses.replace(Limits(), tokenize_bytes=64))
    h = bench.handlers
    assert h.model.detokenize("", np.full(16, 65, np.uint32), False) == "b" * 16
    with pytest.raises(QuotaExceeded, match="tokenize_bytes: the limit is 64 in one call, 16 tokens; given 17"):
        h.model.detokenize("", np.full(17, 65, np.uint32), False)
    stream = h.model.stream_open("", False, np.array([], np.uint32))
    assert h.model.stream_push(stream, np.full(4, 65, np.uint32)) == "bbbb"
    with pytest.raises(QuotaExceeded, match="4 tokens; given 5"):
        h.model.stream_push(stream, np.full(5, 65, np.uint32))
