"""Structured events and files between an inferlet and its client: handlers, SDK, uploads, the client's handle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes import Bench
from sdk import SdkBench

import inferlet
from inferlet import scratch, session
from pieray.client.link import _text
from pieray.client.process import Event, received_files
from pieray.config import Limits
from pieray.errors import Cancelled, InvalidRequest, NotFound, QuotaExceeded
from pieray.host.session.files import MAX_UNREAD, Uploads
from pieray.host.session.session import FILE_PART_BYTES
from pieray.messages import SendFile


@pytest.fixture
def bench() -> Iterator[SdkBench]:
    session._left.clear()
    session._left_files.clear()
    bench = SdkBench()
    yield bench
    bench.close()


def test_a_structured_event_is_a_name_and_a_value(bench: SdkBench) -> None:
    session.emit("progress", {"done": 0.5, "ä": [None, "\ud800"]})
    session.emit('q"uote')
    told = [(kind, json.loads(text)) for kind, text in bench.events()]
    assert told == [
        ("data", {"name": "progress", "value": {"done": 0.5, "ä": [None, "\ud800"]}}),
        ("data", {"name": 'q"uote', "value": None}),
    ]
    for bad in (float("nan"), object(), {1: {2}}):
        with pytest.raises(inferlet.InvalidRequest, match="JSON"):
            session.emit("x", bad)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "1"),
        ("x" * 129, "1"),
        ("a\nb", "1"),
        ("a", ""),
        ("a", "{"),
        ("a", "NaN"),
        ("a", "1}, {"),
        ("a", "[" * 100_000),
    ],
)
def test_a_guest_cannot_emit_what_is_no_event(name: str, value: str) -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest):
        bench.handlers.session.emit(name, value)
    assert bench.events() == []


def test_events_count_as_output() -> None:
    bench = Bench(Limits(output_bytes=100, tokenize_bytes=50))
    bench.handlers.session.emit("a", '"' + "x" * 40 + '"')
    with pytest.raises(QuotaExceeded, match="output_bytes: the limit is 100"):
        bench.handlers.session.emit("a", '"' + "x" * 40 + '"')
    with pytest.raises(QuotaExceeded, match="tokenize_bytes: the limit is 50"):
        bench.handlers.session.emit("a", '"' + "x" * 50 + '"')


def files_of(bench: Bench) -> dict[str, bytes]:
    events = [Event(kind, _text(payload), i) for i, (kind, payload) in enumerate(bench.events())]
    return {f.name: f.data for f in received_files(events)}


def test_a_file_of_the_scratch_folder_reaches_the_client_in_parts(bench: SdkBench) -> None:
    data = bytes(range(256)) * (FILE_PART_BYTES // 128) + b"end"
    scratch.write("out/big", data)
    scratch.write("out/empty", b"")
    session.send_file("out/big")
    session.send_file("out/empty")
    assert [kind for kind, _ in bench.events()] == ["file"] * 4
    assert files_of(bench) == {"out/big": data, "out/empty": b""}
    with pytest.raises(inferlet.NotFound):
        session.send_file("nothing")


def test_a_file_over_the_limit_is_sent_not_even_in_part() -> None:
    bench = Bench(Limits(output_bytes=FILE_PART_BYTES))
    bench.parts.scratch.write("a", bytes(FILE_PART_BYTES + 1))
    with pytest.raises(QuotaExceeded, match="output_bytes"):
        bench.handlers.session.send_file("a")
    with pytest.raises(NotFound):
        bench.handlers.session.send_file("b")
    with pytest.raises(InvalidRequest):
        bench.handlers.session.send_file("../a")
    assert bench.events() == []


def test_files_of_the_client_are_received_in_order_before_and_after_they_are_asked_for(bench: SdkBench) -> None:
    bench.parts.files.put("a.txt", b"1")

    async def main() -> list[Any]:
        found = [await session.receive_file()]
        with pytest.raises(inferlet.DeadlineExceeded, match="no file from the client within 0.01 s"):
            await session.receive_file(timeout=0.01)
        bench.parts.files.put("a.txt", b"2")  # the receive that gave up is taken over: nothing is lost
        bench.parts.files.put("sub/b.txt", b"3")
        return [*found, await session.receive_file(), await session.receive_file()]

    paths = bench.run(main())
    assert paths == ["in/a.txt", "in/a-2.txt", "in/sub/b.txt"]
    assert [scratch.read(path) for path in paths] == [b"1", b"2", b"3"]


def test_a_cancelled_receive_leaves_the_file_to_the_next() -> None:
    bench = Bench()
    first, second = bench.handlers.session.receive_file(), bench.handlers.session.receive_file()
    bench.handlers.tickets.cancel(np.array([first], np.uint32))
    bench.parts.files.put("a", b"")
    assert bench.handlers.tickets.take_text(second) == "in/a"
    assert len(bench.tickets) == 0


@pytest.mark.parametrize("name", ["", "../a", "/a", "a\\b", "a\0", "x" * 300])
def test_a_name_that_is_no_path_is_refused(name: str) -> None:
    bench = Bench()
    with pytest.raises(InvalidRequest, match="a path"):
        bench.parts.files.put(name, b"")


def test_files_of_the_client_are_bounded_and_end_with_the_inferlet() -> None:
    bench = Bench(Limits(scratch_bytes=1 << 20))
    with pytest.raises(QuotaExceeded, match="scratch_bytes"):
        bench.parts.files.put("a", bytes(1 << 20))
    for i in range(MAX_UNREAD):
        bench.parts.files.put(str(i), b"")
    with pytest.raises(QuotaExceeded, match="wait unread"):
        bench.parts.files.put("more", b"")
    bench.parts.close()
    assert bench.parts.scratch.num_bytes == 0
    with pytest.raises(Cancelled):
        bench.parts.files.put("late", b"")


def part(offset: int, data: bytes, *, is_last: bool = False, name: str = "a", it: str = "it") -> SendFile:
    return SendFile(1, it, name, offset, data, is_last)


def test_parts_that_follow_each_other_are_a_file() -> None:
    uploads = Uploads()
    assert uploads.add(part(0, b"ab"), 10) is None
    assert uploads.add(part(0, b"xy", it="other"), 10) is None
    assert uploads.add(part(2, b"c"), 10) is None
    assert uploads.add(part(3, b"", is_last=True), 10) == b"abc"
    assert uploads.add(part(2, b"z", it="other", is_last=True), 10) == b"xyz"
    assert uploads.add(part(0, b"", is_last=True), 10) == b""
    assert uploads._parts == {}


@pytest.mark.parametrize("wrong", [part(1, b"c"), part(3, b"c"), part(2, b"c", name="b"), part(1 << 40, b"c")])
def test_parts_that_do_not_follow_are_refused_and_forgotten(wrong: SendFile) -> None:
    uploads = Uploads()
    uploads.add(part(0, b"ab"), 10)
    with pytest.raises(InvalidRequest, match="byte 2 of 'a' is next"):
        uploads.add(wrong, 10)
    assert uploads._parts == {}
    uploads.add(part(0, b"ab"), 10)
    with pytest.raises(QuotaExceeded, match="scratch_bytes: the limit is 10"):
        uploads.add(part(2, bytes(9)), 10)


def test_iterating_over_the_session_gives_the_clients_messages(bench: SdkBench) -> None:
    for text in ("a", "b", "end"):
        bench.mailbox.put(text)

    async def main() -> list[str]:
        found = []
        async for text in session:  # type: ignore[attr-defined]
            if text == "end":
                break
            found.append(text)
        return found

    assert bench.run(asyncio.wait_for(main(), 10)) == ["a", "b"]
