"""Frames: every message survives, nothing malformed passes."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray import messages as protocol
from pieray.errors import ConfigError, InvalidRequest, ProtocolError
from pieray.messages import Forward, Logprobs, Message, decode, encode
from pieray.messages import frame as message_frame
from pieray.transport import Endpoint, SocketOptions
from pieray.transport import frames as frames_module
from pieray.transport.frames import FrameQueue, frames_of, joined, split

CLASSES = list(message_frame._KINDS.values())
OF_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**64 - 1),
    str: st.text(max_size=20),
    bytes: st.binary(max_size=200),
    float: st.floats(allow_nan=False),
    dict[str, Any]: st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers(-9, 9), max_size=3),
    dict[str, float]: st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3),
    typing.Any: st.none() | st.binary(max_size=20) | st.text(max_size=5) | st.lists(st.binary(max_size=9), max_size=2),
    bool: st.booleans(),
    list[list[int]]: st.lists(st.lists(st.integers(0, 2**32), min_size=5, max_size=5), max_size=4),
}


def of_type(kind: Any) -> st.SearchStrategy[Any]:
    if kind not in OF_TYPE and typing.get_origin(kind) is list:
        return st.lists(of_type(typing.get_args(kind)[0]), max_size=4)
    if kind not in OF_TYPE and typing.get_args(kind):  # a union
        return st.one_of([of_type(one) for one in typing.get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, Message):  # one within another
        return of_class(kind)
    return OF_TYPE[kind]


def of_class(cls: type[Message]) -> st.SearchStrategy[Message]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: of_type(hints[field.name]) for field in dataclasses.fields(cls)})


ANY_MESSAGES = st.lists(st.one_of([of_class(cls) for cls in CLASSES]), max_size=6)


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES)
def test_every_message_type_survives(cls: type[Message]) -> None:
    @settings(max_examples=examples(10))
    @given(of_class(cls))
    def check(message: Message) -> None:
        assert decode(encode([message])) == [message]

    check()


@settings(max_examples=examples(20))
@given(st.lists(ANY_MESSAGES, max_size=4))
def test_any_frames_survive_a_byte_stream(groups: list[list[Message]]) -> None:
    stream = joined([encode(group) for group in groups])
    assert [decode(frame) for frame in split(stream)] == groups


@settings(max_examples=examples(100))
@given(st.binary(max_size=64))
def test_garbage_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError:
        return


@settings(max_examples=examples(20))
@given(ANY_MESSAGES, st.data())
def test_cut_stream_is_a_protocol_error(group: list[Message], data: st.DataObject) -> None:
    stream = joined([encode(group)])
    cut = data.draw(st.integers(1, len(stream) - 1))
    with pytest.raises(ProtocolError):
        list(split(stream[:cut]))


def test_too_many_messages_for_a_frame_travel_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "MAX_FRAME_BYTES", 1000)
    group: list[Message] = [Forward(n, 0, 0, 0, bytes(300), 0, b"", b"", b"", []) for n in range(10)]
    group[4] = Forward(4, 0, 0, 0, bytes(2000), 0, b"", b"", b"", [])
    made, problem = frames_of(group)
    assert all(len(frame) <= 1000 for frame in made)
    assert [message for frame in made for message in decode(frame)] == group[:4] + group[5:]
    assert isinstance(problem, InvalidRequest)


def test_queue_holds_no_more_than_its_limit() -> None:
    queue = FrameQueue(10)
    assert queue.put(bytes(30))  # an empty queue takes a frame of any size
    assert not queue.put(b"x")
    assert queue.take(max_bytes=1, timeout_s=0) == [bytes(30)]
    assert queue.put(bytes(6))
    assert queue.put(bytes(4))
    assert not queue.put(b"x")
    assert queue.take(max_bytes=9, timeout_s=0) == [bytes(6)]
    queue.close()
    assert not queue.put(b"x")
    assert queue.take(max_bytes=9, timeout_s=None) == [bytes(4)]
    assert queue.take(max_bytes=9, timeout_s=None) == []
    assert queue.num_bytes == 0


def test_endpoint_travels_as_plain_data() -> None:
    endpoint = Endpoint("socket", "batcher-0", 3, "boot", "/run/x.sock", "10.0.0.1", 4711)
    assert Endpoint.from_wire(list(endpoint.to_wire())) == endpoint
    with pytest.raises(ProtocolError, match="endpoint field 'port' is int; '4711' came"):
        Endpoint.from_wire([*endpoint.to_wire()[:6], "4711", "", "", ""])
    with pytest.raises(ProtocolError, match="10 fields; 2 came"):
        Endpoint.from_wire(("socket", "batcher-0"))


def test_options_that_would_declare_live_peers_dead_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at most half of lost_after_s \(1\.0\); 0\.8 was given"):
        SocketOptions(heartbeat_s=0.8, lost_after_s=1.0)
    with pytest.raises(ConfigError, match="max_half_open at least 1"):
        SocketOptions(max_half_open=0)


@pytest.mark.parametrize(
    "message",
    [
        protocol.Completed(1, bytes(500_000)),
        protocol.Completed(1, [bytes(300_000), bytes(300_000)]),
        protocol.SendText(1, "i", "x" * 500_000),
        protocol.PlanTokens(bytes(8), b"1", bytes(80_000), bytes(80_000), bytes(12)),
        Forward(1, 1, 0, 0, bytes(400), 0, b"", b"", bytes(200_000), [Logprobs(0, bytes(300_000))], 0, [bytes(70_000)]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_the_size_of_what_is_large_is_known_before_it_is_encoded(message: Message) -> None:
    assert protocol.size_of(message) == pytest.approx(len(encode([message])), rel=0.01)


def test_the_size_of_what_is_small_is_small() -> None:
    assert protocol.size_of(protocol.Completed(1 << 40, None)) == 0
    assert protocol.size_of(protocol.CancelInferlet(1, 2)) == 0
    assert protocol.size_of(protocol.CopyTokens(1, 1, 1, 0, [[1, 2, 3, 4, 5]] * 100)) == 0


@pytest.mark.parametrize(
    "within",
    [
        msgpack.ExtType(9, b"x"),
        msgpack.ExtType(1, b"x"),
        msgpack.ExtType(1, b""),
        msgpack.ExtType(1, msgpack.packb([])),
        msgpack.ExtType(1, msgpack.packb([103, 1])),
        msgpack.ExtType(1, msgpack.packb([9999])),
    ],
)
def test_what_is_no_message_within_another_is_a_protocol_error(within: Any) -> None:
    with pytest.raises(ProtocolError):
        decode(msgpack.packb([1, [[3, 1, within]]]))


def test_what_no_message_carries_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="given object"):
        encode([protocol.Completed(1, object())])
