"""What an inferlet may have under way with its passes: refused up front, given back when computed and taken."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from arrays import NONE, u32
from fakes import NUMBER, Bench

from pieray.config import Limits
from pieray.errors import DeviceLost, QuotaExceeded
from pieray.host.device.transfers import FREE_BYTES, ActorTransfers, Transfers
from pieray.messages import Completed, EmbedTokens, Failed

VOCAB = 151_936
ROW = 4 * VOCAB


def bench_of(pass_bytes: int = 10 * ROW) -> Bench:
    bench = Bench(Limits(pass_bytes=pass_bytes))
    bench.outbox.leases.granted(range(100, 200))
    bench.change(info=dataclasses.replace(bench.sides.first.info, vocab_size=VOCAB, hidden_size=2048))
    return bench


def passed(bench: Bench, num_tokens: int) -> int:
    queue = bench.handlers.queues.create("")
    pages = bench.handlers.kv.alloc(-(-num_tokens // 4))
    return bench.handlers.forward.forward(queue, pages, 0, u32(*[1] * num_tokens), NONE, NONE)


def answer(bench: Bench, ticket: int, num_bytes: int = ROW) -> None:
    bench.answer(Completed(NUMBER << 32 | ticket, bytes(num_bytes)))


def test_128_rows_of_logits_over_a_large_vocabulary_are_refused_as_they_are_asked_for() -> None:
    bench = bench_of(Limits().pass_bytes)
    pass_ = passed(bench, 128)
    tickets = []
    with pytest.raises(
        QuotaExceeded,
        match=f"pass_bytes: the limit is 67108864; 66851840 are under way, the values of this output have {ROW} more",
    ):
        tickets += [bench.handlers.forward.logits(pass_, row) for row in range(128)]
    with pytest.raises(QuotaExceeded):
        bench.handlers.forward.distribution(pass_, 0, VOCAB)
    bench.handlers.forward.sample(pass_, 0, 0, 0, 1, 0, 0)  # a few bytes are always there
    assert len(bench.outbox.passes[pass_].outputs) == 110 + 1


def test_a_result_counts_until_it_is_computed_and_taken() -> None:
    bench = bench_of()
    pass_ = passed(bench, 10)
    tickets = [bench.handlers.forward.logits(pass_, row) for row in range(10)]
    bench.handlers.tickets.flush()
    assert bench.outbox.transfers.num_bytes == 10 * ROW
    answer(bench, tickets[0])
    with pytest.raises(QuotaExceeded):  # it is here, and lies in memory
        bench.handlers.forward.logits(passed(bench, 1), 0)
    bench.handlers.tickets.take_floats(tickets[0])
    bench.handlers.tickets.cancel(u32(tickets[1]))
    assert bench.outbox.transfers.num_bytes == 9 * ROW  # what was cancelled is computed all the same
    answer(bench, tickets[1])
    assert bench.outbox.transfers.num_bytes == 8 * ROW
    unsent = passed(bench, 1)
    ticket = bench.handlers.forward.logits(unsent, 0)
    bench.handlers.tickets.cancel(u32(ticket))
    assert bench.outbox.transfers.num_bytes == 8 * ROW
    bench.outbox.close()
    assert bench.outbox.transfers.num_bytes == 0
    assert bench.services.transfers.num_bytes == 0


@pytest.mark.parametrize("end", ["failed", "lost"])
def test_a_failed_pass_gives_back_what_its_outputs_were_to_have(end: str) -> None:
    bench = bench_of()
    pass_ = passed(bench, 4)
    tickets = [bench.handlers.forward.logits(pass_, row) for row in range(4)]
    bench.handlers.tickets.flush()
    bench.handlers.tickets.cancel(u32(tickets[3]))
    if end == "failed":
        bench.answer(Failed(NUMBER << 32 | pass_, "invalid", "not in the mood"))
        for ticket in tickets:
            bench.answer(Failed(NUMBER << 32 | ticket, "invalid", "not in the mood"))
    else:
        bench.outbox.fail_all(DeviceLost("gone"))
    bench.handlers.tickets.cancel(u32(*tickets[:3]))
    assert bench.outbox.transfers.num_bytes == 0


def test_all_that_is_large_counts_both_ways() -> None:
    bench = bench_of()
    handlers, transfers = bench.handlers, bench.outbox.transfers
    pass_ = passed(bench, 200)
    assert transfers.num_bytes == 0
    tokens = u32(*range(5000))
    handlers.forward.logprobs(pass_, 0, tokens)
    assert transfers.num_bytes == 2 * 20_000  # the list that goes, the values that come
    handlers.forward.distribution(pass_, 1, 1000)
    assert transfers.num_bytes == 40_000 + 8000
    handlers.forward.hidden(pass_, 1)
    assert transfers.num_bytes == 48_000 + 4 * 2048
    handlers.forward.mask_runs(pass_, 0, u32(0, 1))
    handlers.forward.mask_runs(pass_, 1, u32(0, 1))
    assert transfers.num_bytes == 48_000 + 8192 + 200 * 200 // 8
    embeds = handlers.embeds.put(np.zeros(2048 * 4, np.float32))
    queue, pages = handlers.queues.create(""), handlers.kv.alloc(1)
    second = handlers.forward.forward_embeds(queue, pages, 0, u32(embeds), NONE, NONE)
    before = transfers.num_bytes
    handlers.tickets.flush()
    bench.answer(Completed(NUMBER << 32 | second, None))
    assert before - transfers.num_bytes == 4 * (2048 * 4 + 4)  # values and row numbers
    text = handlers.embeds.values(queue, handlers.embeds.text(u32(*range(8))))
    handlers.tickets.flush()
    assert isinstance(bench.device.posted[-1], EmbedTokens)
    assert transfers.num_bytes == before - 4 * (2048 * 4 + 4) + 8 * 2048 * 4
    answer(bench, text, 8 * 2048 * 4)
    handlers.tickets.take_floats(text)
    assert transfers.num_bytes == before - 4 * (2048 * 4 + 4)


def test_neighbours_that_have_much_under_way_leave_room_for_a_little() -> None:
    actor = ActorTransfers(limit=10 << 20)
    hogs = [Transfers(8 << 20, actor) for _ in range(2)]
    hogs[0].expect(1, 8 << 20, "they have")
    with pytest.raises(QuotaExceeded, match="an actor may have 10485760 .* 8388608 are, they have 7340032"):
        hogs[1].expect(1, 7 << 20, "they have")
    small = Transfers(8 << 20, actor)
    small.expect(1, FREE_BYTES, "they have")
    with pytest.raises(QuotaExceeded):
        small.expect(2, 4096, "they have")
    hogs[0].close()
    small.expect(2, 4096, "they have")
    small.close()
    assert actor.num_bytes == 0


def test_a_refused_output_leaves_no_ticket() -> None:
    bench = bench_of(pass_bytes=ROW - 1)
    pass_ = passed(bench, 1)
    before = len(bench.tickets)
    with pytest.raises(QuotaExceeded, match=f"the limit is {ROW - 1}; 0 are under way"):
        bench.handlers.forward.logits(pass_, 0)
    assert len(bench.tickets) == before
