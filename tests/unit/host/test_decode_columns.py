"""Passes of one token travel as columns, and nothing of an inferlet overtakes anything else of it."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
from groups import Group, until
from hypothesis import given
from hypothesis import strategies as st

from pieray.host.device.decodes import HeldDecodes, columns, is_decode
from pieray.messages import CopyTokens, DecodePasses, Entropy, Forward, Message, OpenInferlet, Sample, Sampler


def u4(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def decode(inferlet: int, ticket: int, sampler: Sampler | None = None, **more: object) -> Forward:
    fields = {
        "pages": u4(3, 5),
        "kv_len": 17,
        "tokens": u4(ticket),
        "positions": b"",
        "mask": b"",
        "outputs": [Sample(0, sampler or Sampler(), inferlet << 32 | ticket + 1)],
    } | more
    return Forward(inferlet << 32 | ticket, inferlet, 4, -2, **fields)  # type: ignore[arg-type]


def numbers(column: bytes, kind: str = "<u4") -> list[int]:
    return np.frombuffer(column, kind).tolist()


def test_columns_say_what_the_passes_say() -> None:
    hot = Sampler(1.0, seed=3)
    passes = [decode(1, 10), decode(1, 12, hot, adapter=9), decode(2, 7, positions=u4(99), kv_len=4, pages=u4(8))]
    found = columns(passes)
    assert numbers(found.tickets, "<u8") == [1 << 32 | 10, 1 << 32 | 12, 2 << 32 | 7]
    assert numbers(found.sample_tickets, "<u8") == [1 << 32 | 11, 1 << 32 | 13, 2 << 32 | 8]
    assert (numbers(found.queues), numbers(found.priorities, "<i4")) == ([4, 4, 4], [-2, -2, -2])
    assert (numbers(found.kv_lens), numbers(found.positions)) == ([17, 17, 4], [17, 17, 99])
    assert (numbers(found.tokens), numbers(found.adapters)) == ([10, 12, 7], [0, 9, 0])
    assert (numbers(found.num_pages), numbers(found.pages)) == ([2, 2, 1], [3, 5, 3, 5, 8])
    assert (found.samplers, numbers(found.sampler_of)) == ([Sampler(), hot], [0, 1, 0])


def test_what_is_no_row() -> None:
    assert is_decode(decode(1, 1))
    for more in (
        {"tokens": u4(1, 2)},
        {"mask": b"\1"},
        {"embeds": [u4(0), b"1234"]},
        {"outputs": []},
        {"outputs": [Entropy(0, 3)]},
        {"outputs": [Sample(0, Sampler(), 3), Entropy(0, 4)]},
    ):
        assert not is_decode(decode(1, 1, **more))
    assert not is_decode(OpenInferlet(1, "t"))


Act = st.tuples(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=4))


@given(st.lists(st.one_of(Act, st.just(None)), max_size=40))
def test_each_inferlets_messages_keep_their_order(acts: list[tuple[int, list[bool]] | None]) -> None:
    held, sent, given_out = HeldDecodes(), defaultdict(list), defaultdict(list)
    count = 0

    def arrive(inferlet: int, messages: list[Message]) -> None:
        sent[inferlet] += [message.ticket & 0xFFFFFFFF for message in messages]  # type: ignore[attr-defined]

    for act in [*acts, None]:
        if act is None:
            for inferlet, passes in held.take():
                arrive(inferlet, passes)
            continue
        inferlet, kinds = act
        messages: list[Message] = []
        for is_row in kinds:
            count += 1
            given_out[inferlet].append(count)
            ticket = inferlet << 32 | count
            messages.append(decode(inferlet, count) if is_row else CopyTokens(ticket, inferlet, 4, 0, []))
        arrive(inferlet, list(held.split(inferlet, messages)))
    assert sent == given_out


def test_a_flush_sends_one_message_for_all_inferlets() -> None:
    group = Group(8)
    frames: list[list[Message]] = []

    def heard(_conn: object, messages: list[Message]) -> None:
        frames.append(messages)

    group.batcher.on_messages = heard  # type: ignore[method-assign]
    client = group.client("a")
    try:
        for inferlet in (1, 2, 3):
            client.post([CopyTokens(inferlet << 32, inferlet, 4, 0, []), decode(inferlet, 5)])
        client.post([decode(2, 7)])
        client.post([CopyTokens(3 << 32, 3, 4, 0, [])])
        client.flush()
        until(lambda: len(frames) == 1)
        kinds = [type(message).__name__ for message in frames[0]]
        assert kinds == ["CopyTokens"] * 3 + ["Forward", "CopyTokens", "DecodePasses"]
        assert frames[0][3] == decode(3, 5), "what its inferlet posted behind it does not overtake it"
        rows = frames[0][-1]
        assert isinstance(rows, DecodePasses)
        assert [ticket >> 32 for ticket in numbers(rows.tickets, "<u8")] == [1, 2, 2]
        client._batcher._lanes._lanes[1] = deque()  # inferlet 1 has a part under way
        client.post([decode(1, 9)])
        client.post([decode(2, 9)])
        client.flush()
        until(lambda: len(frames) == 3)
        assert [decode(1, 9)] in frames, "in its lane, behind what waits there"
        (rows,) = frames[1] if frames[2] == [decode(1, 9)] else frames[2]
        assert isinstance(rows, DecodePasses)
        assert numbers(rows.tickets, "<u8") == [2 << 32 | 9]
    finally:
        group.close()
