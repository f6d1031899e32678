"""What a guest may ask of images: one is seen, its rows run in a pass, and pages are known by what they show."""

from __future__ import annotations

import base64
import dataclasses

import numpy as np
import pytest
from arrays import NONE, u32
from fakes import NUMBER, PAGE_SIZE, Bench

from pieray.config import Limits
from pieray.errors import BadHandle, InvalidRequest, QuotaExceeded, Unsupported
from pieray.host.device.commands import without_first
from pieray.messages import Completed, EmbedImage, Failed
from pieray.models.image_rules import ImageRules

HIDDEN_SIZE = 6
RULES = ImageRules(9, side=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
FILE = b"bytes of a file"
GIVEN = base64.b64encode(FILE).decode()


def make(limits: Limits | None = None, rules: ImageRules | None = RULES) -> Bench:
    bench = Bench(limits)
    bench.outbox.leases.granted(range(100, 120))
    image = {} if rules is None else rules.as_dict()
    bench.change(info=dataclasses.replace(bench.sides.first.info, hidden_size=HIDDEN_SIZE, image=image))
    return bench


def answer(num_rows: int, digest: bytes = b"d" * 16) -> list[bytes]:
    values = np.arange(num_rows * HIDDEN_SIZE, dtype="<f4").tobytes()
    return [values, np.arange(num_rows * 4, dtype="<i4").tobytes(), digest]


def seen(bench: Bench, queue: int, num_rows: int = 3, digest: bytes = b"d" * 16) -> int:
    """An image that has been seen; its handle."""
    ticket = bench.handlers.embeds.image(queue, GIVEN)
    bench.handlers.tickets.flush()
    bench.answer(Completed(NUMBER << 32 | ticket, answer(num_rows, digest)))
    embed, rows = bench.handlers.tickets.take_tokens(ticket).tolist()
    assert rows == num_rows
    return int(embed)


def test_an_image_travels_to_the_batcher_and_its_rows_come_back() -> None:
    bench = make()
    handlers = bench.handlers
    queue = handlers.queues.create("")
    ticket = handlers.embeds.image(queue, GIVEN)
    handlers.tickets.flush()
    (sent,) = bench.device.posted
    assert isinstance(sent, EmbedImage)
    assert (sent.ticket, sent.inferlet, sent.data) == (NUMBER << 32 | ticket, NUMBER, FILE)
    assert sent.max_bytes <= Limits().embed_bytes
    bench.answer(Completed(sent.ticket, answer(3)))
    embed, rows = handlers.tickets.take_tokens(ticket).tolist()
    assert (rows, handlers.embeds.size(embed)) == (3, 3)
    values = handlers.embeds.values(queue, embed)
    assert handlers.tickets.take_floats(values).tolist() == list(range(18))
    handlers.embeds.free(u32(embed))
    assert bench.parts.tables.embeds.num_bytes == 0


def test_a_pass_carries_where_rows_of_images_stand_beside_text_and_values() -> None:
    bench = make()
    handlers, queue = bench.handlers, bench.handlers.queues.create("")
    pages = handlers.kv.alloc(2)
    embed, text = seen(bench, queue), handlers.embeds.text(u32(7, 8))
    put = handlers.embeds.put(np.ones(HIDDEN_SIZE, np.float32))
    handlers.forward.forward_embeds(queue, pages, 0, u32(text, embed, put), NONE, NONE)
    handlers.tickets.flush()
    (sent,) = bench.forwards()
    rows, _, places = sent.embeds
    assert np.frombuffer(rows, "<u4").tolist() == [2, 3, 4, 5]
    assert np.frombuffer(places, "<i4").reshape(-1, 4).tolist() == [*np.arange(12).reshape(3, 4).tolist(), [0] * 4]
    assert not bench.sides.first.lineage.is_complete, "nobody knows what the guest's own values are"


def test_pages_of_images_can_be_computed_again_and_are_known_by_what_they_show() -> None:
    found = []
    for digest in (b"d" * 16, b"d" * 16, b"e" * 16):
        bench = make()
        handlers, queue = bench.handlers, bench.handlers.queues.create("")
        embed, text = seen(bench, queue, PAGE_SIZE, digest), handlers.embeds.text(u32(*range(1, PAGE_SIZE + 1)))
        pages = handlers.kv.alloc(2)
        ticket = handlers.forward.forward_embeds(queue, pages, 0, u32(text, embed), NONE, NONE)
        command = bench.outbox.passes[ticket]
        text_of = command.text()
        assert text_of is not None
        found.append(text_of)
        handlers.tickets.flush()
        (step,) = bench.sides.first.lineage.rebuild_plan(bench.pages.frame_ids(pages).tolist())
        assert list(step.embeds) == bench.forwards()[0].embeds
    assert found[0] == found[1] != found[2]
    assert found[0].tokens == found[2].tokens
    rows = {found[0].media[at : at + 16] for at in range(0, len(found[0].media), 16)}
    assert len(rows) == PAGE_SIZE + 1, "each row another; text has none"


def test_a_pass_whose_first_pages_are_there_carries_the_other_rows() -> None:
    embeds = [u32(1, 2, 5).tobytes(), b"AAAAbbbbCCCC", b"112233"]
    assert without_first(embeds, 0) == embeds
    assert without_first(embeds, 2) == [u32(0, 3).tobytes(), b"bbbbCCCC", b"2233"]
    assert without_first(embeds, 6) == without_first([], 3) == []


def test_an_image_that_nobody_takes_is_let_go() -> None:
    bench = make()
    handlers, queue = bench.handlers, bench.handlers.queues.create("")
    early, late = (handlers.embeds.image(queue, GIVEN) for _ in range(2))
    handlers.tickets.flush()
    handlers.tickets.cancel(u32(early))
    for ticket in (early, late):
        bench.answer(Completed(NUMBER << 32 | ticket, answer(3)))
    assert bench.parts.tables.embeds.num_bytes > 0
    handlers.tickets.cancel(u32(late))
    assert bench.parts.tables.embeds.num_bytes == 0


def test_what_goes_wrong_with_an_image_is_its_own_error() -> None:
    bench = make(Limits(message_bytes=100, embed_bytes=1000))
    handlers, queue = bench.handlers, bench.handlers.queues.create("")
    with pytest.raises(QuotaExceeded, match="message_bytes"):
        handlers.embeds.image(queue, "A" * 104)
    with pytest.raises(InvalidRequest, match="base64"):
        handlers.embeds.image(queue, "no base64")
    with pytest.raises(BadHandle):
        handlers.embeds.image(77, GIVEN)
    damaged, large = (handlers.embeds.image(queue, GIVEN) for _ in range(2))
    handlers.tickets.flush()
    bench.answer(Failed(NUMBER << 32 | damaged, "invalid", "the image is damaged"))
    bench.answer(Completed(NUMBER << 32 | large, answer(40)))
    with pytest.raises(InvalidRequest, match="damaged"):
        handlers.tickets.take_tokens(damaged)
    with pytest.raises(QuotaExceeded, match="embed_bytes: the limit is 1000"):
        handlers.tickets.take_tokens(large)
    assert bench.parts.tables.embeds.num_bytes == 0


def test_rows_are_known_from_the_size_and_a_model_that_does_not_see_says_so() -> None:
    handlers = make().handlers
    assert handlers.embeds.image_rows("", 56, 56) == 4
    assert handlers.embeds.image_rows("", 10000, 10000) <= 1280
    with pytest.raises(InvalidRequest, match="at least 1 x 1 pixels; given 0 x 5"):
        handlers.embeds.image_rows("", 0, 5)
    with pytest.raises(InvalidRequest, match="200 times"):
        handlers.embeds.image_rows("", 1, 1000)
    blind = make(rules=None).handlers
    for call in (lambda: blind.embeds.image_rows("", 5, 5), lambda: blind.embeds.image(1, GIVEN)):
        with pytest.raises((Unsupported, BadHandle)):
            call()
    with pytest.raises(Unsupported, match="does not see images"):
        blind.embeds.image(blind.queues.create(""), GIVEN)
