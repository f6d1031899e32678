"""A topic: every subscription gets every text, in order; a broadcast reaches all subscriptions or none."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pieray.broker.buffer import Answer, Bounds, Buffer, Caller, Text, Usage
from pieray.errors import Cancelled, DeadlineExceeded


class Subscription:
    """What one subscriber has not read yet."""

    def __init__(self, topic: Topic, owner: Caller, buffer: Buffer) -> None:
        self.topic = topic
        self.owner = owner
        self.buffer = buffer

    def pull(self, caller: Caller) -> list[Answer]:
        return [*self.buffer.pull(caller), *self.topic.admit()]

    def withdraw(self, caller: Caller) -> list[Answer]:
        return self.buffer.withdraw(caller)

    def settle(self, caller: Caller, is_taken: bool) -> list[Answer]:
        return [*self.buffer.settle(caller, is_taken), *self.topic.admit()]

    def expire(self, caller: Caller) -> list[Answer]:
        raise AssertionError(f"{caller} waits for a text: that has no deadline")


@dataclass(eq=False, slots=True)
class _Broadcast:
    text: Text
    targets: dict[Subscription, None]  # those that there were when it came, as far as they are still there


class Topic:
    """Subscriptions of one name, and broadcasts that wait until all of their subscriptions have room.

    Broadcasts keep their order: one that waits holds up those behind it.  `usage` counts a text once for each
    subscription that it is for.
    """

    def __init__(self, tenant: str, name: str, bounds: Bounds, usage: Usage) -> None:
        self.tenant = tenant
        self.name = name
        self._bounds = bounds
        self._usage = usage
        self._subscriptions: dict[Subscription, None] = {}
        self._broadcasts: OrderedDict[Caller, _Broadcast] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        return not (self._subscriptions or self._broadcasts)

    def subscribe(self, owner: Caller) -> Subscription:
        found = Subscription(self, owner, Buffer(self._bounds, lambda cost: self._usage.give(self.tenant, cost)))
        self._subscriptions[found] = None
        return found

    def unsubscribe(self, subscription: Subscription) -> list[Answer]:
        """Its texts are dropped, its waiting pulls end with `cancelled`, broadcasts wait for it no more."""
        del self._subscriptions[subscription]
        for waiting in self._broadcasts.values():
            if subscription in waiting.targets:
                del waiting.targets[subscription]
                self._usage.give(self.tenant, waiting.text.cost)
        return [*subscription.buffer.close("the subscription was closed"), *self.admit()]

    def send(self, caller: Caller, text: Text) -> list[Answer]:
        """For the subscriptions that there are now.  Raises QuotaExceeded."""
        targets = dict(self._subscriptions)
        if targets:
            self._usage.take(self.tenant, text.cost * len(targets))
        self._broadcasts[caller] = _Broadcast(text, targets)
        return self.admit()

    def is_waiting(self, caller: Caller) -> bool:
        return caller in self._broadcasts

    def callers(self) -> list[Caller]:
        """Who waits, and who has not settled."""
        return [*self._broadcasts, *(c for s in self._subscriptions for c in s.buffer.callers())]

    def withdraw(self, caller: Caller) -> list[Answer]:
        """A waiting broadcast ends with `cancelled`; nobody has got it."""
        if caller not in self._broadcasts:
            return []
        return self._end(caller, Cancelled("the request was withdrawn"))

    def settle(self, caller: Caller, is_taken: bool) -> list[Answer]:
        raise AssertionError(f"{caller} has broadcast: there is nothing to settle ({is_taken})")

    def expire(self, caller: Caller) -> list[Answer]:
        """The time of a waiting broadcast is over; nobody has got it."""
        waiting = self._broadcasts[caller]
        slow = next((s for s in waiting.targets if not s.buffer.has_room(waiting.text.cost)), None)
        why = (
            "earlier broadcasts were in its way"
            if slow is None
            else (
                f"inferlet {slow.owner.inferlet} has {slow.buffer.num_texts} texts of {slow.buffer.cost} bytes unread"
            )
        )
        return self._end(caller, DeadlineExceeded(f"topic {self.name!r}: {why}; nobody has got this one"))

    def _end(self, caller: Caller, error: Cancelled | DeadlineExceeded) -> list[Answer]:
        waiting = self._broadcasts.pop(caller)
        if waiting.targets:
            self._usage.give(self.tenant, waiting.text.cost * len(waiting.targets))
        return [(caller, error), *self.admit()]

    def admit(self) -> list[Answer]:
        """Give out what all have room for, in order."""
        answers: list[Answer] = []
        while self._broadcasts:
            caller, first = next(iter(self._broadcasts.items()))
            if not all(s.buffer.has_room(first.text.cost) for s in first.targets):
                break
            del self._broadcasts[caller]
            for subscription in first.targets:
                answers += subscription.buffer.put(first.text)
            answers.append((caller, None))
        return answers

    @property
    def cost(self) -> int:
        """Bytes that count against the tenant."""
        waiting = sum(b.text.cost * len(b.targets) for b in self._broadcasts.values())
        return waiting + sum(s.buffer.cost for s in self._subscriptions)

    def check(self) -> None:
        """The books balance, and no broadcast waits for room that there is."""
        for subscription in self._subscriptions:
            subscription.buffer.check()
        first = next(iter(self._broadcasts.values()), None)
        assert first is None or not all(s.buffer.has_room(first.text.cost) for s in first.targets), "waits for nothing"
