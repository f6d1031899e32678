"""PendingCalls: every call ends exactly once."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence

import pytest

from pieray.errors import Cancelled, DeadlineExceeded, InvalidRequest, OutOfPages, PeerLost, PierayError
from pieray.messages import CloseLease, Completed, Failed, LeasePages, Message
from pieray.transport import Connection, PendingCalls


class Wire(Connection):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__(None, peer_id="ledger", role="inferlets", incarnation=1)  # type: ignore[arg-type]
        self.sent: list[Message] = []

    def send(self, messages: Sequence[Message], *, lane: Hashable = None) -> None:
        if not self.is_open:
            raise PeerLost("closed")
        self.sent += messages

    num_unsent = 0

    def wait_sent(self, num_bytes: int, timeout_s: float) -> int:
        return 0

    def _write(self, frame: bytes) -> None: ...
    def _shut(self) -> None: ...
    def _read(self) -> None: ...


Answers = list[tuple[object, PierayError | None]]


def lease(ticket: int) -> LeasePages:
    return LeasePages(ticket, 1, 4, 1.0)


@pytest.fixture
def answers() -> Answers:
    return []


def test_answers_reach_their_calls_in_any_order(answers: Answers) -> None:
    calls, wire = PendingCalls(), Wire()
    for name in ("first", "second"):
        calls.submit(wire, lease, lambda value, error, name=name: answers.append((name, value)))
    assert wire.sent == [lease(1), lease(2)]
    assert calls.resolve(wire, [Completed(2, b"b"), CloseLease(9), Completed(1, b"a")]) == [CloseLease(9)]
    assert answers == [("second", b"b"), ("first", b"a")]
    assert len(calls) == 0


def test_failure_keeps_its_class_and_text(answers: Answers) -> None:
    calls, wire = PendingCalls(), Wire()
    calls.submit(wire, lease, lambda value, error: answers.append((value, error)))
    calls.resolve(wire, [Failed(1, "out-of-pages", "4 asked, 0 free")])
    ((value, error),) = answers
    assert (value, type(error), str(error)) == (None, OutOfPages, "4 asked, 0 free")


def test_blocking_call_raises_what_the_peer_reported() -> None:
    calls, wire = PendingCalls(), Wire()
    threading.Timer(0.02, lambda: calls.resolve(wire, [Failed(1, "cancelled", "gone")])).start()
    with pytest.raises(Cancelled, match="gone"):
        calls.call(wire, lease, 5.0)


def test_second_answer_and_answer_of_another_connection_are_ignored(answers: Answers) -> None:
    calls, wire, stranger = PendingCalls(), Wire(), Wire()
    calls.submit(wire, lease, lambda value, error: answers.append((value, error)))
    calls.resolve(stranger, [Completed(1, b"forged")])
    calls.resolve(wire, [Completed(1, b"once"), Completed(1, b"twice"), Completed(77, b"never asked")])
    assert answers == [(b"once", None)]


def test_closing_fails_the_calls_of_that_connection_only(answers: Answers) -> None:
    calls, lost, kept = PendingCalls(), Wire(), Wire()
    for wire in (lost, lost, kept):
        calls.submit(wire, lease, lambda value, error: answers.append((value, error)))
    calls.fail_all(lost, PeerLost("killed"))
    assert [str(error) for _, error in answers] == ["killed", "killed"]
    assert len(calls) == 1


def test_forgotten_call_is_not_called_back(answers: Answers) -> None:
    calls, wire = PendingCalls(), Wire()
    ticket = calls.expect(wire, lambda value, error: answers.append((value, error)))
    assert calls.forget(ticket)
    assert not calls.forget(ticket)
    calls.resolve(wire, [Completed(ticket, None)])
    assert answers == []


def test_call_over_a_closed_connection_leaves_nothing_behind() -> None:
    calls, wire = PendingCalls(), Wire()
    wire.close()
    with pytest.raises(PeerLost):
        calls.call(wire, lease, 5.0)

    def refuse(ticket: int) -> Message:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        calls.submit(wire, refuse, lambda value, error: None)
    assert len(calls) == 0


def test_raising_callback_does_not_keep_others_from_their_answers(answers: Answers) -> None:
    calls, wire = PendingCalls(), Wire()
    calls.submit(wire, lease, lambda value, error: 1 / 0)
    calls.submit(wire, lease, lambda value, error: answers.append((value, error)))
    calls.resolve(wire, [Completed(1, None), Completed(2, b"x")])
    assert answers == [(b"x", None)]


def test_many_calls_have_an_answer_each_or_none_in_time() -> None:
    calls, wire = PendingCalls(), Wire()
    answered = [Completed(3, b"c"), Failed(1, "out-of-pages", "0 free")]
    threading.Timer(0.02, lambda: calls.resolve(wire, answered)).start()
    first, second, third = calls.call_many(wire, [lease] * 3, 0.2)
    assert wire.sent == [lease(1), lease(2), lease(3)]
    assert (first[0], str(first[1])) == (None, "0 free")
    assert isinstance(second[1], DeadlineExceeded)
    assert third == (b"c", None)
    assert len(calls) == 0


def test_many_calls_fail_with_their_connection_and_leave_nothing_behind() -> None:
    calls, wire = PendingCalls(), Wire()
    threading.Timer(0.02, lambda: calls.fail_all(wire, PeerLost("gone"))).start()
    assert [type(error) for _, error in calls.call_many(wire, [lease] * 3, 5.0)] == [PeerLost] * 3
    wire.close()
    with pytest.raises(PeerLost):
        calls.call_many(wire, [lease] * 3, 5.0)
    assert len(calls) == 0
