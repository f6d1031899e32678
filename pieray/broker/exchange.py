"""Queues and topics of all tenants: names, callers, deadlines, peers that die."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from pieray.broker.buffer import TEXT_OVERHEAD, Answer, Bounds, Caller, Text, Usage, cost_of
from pieray.broker.deadlines import Deadlines
from pieray.broker.queues import Queue
from pieray.broker.topics import Subscription, Topic
from pieray.errors import BadHandle, QuotaExceeded


class _Place(Protocol):
    """Where a request is."""

    def withdraw(self, caller: Caller) -> list[Answer]: ...
    def settle(self, caller: Caller, is_taken: bool) -> list[Answer]: ...
    def expire(self, caller: Caller) -> list[Answer]: ...


class Exchange:
    """Requests in, answers out; each request is answered exactly once.

    A text that a pull was given stays in its queue, out of reach, until the pull settles: it is gone once taken; not
    taken, or its peer dead, it is back at its old place for the next pull.  So a text is lost only with the Broker, and
    given twice only if a peer dies between taking it and saying so.  Not thread-safe.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._usage = Usage(bounds)
        self._queues: dict[tuple[str, str], Queue] = {}
        self._topics: dict[tuple[str, str], Topic] = {}
        self._subscriptions: dict[str, dict[int, Subscription]] = {}  # by peer and its number
        self._places: dict[str, dict[int, tuple[Caller, _Place]]] = {}  # by peer and ticket
        self._deadlines = Deadlines()
        self._numbers = itertools.count(1)

    # --- requests ------------------------------------------------------------------------------

    def push(self, caller: Caller, tenant: str, name: str, text: str, deadline: float) -> list[Answer]:
        """A `deadline` of `expire`'s clock; -inf: now or never."""
        return self._send(caller, self._queue(tenant, name), text, deadline)

    def pull(self, caller: Caller, tenant: str, name: str) -> list[Answer]:
        return self._take(caller, self._queue(tenant, name))

    def broadcast(self, caller: Caller, tenant: str, name: str, text: str, deadline: float) -> list[Answer]:
        """As `push`, to every subscription or none."""
        return self._send(caller, self._topic(tenant, name), text, deadline)

    def subscribe(self, caller: Caller, tenant: str, name: str, number: int) -> list[Answer]:
        """`number` is the peer's own for the new subscription."""
        mine = self._subscriptions.setdefault(caller.peer, {})
        assert number not in mine, f"{caller.peer} has a subscription {number} already"
        mine[number] = self._topic(tenant, name).subscribe(caller)
        return [(caller, None)]

    def next(self, caller: Caller, number: int) -> list[Answer]:
        found = self._subscriptions.get(caller.peer, {}).get(number)
        if found is None:
            return [(caller, BadHandle("the subscription is closed"))]
        return self._take(caller, found)

    def unsubscribe(self, peer: str, number: int) -> list[Answer]:
        found = self._subscriptions.get(peer, {}).pop(number, None)
        if found is None:
            return []
        for caller in found.buffer.callers():
            self._leave(caller)
        return self._noted(found, found.topic.unsubscribe(found))

    def withdraw(self, peer: str, ticket: int) -> list[Answer]:
        """The request is not wanted any more."""
        found = self._places.get(peer, {}).get(ticket)
        return [] if found is None else self._noted(found[1], found[1].withdraw(found[0]))

    def settle(self, peer: str, ticket: int, is_taken: bool) -> list[Answer]:
        """What became of the text that the pull was given."""
        found = self._places.get(peer, {}).get(ticket)
        if found is None:
            return []
        caller, place = found
        self._leave(caller)
        return self._noted(place, place.settle(caller, is_taken))

    def drop_peer(self, peer: str) -> list[Answer]:
        """The peer is dead: what it waits for is withdrawn, what it was given and has not settled goes back."""
        return [answer for answers in self.dropping(peer) for answer in answers]

    def dropping(self, peer: str) -> Iterator[list[Answer]]:
        """`drop_peer` step by step; the answers of each.  Others may be served between the steps."""
        steps: list[Callable[[], list[Answer]]] = [
            # the last first: else it might yet get its room
            *(partial(self.withdraw, peer, ticket) for ticket in reversed(list(self._places.get(peer, {})))),
            *(partial(self.unsubscribe, peer, number) for number in list(self._subscriptions.get(peer, {}))),
        ]
        for step in steps:
            yield _to_others(peer, step())
        self._subscriptions.pop(peer, None)
        for ticket in list(self._places.get(peer, {})):
            yield _to_others(peer, self.settle(peer, ticket, is_taken=False))

    def expire(self, now: float, most: int = 1 << 30) -> list[Answer]:
        """End up to `most` of those that have waited until their deadline."""
        answers: list[Answer] = []
        for caller in self._deadlines.expired(now, most):
            found = self._places.get(caller.peer, {}).get(caller.ticket)
            if found is not None:  # else it got its room from one that has just ended
                answers += self._noted(found[1], found[1].expire(caller))
        return answers

    def next_deadline(self) -> float | None:
        return self._deadlines.next()

    # --- inside --------------------------------------------------------------------------------

    def _queue(self, tenant: str, name: str) -> Queue:
        found = self._queues.get((tenant, name))
        if found is None:
            found = self._queues[tenant, name] = Queue(tenant, name, self._bounds, self._usage)
        return found

    def _topic(self, tenant: str, name: str) -> Topic:
        found = self._topics.get((tenant, name))
        if found is None:
            found = self._topics[tenant, name] = Topic(tenant, name, self._bounds, self._usage)
        return found

    def _send(self, caller: Caller, place: Queue | Topic, text: str, deadline: float) -> list[Answer]:
        entry = Text(next(self._numbers), text, cost_of(text))
        self._enter(caller, place)
        try:
            answers = self._noted(place, place.send(caller, entry))
        except QuotaExceeded as error:
            return self._noted(place, [(caller, error)])
        if not place.is_waiting(caller):
            return answers
        if deadline == -math.inf:
            return [*answers, *self._noted(place, place.expire(caller))]
        self._deadlines.add(caller, deadline)
        return answers

    def _take(self, caller: Caller, place: Queue | Subscription) -> list[Answer]:
        self._enter(caller, place)
        return self._noted(place, place.pull(caller))

    def _enter(self, caller: Caller, place: _Place) -> None:
        mine = self._places.setdefault(caller.peer, {})
        assert caller.ticket not in mine, f"{caller} is here already"
        mine[caller.ticket] = (caller, place)

    def _leave(self, caller: Caller) -> None:
        self._deadlines.remove(caller)
        mine = self._places.get(caller.peer, {})
        mine.pop(caller.ticket, None)
        if not mine:
            self._places.pop(caller.peer, None)

    def _noted(self, place: _Place, answers: list[Answer]) -> list[Answer]:
        """The answers; who has got one leaves, unless it is a text: that is not settled yet."""
        for caller, result in answers:
            if not isinstance(result, str):
                self._leave(caller)
        if isinstance(place, Queue):
            if place.is_idle:
                self._queues.pop((place.tenant, place.name), None)
            return answers
        topic = place.topic if isinstance(place, Subscription) else place
        if isinstance(topic, Topic) and topic.is_idle:
            self._topics.pop((topic.tenant, topic.name), None)
        return answers

    # --- facts ---------------------------------------------------------------------------------

    @property
    def num_texts_at_most(self) -> int:
        """A bound on the texts that there are."""
        return sum(self._usage.by_tenant.values()) // TEXT_OVERHEAD

    def status(self) -> dict[str, int]:
        """Numbers of queues, topics, subscriptions and requests, and the bytes of texts."""
        return {
            "queues": len(self._queues),
            "topics": len(self._topics),
            "subscriptions": sum(len(mine) for mine in self._subscriptions.values()),
            "requests": sum(len(mine) for mine in self._places.values()),
            "bytes": sum(self._usage.by_tenant.values()),
        }

    def check(self) -> None:
        """Bytes by tenant are those in its queues and topics; nobody waits without need; AssertionError if not."""
        found: Counter[str] = Counter()
        places: list[Queue | Topic] = [*self._queues.values(), *self._topics.values()]
        for place in places:
            place.check()
            assert not place.is_idle, f"{place.name!r} is idle and still here"
            found[place.tenant] += place.cost
        assert +found == Counter(self._usage.by_tenant), f"{found} found, {self._usage.by_tenant} counted"
        waiting = {caller for place in places for caller in place.callers()}
        entered = {caller for mine in self._places.values() for caller, _ in mine.values()}
        assert waiting == entered, f"{waiting ^ entered} are in one of queues and places alone"


def _to_others(peer: str, answers: list[Answer]) -> list[Answer]:
    return [(caller, result) for caller, result in answers if caller.peer != peer]
