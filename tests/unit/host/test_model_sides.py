"""One inferlet on several models: each has pages and a device of its own, and what is of one is not another's."""

from __future__ import annotations

import pytest
from arrays import NONE, f32, u32
from fakes import NUMBER, PAGE_SIZE, Bench

from pieray.config import Limits
from pieray.errors import BadHandle, DeviceLost, InvalidRequest, NotFound, QuotaExceeded
from pieray.host.models import ModelInfo
from pieray.messages import EmbedTokens, Forward
from pieray.pages.handles import MAX_TABLES, generations_of, table_of

SMALL = ModelInfo("small", "llama", 100, 64, 8, 32, "float32", "cpu", hidden_size=6)


@pytest.fixture
def bench() -> Bench:
    return Bench(others={"small": SMALL, "third": ModelInfo("third", "llama", 250, 64, 4, 32, "float32", "cpu")})


def forwards(bench: Bench, name: str) -> list[Forward]:
    return [m for m in bench.devices[name].posted if isinstance(m, Forward)]


def test_a_pass_goes_to_the_device_of_its_queues_model(bench: Bench) -> None:
    h = bench.handlers
    ours, theirs = h.queues.create(""), h.queues.create("small")
    assert set(bench.devices) == {"fake", "small"}  # the third one is not used
    pages, others = h.kv.alloc(1), h.kv.alloc_for("small", 1)
    first = h.forward.forward(ours, pages, 0, u32(1, 2, 3, 4), NONE, NONE)
    second = h.forward.forward(theirs, others, 0, u32(*range(8)), NONE, NONE)  # its pages are larger
    for side, page in zip(bench.sides.all, (5, 6), strict=True):
        side.granted([page], 0)
    h.tickets.flush()
    (mine,), (other,) = forwards(bench, "fake"), forwards(bench, "small")
    assert mine.ticket == NUMBER << 32 | first
    assert other.ticket == NUMBER << 32 | second
    assert h.tickets.ready(u32(first, second)) == []
    bench.sides.of("small").answered([(second, None)])
    assert h.tickets.ready(u32(first, second)) == [second]


def test_a_queue_of_a_model_that_is_not_served_or_has_no_device_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFound, match="no model is named 'large'; served: fake, small, third"):
        bench.handlers.queues.create("large")

    def lost(_model: object) -> None:
        raise DeviceLost("it is being replaced")

    bench.sides._open = lost  # type: ignore[assignment]
    with pytest.raises(DeviceLost, match="replaced"):
        bench.handlers.kv.alloc_for("small", 1)
    del bench.sides._open
    bench.sides._open = bench.open_side
    assert len(bench.handlers.kv.alloc_for("small", 1)) == 1  # later there is one


def test_the_default_model_by_its_name_is_the_default_one(bench: Bench) -> None:
    h = bench.handlers
    queue, pages = h.queues.create("fake"), h.kv.alloc_for("fake", 1)
    h.forward.forward(queue, pages, 0, u32(1), NONE, NONE)
    assert len(bench.sides.all) == 1


def test_pages_are_of_one_model(bench: Bench) -> None:
    h = bench.handlers
    mine, theirs = h.kv.alloc(3), h.kv.alloc_for("small", 3)
    assert not set(mine.tolist()) & set(theirs.tolist())
    queue = h.queues.create("small")
    for call in (
        lambda: h.forward.forward(queue, mine, 0, u32(1), NONE, NONE),
        lambda: h.plans.create(queue, mine, 0, u32(1), 1, 0),
        lambda: h.kv.copy(queue, int(mine[0]), 0, int(mine[1]), 0, 1),
        lambda: h.forward.verify(queue, mine, 0, u32(1), u32(2), NONE, 0, 0),
    ):
        with pytest.raises(BadHandle, match=f"page handle {mine[0]} was never given"):
            call()
    both = u32(mine[0], theirs[0])
    for refused in (h.kv.free, h.kv.fork, lambda pages: h.kv.truncate(pages, 0), h.kv.idle):
        with pytest.raises(InvalidRequest, match="pages of several"):
            refused(both)
    forked = h.kv.fork(theirs)
    h.kv.free(theirs)
    h.kv.mask(int(forked[0]), 7, 1, True)  # the eighth slot: of a page of the small model
    with pytest.raises(InvalidRequest, match=f"outside a page of {PAGE_SIZE} tokens"):
        h.kv.mask(int(mine[0]), 7, 1, True)
    h.kv.free(forked)
    h.kv.free(mine)
    with pytest.raises(BadHandle):
        h.kv.free(forked)
    for side in bench.sides.all:
        assert side.pages.num_handles == 0


def test_a_handle_that_looks_like_nobodys_is_refused(bench: Bench) -> None:
    bench.handlers.kv.alloc_for("small", 1)
    for handle in (0, 1, 0xFFFFFFFF, 3 << 28 | 1 << 20):
        with pytest.raises(BadHandle):
            bench.handlers.kv.free(u32(handle))


def test_one_limit_is_for_the_pages_of_all_models() -> None:
    bench = Bench(Limits(pages=5), others={"small": SMALL})
    h = bench.handlers
    theirs = h.kv.alloc_for("small", 3)
    h.kv.alloc(2)
    for refused in (lambda: h.kv.alloc(1), lambda: h.kv.alloc_for("small", 1), lambda: h.kv.fork(theirs[:1])):
        with pytest.raises(QuotaExceeded, match=r"limits.pages is 5: 5 handles are held, 1 more"):
            refused()
    h.kv.free(theirs[:1])
    h.kv.alloc(1)


def test_what_is_reserved_on_one_model_counts_on_the_others() -> None:
    bench = Bench(Limits(pages=5), others={"small": SMALL})
    h = bench.handlers
    h.kv.reserve_for("small", 3)
    h.kv.reserve(2)
    for refused in (lambda: h.kv.reserve(3), lambda: h.kv.expect(3), lambda: h.kv.alloc(3)):
        with pytest.raises(QuotaExceeded, match=r"limits.pages is 5: [03] .* 3 more"):
            refused()
    theirs = h.kv.alloc_for("small", 3)  # what it was reserved for
    h.kv.alloc(2)
    with pytest.raises(QuotaExceeded, match="1 more"):
        h.kv.alloc_for("small", 1)
    h.kv.free(theirs)


def test_tokens_positions_and_outputs_are_checked_against_the_model(bench: Bench) -> None:
    h = bench.handlers
    queue, pages = h.queues.create("small"), h.kv.alloc_for("small", 8)
    with pytest.raises(InvalidRequest, match="token ids are below 100; given 100"):
        h.forward.forward(queue, pages, 0, u32(100), NONE, NONE)
    with pytest.raises(InvalidRequest, match="positions are below 64"):
        h.forward.forward(queue, pages, 0, u32(1), u32(64), NONE)
    with pytest.raises(InvalidRequest, match="fits in the model's context of 64"):
        h.plans.create(queue, pages, 0, u32(1), 65, 0)
    with pytest.raises(InvalidRequest, match="tokens: token ids are below 100"):
        h.plans.create(queue, pages, 0, u32(100), 1, 0)
    pass_ = h.forward.forward(queue, pages, 0, u32(1), NONE, NONE)
    with pytest.raises(InvalidRequest, match="k is from 1 to 100"):
        h.forward.distribution(pass_, 0, 101)
    with pytest.raises(InvalidRequest, match="below 100; given 100"):
        h.forward.logprobs(pass_, 0, u32(100))
    h.forward.logits(pass_, 0)


def test_a_sampler_is_for_the_models_whose_vocabulary_it_fits(bench: Bench) -> None:
    h = bench.handlers
    queues = {name: h.queues.create(name) for name in ("fake", "small", "third")}
    passes = {
        name: h.forward.forward(queue, h.kv.alloc_for(name, 1), 0, u32(1), NONE, NONE) for name, queue in queues.items()
    }
    biased, masked = (h.samplers.create(1.0, 0, 1.0, 0.0, 1.0, 0) for _ in range(2))
    with pytest.raises(InvalidRequest, match="token ids are below 256"):
        h.samplers.bias(biased, u32(256), f32(1))
    h.samplers.bias(biased, u32(99, 200), f32(1, 1))
    with pytest.raises(InvalidRequest, match="of small are below 100; the sampler's bias names 200"):
        h.forward.sample_with(passes["small"], 0, biased)
    h.forward.sample_with(passes["fake"], 0, biased)
    with pytest.raises(InvalidRequest, match="100 or 250 or 256 tokens takes 4 or 8 or 8 words"):
        h.samplers.allow(masked, u32(*[1] * 5))
    h.samplers.allow(masked, u32(*[7] * 8))
    with pytest.raises(InvalidRequest, match="not of the vocabulary of small"):
        h.forward.sample_with(passes["small"], 0, masked)
    for name in ("fake", "third"):  # as many words, not as many bytes
        h.forward.sample_with(passes[name], 0, masked)
    assert [len(bench.outbox.passes[passes[name]].outputs[-1].sampler.allowed) for name in ("fake", "third")] == [
        32,
        32,
    ]
    with pytest.raises(InvalidRequest, match="not of the vocabulary of small"):
        h.forward.verify(queues["small"], h.kv.alloc_for("small", 1), 0, u32(1), u32(2), NONE, masked, 0)
    with pytest.raises(InvalidRequest, match="not of the vocabulary of small"):
        h.plans.create(queues["small"], h.kv.alloc_for("small", 1), 0, u32(1), 2, masked)
    plan = h.plans.create(queues["small"], h.kv.alloc_for("small", 1), 0, u32(1), 2, 0)
    with pytest.raises(InvalidRequest, match="not of the vocabulary of small"):
        h.plans.set_sampler(plan, masked)


def test_embeddings_are_of_one_model(bench: Bench) -> None:
    h = bench.handlers
    queue, ours = h.queues.create("small"), h.queues.create("")
    rows, words = h.embeds.put_for("small", f32(*range(12))), h.embeds.text_for("small", u32(1, 99))
    assert h.embeds.size(rows) == 2
    with pytest.raises(InvalidRequest, match="token ids are below 100"):
        h.embeds.text_for("small", u32(100))
    pages = h.kv.alloc(1)
    for handle in (rows, words):
        with pytest.raises(InvalidRequest, match=f"embedding {handle} is of small, and queue {ours} of the default"):
            h.forward.forward_embeds(ours, pages, 0, u32(handle), NONE, NONE)
        with pytest.raises(InvalidRequest, match="is of small"):
            h.embeds.values(ours, handle)
    ticket = h.embeds.values(queue, words)
    h.tickets.flush()
    (asked,) = [m for m in bench.devices["small"].posted if isinstance(m, EmbedTokens)]
    assert asked.ticket & 0xFFFFFFFF == ticket
    assert bench.device.posted == []


def test_what_one_device_loses_the_other_keeps(bench: Bench) -> None:
    h = bench.handlers
    passes = [
        h.forward.forward(h.queues.create(name), h.kv.alloc_for(name, 1), 0, u32(1), NONE, NONE)
        for name in ("", "small")
    ]
    for side in bench.sides.all:
        side.granted([1, 2], 0)
    h.tickets.flush()
    bench.sides.of("small").device_lost(DeviceLost("gone"))
    assert h.tickets.ready(u32(*passes)) == passes[1:]
    with pytest.raises(DeviceLost):
        h.tickets.take_none(passes[1])
    bench.complete_all()
    h.tickets.take_none(passes[0])


def test_exports_and_requests_for_memory_go_to_the_models_device(bench: Bench) -> None:
    h = bench.handlers
    asked = [
        h.kv.reserve_for("small", 2),
        h.kv.import_for("small", "a"),
        h.kv.unexport_for("small", "a", "owner"),
        h.kv.list_exports_for("small", ""),
    ]
    h.kv.expect_for("small", 4)
    assert [m.ticket & 0xFFFFFFFF for m in bench.devices["small"].asked] == asked  # type: ignore[attr-defined]
    assert bench.device.asked == []


def test_handles_of_tables_tell_which_table_they_are_of() -> None:
    found = [generations_of(number) for number in range(MAX_TABLES)]
    assert sum(map(len, found)) == (1 << 12) - 1
    assert set.union(*map(set, found)) == set(range(1, 1 << 12))
    for number, generations in enumerate(found):
        handles = u32(*[each << 20 | 77 for each in (generations[0], generations[-1])])
        assert table_of(handles) == number
    assert table_of(u32(1 << 20, 1 << 31)) is None


def test_an_inferlet_that_is_pinned_is_so_on_a_model_that_it_names_later(bench: Bench) -> None:
    h = bench.handlers
    h.kv.pin()
    h.kv.pin()
    h.queues.create("small")
    assert [side.outbox.leases.num_pins for side in bench.sides.all] == [2, 2]
    h.kv.unpin()
    h.queues.create("third")
    h.kv.unpin()
    assert [side.outbox.leases.num_pins for side in bench.sides.all] == [0, 0, 0]
    with pytest.raises(InvalidRequest, match="not pinned"):
        h.kv.unpin()
