"""What a guest may ask of passes: masks by runs, embeddings, drafts; and what is refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from arrays import NONE, f32, u32
from fakes import NUMBER, PAGE_SIZE, VOCAB, Bench
from hypothesis import given
from hypothesis import strategies as st

from pieray.config import Limits
from pieray.errors import BadHandle, DeviceLost, InvalidRequest, QuotaExceeded
from pieray.host.device.masks import hide_runs, mask_bytes
from pieray.host.device.verify import MAX_DRAFTS
from pieray.messages import Completed, EmbedTokens, Entropy, Failed, Hidden, Verify

HIDDEN_SIZE = 6
NAN, INF = math.nan, math.inf


def make(limits: Limits | None = None) -> Bench:
    bench = Bench(limits)
    bench.outbox.leases.granted(range(100, 120))
    bench.change(info=dataclasses.replace(bench.sides.first.info, hidden_size=HIDDEN_SIZE))
    return bench


@pytest.fixture
def bench() -> Bench:
    return make()


def start(bench: Bench, num_pages: int = 2) -> tuple[int, np.ndarray]:
    return bench.handlers.queues.create(""), bench.handlers.kv.alloc(num_pages)


# --- outputs and masks


def test_entropy_and_hidden_travel_as_asked(bench: Bench) -> None:
    queue, pages = start(bench)
    pass_ = bench.handlers.forward.forward(queue, pages, 0, u32(1, 2), NONE, NONE)
    entropy, hidden = bench.handlers.forward.entropy(pass_, 1), bench.handlers.forward.hidden(pass_, 0)
    bench.handlers.tickets.flush()
    asked = [Entropy(1, NUMBER << 32 | entropy), Hidden(0, NUMBER << 32 | hidden)]
    assert bench.forwards()[0].outputs == asked
    for ticket, values in ((entropy, f32(0.5)), (hidden, f32(*range(6)))):
        bench.answer(Completed(NUMBER << 32 | ticket, values.tobytes()))
        assert bench.handlers.tickets.take_floats(ticket).tolist() == values.tolist()


@given(st.data())
def test_runs_hide_what_they_say_and_nothing_else(data: st.DataObject) -> None:
    num_rows, kv_len = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 19))
    width = kv_len + num_rows
    mask = bytearray(data.draw(st.binary(min_size=mask_bytes(num_rows, width), max_size=mask_bytes(num_rows, width))))

    def bits() -> np.ndarray:
        flat = np.unpackbits(np.frombuffer(bytes(mask), np.uint8), bitorder="little")
        return flat[: num_rows * width].reshape(num_rows, width)

    expected = bits()
    for _ in range(data.draw(st.integers(1, 3))):
        row, runs, at, is_visible = data.draw(st.integers(0, num_rows - 1)), [], 0, False
        while at < width and data.draw(st.booleans()):
            runs.append(data.draw(st.integers(0, width - at)))
            if not is_visible:
                expected[row, at : at + runs[-1]] = 0
            at, is_visible = at + runs[-1], not is_visible
        hide_runs(mask, row, width, u32(*runs)[: 2 * width])
        if len(runs) > 2 * width:
            return
        assert bits().tolist() == expected.tolist()


def test_runs_become_the_mask_of_the_pass_and_join_the_one_given(bench: Bench) -> None:
    queue, pages = start(bench)
    plain = bench.handlers.forward.forward(queue, pages[:1], 0, u32(1, 2, 3), NONE, NONE)
    bench.handlers.forward.mask_runs(plain, 2, u32(1, 1))
    masked = bench.handlers.forward.forward(queue, pages[1:], 0, u32(1, 2), NONE, u32(0b1011))
    bench.handlers.forward.mask_runs(masked, 1, u32(0, 1, 1))
    bench.handlers.tickets.flush()
    first, second = bench.forwards()
    assert int.from_bytes(first.mask, "little") & 0x1FF == 0b110_111_111
    assert int.from_bytes(second.mask, "little") & 0xF == 0b0011
    steps = bench.sides.first.lineage.rebuild_plan(bench.pages.frame_ids(pages[:2]).tolist())
    assert [step.mask for step in steps] == [first.mask, second.mask]


# --- embeddings


def test_a_pass_over_embeddings_travels_as_tokens_and_rows(bench: Bench) -> None:
    handlers = bench.handlers
    queue, pages = start(bench)
    text, put = handlers.embeds.text(u32(7, 8)), handlers.embeds.put(f32(*range(12)))
    assert (handlers.embeds.size(text), handlers.embeds.size(put)) == (2, 2)
    handlers.forward.forward_embeds(queue, pages, 0, u32(text, put, text), NONE, NONE)
    handlers.forward.forward_embeds(queue, pages[1:], 0, u32(text), NONE, NONE)
    handlers.embeds.free(u32(text, put))
    handlers.tickets.flush()
    mixed, plain = bench.forwards()
    assert np.frombuffer(mixed.tokens, "<u4").tolist() == [7, 8, 0, 0, 7, 8]
    assert np.frombuffer(mixed.embeds[0], "<u4").tolist() == [2, 3]
    assert np.frombuffer(mixed.embeds[1], "<f4").tolist() == list(range(12))
    assert np.frombuffer(plain.tokens, "<u4").tolist() == [7, 8]
    assert plain.embeds == []
    with pytest.raises(BadHandle):
        handlers.embeds.size(text)
    assert bench.parts.tables.embeds.num_bytes == 0


def test_values_come_from_the_guest_itself_or_from_the_batcher(bench: Bench) -> None:
    handlers = bench.handlers
    queue, _ = start(bench)
    put = handlers.embeds.values(queue, handlers.embeds.put(f32(*range(6))))
    text = handlers.embeds.values(queue, handlers.embeds.text(u32(9)))
    assert handlers.tickets.take_floats(put).tolist() == list(range(6))
    handlers.tickets.flush()
    (sent,) = bench.device.posted
    assert sent == EmbedTokens(NUMBER << 32 | text, NUMBER, u32(9).tobytes())
    bench.answer(Completed(sent.ticket, f32(*range(6)).tobytes()))
    assert handlers.tickets.take_floats(text).tolist() == list(range(6))
    lost = handlers.embeds.values(queue, handlers.embeds.text(u32(9)))
    handlers.tickets.flush()
    bench.outbox.fail_all(DeviceLost("gone"))
    with pytest.raises(DeviceLost):
        handlers.tickets.take_floats(lost)
    handlers.queues.close(queue)
    bench.pages.check()


def test_embeddings_are_bounded() -> None:
    bench = make(Limits(embed_bytes=1200, message_bytes=40))
    queue, pages = start(bench)
    one = bench.handlers.embeds.put(f32(*range(6)))
    two = bench.handlers.embeds.text(u32(1, 2, 3))
    with pytest.raises(QuotaExceeded, match="embed_bytes: the limit is 1200"):
        bench.handlers.embeds.text(u32(1))
    with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 40.*48"):
        bench.handlers.forward.forward_embeds(queue, pages, 0, u32(one, one), NONE, NONE)
    with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 40.*72"):
        bench.handlers.embeds.values(queue, two)
    bench.handlers.embeds.free(u32(one))
    bench.handlers.embeds.text(u32(1))


# --- drafts


def verify(
    bench: Bench, queue: int, pages: np.ndarray, kv_len: int, drafts: np.ndarray, parents: np.ndarray = NONE
) -> int:
    return bench.handlers.forward.verify(queue, pages, kv_len, u32(1, 2), drafts, parents, 0, 0)


def test_slots_count_as_written_once_it_is_known_how_many(bench: Bench) -> None:
    handlers = bench.handlers
    queue, pages = start(bench, 3)
    handlers.forward.forward(queue, pages, 0, u32(*range(9)), NONE, NONE)
    ticket = verify(bench, queue, pages, 3, u32(5, 6, 7), u32(0, 0, 2))
    handlers.tickets.flush()
    sent = next(m for m in bench.device.posted if isinstance(m, Verify))
    assert np.frombuffer(sent.drafts, "<u4").tolist() == [5, 6, 7]
    assert np.frombuffer(sent.parents, "<u4").tolist() == [0, 0, 2]
    assert np.frombuffer(sent.pages, "<u4").tolist() == [100, 101]
    with pytest.raises(InvalidRequest, match="written"):  # what was there before counts no more
        handlers.forward.forward(queue, pages, 4, u32(1), NONE, NONE)
    bench.answer(Completed(sent.ticket, u32(6, 7, 9).tobytes()))
    assert handlers.tickets.take_tokens(ticket).tolist() == [6, 7, 9]
    with pytest.raises(InvalidRequest, match="written"):
        handlers.forward.forward(queue, pages, 8, u32(1), NONE, NONE)
    handlers.forward.forward(queue, pages, 7, u32(1), NONE, NONE)  # 3 + two tokens + two accepted drafts
    handlers.tickets.flush()
    bench.pages.check()


def test_a_failed_verify_leaves_nothing_written(bench: Bench) -> None:
    queue, pages = start(bench)
    bench.handlers.forward.forward(queue, pages, 0, u32(1, 2), NONE, NONE)
    ticket = verify(bench, queue, pages, 2, u32(5))
    bench.handlers.tickets.flush()
    bench.answer(Failed(NUMBER << 32 | ticket, "invalid", "no token"))
    with pytest.raises(InvalidRequest, match="no token"):
        bench.handlers.tickets.take_tokens(ticket)
    with pytest.raises(InvalidRequest, match="written"):
        bench.handlers.forward.forward(queue, pages, 3, u32(1), NONE, NONE)
    bench.handlers.forward.forward(queue, pages, 2, u32(1), NONE, NONE)
    bench.pages.check()


def test_a_fork_does_not_see_what_its_sibling_verifies(bench: Bench) -> None:
    handlers = bench.handlers
    queue, pages = start(bench, 1)
    handlers.forward.forward(queue, pages, 0, u32(1, 2, 3), NONE, NONE)
    forked = handlers.kv.fork(pages)
    ticket = handlers.forward.verify(queue, forked, 2, u32(9), u32(8), NONE, 0, 0)
    handlers.tickets.flush()
    bench.answer(Completed(NUMBER << 32 | ticket, u32(8, 4).tobytes()))
    handlers.forward.forward(queue, pages, 3, u32(4), NONE, NONE)  # three tokens are still there
    more = handlers.kv.alloc(1)
    handlers.forward.forward(queue, np.concatenate((forked, more)), 4, u32(4), NONE, NONE)
    assert bench.device.posted[1].copies == [[100, 0, 101, 0, 2]]  # type: ignore[attr-defined]
    bench.pages.check()


def test_lineage_has_the_accepted_text(bench: Bench) -> None:
    queue, pages = start(bench)
    bench.handlers.forward.forward(queue, pages, 0, u32(1, 2), NONE, NONE)
    ticket = verify(bench, queue, pages, 2, u32(5, 6))
    bench.handlers.tickets.flush()
    bench.answer(Completed(NUMBER << 32 | ticket, u32(5, 9).tobytes()))
    steps = bench.sides.first.lineage.rebuild_plan(bench.pages.frame_ids(pages).tolist())
    tokens = [token for step in steps for token in np.frombuffer(step.tokens, "<u4").tolist()]  # type: ignore[union-attr]
    assert tokens == [1, 2, 1, 2, 5]


# --- what is refused


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda h, q, p, x, e: h.forward.entropy(x, 2), InvalidRequest, "below 2; given 2"),
        (lambda h, q, p, x, e: h.forward.hidden(x, 2), InvalidRequest, "below 2; given 2"),
        (lambda h, q, p, x, e: h.forward.hidden(999, 0), BadHandle, "pass 999"),
        (lambda h, q, p, x, e: h.forward.mask_runs(x, 2, NONE), InvalidRequest, "below 2; given 2"),
        (lambda h, q, p, x, e: h.forward.mask_runs(999, 0, NONE), BadHandle, "pass 999"),
        (lambda h, q, p, x, e: h.forward.mask_runs(x, 1, u32(1, 2)), InvalidRequest, "2 slots.*given 3"),
        (lambda h, q, p, x, e: h.forward.mask_runs(x, 1, u32(2**32 - 1, 2**32 - 1)), InvalidRequest, "8589934590"),
        (lambda h, q, p, x, e: h.forward.mask_runs(x, 1, np.zeros(9, np.uint32)), InvalidRequest, "in 9"),
        (lambda h, q, p, x, e: h.forward.set_adapter(x, 5), BadHandle, "adapter 5"),
        (lambda h, q, p, x, e: h.forward.set_adapter(999, 0), BadHandle, "pass 999"),
        (lambda h, q, p, x, e: h.embeds.text(NONE), InvalidRequest, "at least 1"),
        (lambda h, q, p, x, e: h.embeds.text(u32(VOCAB)), InvalidRequest, "below 256; given 256"),
        (lambda h, q, p, x, e: h.embeds.put(f32()), InvalidRequest, "rows of 6 floats"),
        (lambda h, q, p, x, e: h.embeds.put(f32(*range(7))), InvalidRequest, "given 7 floats"),
        (lambda h, q, p, x, e: h.embeds.put(f32(1, 2, 3, 4, 5, NAN)), InvalidRequest, "NaN"),
        (lambda h, q, p, x, e: h.embeds.put(f32(1, 2, 3, 4, 5, -INF)), InvalidRequest, "inf"),
        (lambda h, q, p, x, e: h.embeds.size(77), BadHandle, "embedding 77"),
        (lambda h, q, p, x, e: h.embeds.values(q, 77), BadHandle, "embedding 77"),
        (lambda h, q, p, x, e: h.embeds.values(77, e), BadHandle, "queue 77"),
        (lambda h, q, p, x, e: h.embeds.free(u32(e, 77)), BadHandle, "embedding 77"),
        (lambda h, q, p, x, e: h.embeds.free(u32(e, e)), BadHandle, "twice"),
        (lambda h, q, p, x, e: h.forward.forward_embeds(q, p, 0, NONE, NONE, NONE), InvalidRequest, "at least 1 token"),
        (lambda h, q, p, x, e: h.forward.forward_embeds(q, p, 0, u32(77), NONE, NONE), BadHandle, "embedding 77"),
        (lambda h, q, p, x, e: h.forward.forward_embeds(q, p, 0, u32(*[e] * 9), NONE, NONE), InvalidRequest, "8 slots"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, NONE, u32(5), NONE, 0, 0), InvalidRequest, "at least 1 token"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(5), u32(1), 0, 0), InvalidRequest, "an earlier"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(5, 6), u32(0), 0, 0), InvalidRequest, "one per"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(VOCAB), NONE, 0, 0), InvalidRequest, "below 256"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(*[5] * 8), NONE, 0, 0), InvalidRequest, "8 slots"),
        (
            lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(*[5] * (MAX_DRAFTS + 1)), NONE, 0, 0),
            InvalidRequest,
            "at most 256 drafts",
        ),
        (
            lambda h, q, p, x, e: h.forward.verify(q, p, 1020, u32(1), u32(5, 6, 7, 8), NONE, 0, 0),
            InvalidRequest,
            "below 1024.*given 1024",
        ),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 5, u32(1), u32(5), NONE, 0, 0), InvalidRequest, "written"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(5), NONE, 9, 0), BadHandle, "sampler 9"),
        (lambda h, q, p, x, e: h.forward.verify(q, p, 0, u32(1), u32(5), NONE, 0, 9), BadHandle, "adapter 9"),
        (lambda h, q, p, x, e: h.forward.verify(77, p, 0, u32(1), u32(5), NONE, 0, 0), BadHandle, "queue 77"),
        (lambda h, q, p, x, e: h.forward.verify(q, u32(12345), 0, u32(1), u32(5), NONE, 0, 0), BadHandle, "12345"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(bench: Bench, call, error, text) -> None:  # type: ignore[no-untyped-def]
    queue, pages = start(bench)
    pass_ = bench.handlers.forward.forward(queue, bench.handlers.kv.alloc(1), 0, u32(1, 2), NONE, NONE)
    embed = bench.handlers.embeds.text(u32(3))
    before = len(bench.tickets), bench.outbox.num_outstanding, bench.parts.tables.embeds.num_bytes
    with pytest.raises(error, match=text):
        call(bench.handlers, queue, pages, pass_, embed)
    assert (len(bench.tickets), bench.outbox.num_outstanding, bench.parts.tables.embeds.num_bytes) == before
    bench.pages.check()


def test_a_pass_that_is_sent_is_changed_no_more(bench: Bench) -> None:
    queue, pages = start(bench)
    pass_ = bench.handlers.forward.forward(queue, pages, 0, u32(1, 2), NONE, NONE)
    bench.handlers.tickets.flush()
    for call in (
        lambda h: h.forward.mask_runs(pass_, 0, u32(1)),
        lambda h: h.forward.set_adapter(pass_, 0),
        lambda h: h.forward.entropy(pass_, 0),
        lambda h: h.forward.hidden(pass_, 0),
        lambda h: h.forward.sample_with(pass_, 0, 0),
    ):
        with pytest.raises(InvalidRequest, match="sent already"):
            call(bench.handlers)


def test_a_mask_by_runs_is_bounded() -> None:
    bench = make(Limits(message_bytes=3))
    queue, pages = start(bench)
    pass_ = bench.handlers.forward.forward(queue, pages, 0, u32(*range(6)), NONE, NONE)
    with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 3; the mask of this pass has 5"):
        bench.handlers.forward.mask_runs(pass_, 0, u32(1))
    assert PAGE_SIZE == 4


def test_hidden_slots_travel_with_drafts(bench: Bench) -> None:
    handlers = bench.handlers
    queue, pages = start(bench)
    handlers.forward.forward(queue, pages, 0, u32(1, 2, 3), NONE, NONE)
    handlers.kv.mask(int(pages[0]), 1, 1, False)
    ticket = verify(bench, queue, pages, 3, u32(5))
    handlers.tickets.flush()
    sent = next(m for m in bench.device.posted if isinstance(m, Verify))
    assert sent.visible == b"\x05"
    bench.answer(Completed(sent.ticket, u32(9).tobytes()))
    assert handlers.tickets.take_tokens(ticket).tolist() == [9]
    steps = bench.sides.first.lineage.rebuild_plan(bench.pages.frame_ids(pages[:1]).tolist())
    assert [(step.kv_len, step.visible) for step in steps] == [(0, b""), (3, b"\x05")]


def test_drafts_in_flight_fail_with_the_device(bench: Bench) -> None:
    handlers = bench.handlers
    queue, pages = start(bench)
    sent = verify(bench, queue, pages, 0, u32(5))
    handlers.tickets.flush()
    waiting = verify(bench, queue, handlers.kv.alloc(1), 0, u32(5))
    bench.outbox.fail_all(DeviceLost("gone"))
    for ticket in (sent, waiting):
        with pytest.raises(DeviceLost):
            handlers.tickets.take_tokens(ticket)
    with pytest.raises(InvalidRequest, match="written"):
        handlers.forward.forward(queue, pages, 2, u32(1), NONE, NONE)
    bench.pages.check()
