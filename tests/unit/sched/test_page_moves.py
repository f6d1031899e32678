"""Pages that leave a batcher for another one, and arrive: in order among other commands, whole, and checked."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import numpy as np
import pytest

from pieray.errors import InvalidRequest
from pieray.messages import Completed, Failed, Forward, Message, ReadPages, Sample, WritePages
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from tests.support.digest_runner import DigestRunner, reference

PAGE = 4
NBYTES = 200


class Runner(DigestRunner):
    """A page's bytes are what its slots hold, as JSON of one length."""

    def __init__(self) -> None:
        super().__init__(PAGE)
        self.moved: list[int] = []

    def read_pages(self, pages):
        self.moved.append(len(pages))
        held = ([self.slots.get((page, offset)) for offset in range(PAGE)] for page in pages.tolist())
        return b"".join(json.dumps(one).encode().ljust(NBYTES) for one in held)

    def write_pages(self, pages, data):
        if len(data) != NBYTES * len(pages):
            raise InvalidRequest(f"{len(pages)} pages hold {NBYTES * len(pages)} bytes; given {len(data)}")
        self.moved.append(len(pages))
        for place, page in enumerate(pages.tolist()):
            for offset, held in enumerate(json.loads(data[place * NBYTES : (place + 1) * NBYTES])):
                if held is not None:
                    self.slots[page, offset] = tuple(held)


class Desk:
    def __init__(self, **options: int) -> None:
        self.runner = Runner()
        self.core = BatcherCore(self.runner, ModelSettings(page_size=PAGE), **options)
        self.answers: dict[int, Any] = {}

    def submit(self, *messages: Message) -> None:
        self.note(self.core.submit("p", messages, 0.0))

    def run(self) -> int:
        count = 0
        while self.core.has_work:
            self.note(self.core.step(0.0))
            count += 1
        return count

    def note(self, answers: list[tuple[str, Message]]) -> None:
        for _, message in answers:
            assert isinstance(message, (Completed, Failed))
            assert message.ticket not in self.answers
            failure = isinstance(message, Failed)
            self.answers[message.ticket] = (message.code, message.message) if failure else message.value


def u32(*numbers: int) -> bytes:
    return np.array(numbers, "<u4").tobytes()


def read(ticket: int, *pages: int) -> ReadPages:
    return ReadPages(ticket, 1, 0, 0, u32(*pages))


def write(ticket: int, pages: list[int], data: bytes, checksum: int | None = None) -> WritePages:
    return WritePages(ticket, 1, 0, 0, u32(*pages), data, zlib.crc32(data) if checksum is None else checksum)


def forward(ticket: int, tokens: list[int], pages: list[int], kv_len: int = 0, sample: int = 0) -> Forward:
    outputs = [Sample(len(tokens) - 1, ticket=sample)] if sample else []
    return Forward(ticket, 1, 1, 0, u32(*pages), kv_len, u32(*tokens), b"", b"", outputs)


def test_what_leaves_one_batcher_goes_on_in_another_as_if_it_had_stayed() -> None:
    here, there = Desk(), Desk()
    text = list(range(20, 30))
    there.submit(forward(1, text, [3, 5, 7]))
    there.run()
    there.submit(read(2, 3, 5, 7))
    there.run()
    data, checksum = there.answers[2]
    here.submit(write(1, [9, 8, 4], data, checksum), forward(2, [40], [9, 8, 4], kv_len=10, sample=3))
    here.run()
    assert here.answers[1] is None
    assert np.frombuffer(here.answers[3], "<u4").tolist() == reference([*text, 40], 1)


def test_a_long_move_is_cut_over_steps() -> None:
    desk = Desk(max_swap_pages=3)
    desk.submit(read(1, *range(8)))
    assert desk.run() == 3
    assert desk.runner.moved == [3, 3, 2]
    data, checksum = desk.answers[1]
    assert len(data) == 8 * NBYTES
    desk.submit(write(2, list(range(10, 18)), data, checksum))
    assert desk.run() == 3
    assert desk.answers[2] is None


def test_a_read_waits_for_what_its_inferlet_writes_there() -> None:
    desk = Desk()
    desk.submit(forward(1, [20, 21, 22, 23], [3]), read(2, 3))
    desk.run()
    assert json.loads(desk.answers[2][0]) == [list(desk.runner.slots[3, offset]) for offset in range(PAGE)]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (write(5, [1, 2], b"x" * 400, 7), "has changed on its way"),
        (write(5, [1, 2], b"x" * 399), "given 399 bytes for 2 pages"),
        (write(5, [1, 1], b"x" * 400), "1 of them distinct"),
        (write(5, [], b""), "given 0 bytes for 0 pages"),
        (write(5, [1, 2], b"x" * 40), "2 pages hold 400 bytes; given 40"),
        (WritePages(5, 1, 0, 0, b"abc", b"", 0), "malformed command"),
        (WritePages(5, 1, 0, 0, u32(1), None, 0), "malformed command"),  # type: ignore[arg-type]
        (ReadPages(5, 1, 0, 0, b"abc"), "malformed command"),
    ],
)
def test_a_wrong_move_fails_alone(message: Message, text: str) -> None:
    desk = Desk()
    desk.submit(message, forward(6, [20], [3]))
    desk.run()
    code, found = desk.answers[5]
    assert code == "invalid"
    assert re.search(text, found)
    assert desk.answers[6] is None
