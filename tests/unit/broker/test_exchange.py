"""Queues and topics, without connections: exact orders, room, deadlines, deaths."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pieray.broker.buffer import TEXT_OVERHEAD, Bounds, Caller
from pieray.broker.exchange import Exchange
from pieray.errors import BadHandle, Cancelled, DeadlineExceeded, PierayError, QuotaExceeded

NEVER = math.inf
NOW = -math.inf


class Desk:
    """An exchange whose answers are kept by ticket, and whose books are checked after every call."""

    def __init__(self, **bounds: Any) -> None:
        self.exchange = Exchange(Bounds(**bounds))
        self.answers: dict[int, Any] = {}
        self.order: list[int] = []
        self.last = 0

    def _ticket(self) -> int:
        self.last += 1
        return self.last

    def note(self, answers: list[Any]) -> None:
        for caller, result in answers:
            assert caller.ticket not in self.answers, "one request, one answer"
            self.answers[caller.ticket] = result
            self.order.append(caller.ticket)
        self.exchange.check()

    def push(self, text: str, deadline: float = NEVER, *, queue: str = "q", peer: str = "a", tenant: str = "t") -> int:
        ticket = self._ticket()
        self.note(self.exchange.push(Caller(peer, ticket, f"{peer}-it"), tenant, queue, text, deadline))
        return ticket

    def pull(self, *, queue: str = "q", peer: str = "b", tenant: str = "t") -> int:
        ticket = self._ticket()
        self.note(self.exchange.pull(Caller(peer, ticket, f"{peer}-it"), tenant, queue))
        return ticket

    def broadcast(self, text: str, deadline: float = NEVER, *, peer: str = "a", tenant: str = "t") -> int:
        ticket = self._ticket()
        self.note(self.exchange.broadcast(Caller(peer, ticket, f"{peer}-it"), tenant, "topic", text, deadline))
        return ticket

    def subscribe(self, number: int, *, peer: str = "b", tenant: str = "t") -> None:
        ticket = self._ticket()
        self.note(self.exchange.subscribe(Caller(peer, ticket, f"{peer}-it"), tenant, "topic", number))
        assert self.answers[ticket] is None

    def next(self, number: int, *, peer: str = "b") -> int:
        ticket = self._ticket()
        self.note(self.exchange.next(Caller(peer, ticket, f"{peer}-it"), number))
        return ticket

    def take(self, ticket: int, peer: str = "b") -> str:
        self.note(self.exchange.settle(peer, ticket, True))
        text: str = self.answers[ticket]
        return text

    def is_waiting(self, ticket: int) -> bool:
        return ticket not in self.answers

    def error(self, ticket: int) -> PierayError:
        error = self.answers[ticket]
        assert isinstance(error, PierayError)
        return error


def test_texts_come_in_the_order_they_were_pushed() -> None:
    desk = Desk()
    pushed = [desk.push(f"m{i}") for i in range(5)]
    assert all(desk.answers[t] is None for t in pushed)
    assert [desk.take(desk.pull()) for _ in range(5)] == [f"m{i}" for i in range(5)]
    assert desk.exchange.status() == {"queues": 0, "topics": 0, "subscriptions": 0, "requests": 0, "bytes": 0}


def test_pulls_that_wait_are_served_in_order() -> None:
    desk = Desk()
    first, second = desk.pull(), desk.pull(peer="c")
    assert desk.is_waiting(first)
    desk.push("one")
    desk.push("two")
    assert (desk.answers[first], desk.answers[second]) == ("one", "two")


def test_a_full_queue_makes_pushes_wait_in_order() -> None:
    desk = Desk(num_texts=2)
    pushes = [desk.push(f"m{i}") for i in range(4)]
    assert [desk.is_waiting(t) for t in pushes] == [False, False, True, True]
    pull = desk.pull()
    assert desk.is_waiting(pushes[2])  # the text is out, and not yet taken for good
    assert desk.take(pull) == "m0"
    assert [desk.is_waiting(t) for t in pushes] == [False, False, False, True]
    assert [desk.take(desk.pull()) for _ in range(3)] == ["m1", "m2", "m3"]


def test_room_is_counted_in_bytes_and_an_empty_queue_has_room_for_any_text() -> None:
    desk = Desk(num_bytes=1000)
    assert not desk.is_waiting(desk.push("x" * 5000))
    late = desk.push("y")
    assert desk.is_waiting(late)
    desk.take(desk.pull())
    assert not desk.is_waiting(late)
    size = 1000 - 2 * TEXT_OVERHEAD - 1
    assert not desk.is_waiting(desk.push("é" * (size // 2)))
    assert desk.is_waiting(desk.push("z"))


def test_a_push_ends_at_its_deadline_and_leaves_no_trace() -> None:
    desk = Desk(num_texts=1)
    desk.push("first")
    late, later, now = desk.push("late", 5.0), desk.push("later", 9.0), desk.push("now", NOW)
    assert "queue 'q' is full: 1 texts" in desk.error(now).message
    assert desk.exchange.next_deadline() == 5.0
    desk.note(desk.exchange.expire(4.9))
    assert desk.is_waiting(late)
    desk.note(desk.exchange.expire(5.0))
    assert isinstance(desk.error(late), DeadlineExceeded)
    assert desk.take(desk.pull()) == "first"
    assert desk.answers[later] is None
    assert desk.exchange.next_deadline() is None
    assert desk.take(desk.pull()) == "later"


def test_a_text_not_taken_goes_back_to_its_place() -> None:
    desk = Desk()
    for i in range(4):
        desk.push(f"m{i}")
    pulls = [desk.pull() for _ in range(3)]
    desk.note(desk.exchange.settle("b", pulls[1], False))
    desk.note(desk.exchange.settle("b", pulls[0], False))
    assert [desk.take(desk.pull()) for _ in range(3)] == ["m0", "m1", "m3"]
    assert desk.take(pulls[2]) == "m2"


def test_a_withdrawn_pull_gets_nothing_and_a_withdrawn_push_gives_nothing() -> None:
    desk = Desk(num_texts=1)
    gone, stays = desk.pull(), desk.pull()
    desk.note(desk.exchange.withdraw("b", gone))
    assert isinstance(desk.error(gone), Cancelled)
    desk.push("one")
    assert desk.take(stays) == "one"
    desk.push("two")
    waiting = desk.push("three")
    desk.note(desk.exchange.withdraw("a", waiting))
    assert isinstance(desk.error(waiting), Cancelled)
    assert desk.take(desk.pull()) == "two"
    assert desk.is_waiting(desk.pull())
    desk.note(desk.exchange.withdraw("a", 999))


def test_a_dead_peer_gives_back_what_it_had_not_taken_and_waits_no_more() -> None:
    desk = Desk(num_texts=2)
    desk.push("one")
    desk.push("two")
    desk.pull(peer="dead")
    desk.push("never", peer="dead")
    alive = desk.push("three")
    waiting = desk.pull(queue="other", peer="dead")
    desk.note(desk.exchange.drop_peer("dead"))
    assert desk.is_waiting(waiting)  # nobody is there to be told
    desk.push("to the living", queue="other")
    assert desk.take(desk.pull(queue="other")) == "to the living"
    assert desk.is_waiting(alive)
    assert [desk.take(desk.pull()) for _ in range(3)] == ["one", "two", "three"]


def test_tenants_do_not_see_each_other() -> None:
    desk = Desk(tenant_bytes=1000)
    desk.push("mine", tenant="t")
    desk.subscribe(1, tenant="t")
    assert desk.is_waiting(desk.pull(tenant="other"))
    desk.broadcast("to nobody", tenant="other")
    assert desk.is_waiting(desk.next(1))
    refused = desk.push("x" * 600, tenant="t")
    assert isinstance(desk.error(refused), QuotaExceeded)
    assert "broker_bytes: the limit of the tenant is 1000" in desk.error(refused).message
    assert not desk.is_waiting(desk.push("x" * 600, tenant="third"))


def test_a_tenants_own_quota_takes_the_place_of_the_common_one() -> None:
    desk = Desk(tenant_bytes=1000, bytes_of=lambda tenant: {"small": 500, "large": 3000}.get(tenant, 1000))
    small, large = desk.push("x" * 600, tenant="small"), desk.push("x" * 2000, tenant="large")
    assert "broker_bytes: the limit of the tenant is 500" in desk.error(small).message
    assert not desk.is_waiting(large)
    assert isinstance(desk.error(desk.push("x" * 2000, tenant="other")), QuotaExceeded)


def test_every_subscription_gets_every_text_in_order() -> None:
    desk = Desk()
    desk.broadcast("before anybody")
    desk.subscribe(1)
    desk.subscribe(1, peer="c")
    desk.broadcast("one")
    desk.subscribe(2)
    desk.broadcast("two")
    assert [desk.take(desk.next(1)) for _ in range(2)] == ["one", "two"]
    assert [desk.take(desk.next(1, peer="c"), "c") for _ in range(2)] == ["one", "two"]
    assert desk.take(desk.next(2)) == "two"
    waiting = [desk.next(2), desk.next(2)]
    desk.broadcast("three")
    desk.broadcast("four")
    assert [desk.answers[t] for t in waiting] == ["three", "four"]


def test_a_broadcast_reaches_all_or_none() -> None:
    desk = Desk(num_texts=1)
    desk.subscribe(1)
    desk.subscribe(1, peer="slow")
    desk.broadcast("one")
    desk.take(desk.next(1))
    refused = desk.broadcast("two", NOW)
    assert "inferlet slow-it has 1 texts" in desk.error(refused).message
    late = desk.broadcast("three", 5.0)
    behind = desk.broadcast("four", 9.0)
    quick = desk.next(1)
    assert desk.is_waiting(quick)  # it has room, the other has not
    desk.note(desk.exchange.expire(5.0))
    assert isinstance(desk.error(late), DeadlineExceeded)
    assert desk.is_waiting(behind)
    assert desk.take(desk.next(1, peer="slow"), "slow") == "one"
    assert desk.answers[behind] is None
    assert desk.answers[quick] == "four"
    assert desk.take(desk.next(1, peer="slow"), "slow") == "four"


def test_a_subscription_that_closes_or_dies_holds_nobody_up() -> None:
    for end in ("unsubscribe", "die"):
        desk = Desk(num_texts=1)
        desk.subscribe(1)
        desk.subscribe(7, peer="slow")
        desk.broadcast("one")
        waiting = desk.broadcast("two")
        desk.take(desk.next(1))
        assert desk.is_waiting(waiting)
        last = desk.exchange.unsubscribe("slow", 7) if end == "unsubscribe" else desk.exchange.drop_peer("slow")
        desk.note(last)
        assert desk.answers[waiting] is None
        assert desk.take(desk.next(1)) == "two"


def test_a_closed_subscription_answers_who_waits_and_who_asks_again() -> None:
    desk = Desk()
    desk.subscribe(1)
    waiting = desk.next(1)
    desk.note(desk.exchange.unsubscribe("b", 1))
    assert isinstance(desk.error(waiting), Cancelled)
    assert isinstance(desk.error(desk.next(1)), BadHandle)
    assert isinstance(desk.error(desk.next(1, peer="c")), BadHandle)  # nor is it another peer's
    desk.note(desk.exchange.unsubscribe("b", 1))


def test_a_later_subscription_does_not_get_what_waited_before_it() -> None:
    desk = Desk(num_texts=1)
    desk.subscribe(1)
    desk.broadcast("one")
    desk.broadcast("two")
    desk.subscribe(2)
    assert [desk.take(desk.next(1)) for _ in range(2)] == ["one", "two"]
    assert desk.is_waiting(desk.next(2))


def test_broadcasts_count_once_for_each_subscription() -> None:
    desk = Desk(tenant_bytes=2 * TEXT_OVERHEAD + 2)
    desk.subscribe(1)
    desk.subscribe(2)
    assert desk.answers[desk.broadcast("x")] is None
    assert isinstance(desk.error(desk.broadcast("x")), QuotaExceeded)
    desk.take(desk.next(1))
    desk.take(desk.next(2))
    assert desk.answers[desk.broadcast("x")] is None


def test_deadlines_of_requests_that_have_ended_are_not_kept() -> None:
    desk = Desk(num_texts=1)
    desk.push("full")
    for i in range(1000):
        desk.note(desk.exchange.withdraw("a", desk.push("x", 1e6 + i)))
    assert len(desk.exchange._deadlines._heap) < 40


@pytest.mark.parametrize("room", [1, 3])
def test_a_pull_that_waits_makes_room_beyond_the_bounds(room: int) -> None:
    """Else texts that are out and not settled could keep a waiting reader from the next one for ever."""
    desk = Desk(num_texts=room)
    pulls = [desk.pull() for _ in range(5)]
    for i in range(5):
        assert not desk.is_waiting(desk.push(f"m{i}"))
    assert [desk.answers[t] for t in pulls] == [f"m{i}" for i in range(5)]
