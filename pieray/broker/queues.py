"""A queue: each text goes to one pull, in order; pushes wait for room."""

from __future__ import annotations

from collections import OrderedDict

from pieray.broker.buffer import Answer, Bounds, Buffer, Caller, Text, Usage
from pieray.errors import Cancelled, DeadlineExceeded


class Queue:
    """Pushes and pulls of one name.  `usage` counts every text from its arrival until it has been taken for good."""

    def __init__(self, tenant: str, name: str, bounds: Bounds, usage: Usage) -> None:
        self.tenant = tenant
        self.name = name
        self._usage = usage
        self._buffer = Buffer(bounds, lambda cost: usage.give(tenant, cost))
        self._pushes: OrderedDict[Caller, Text] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        return self._buffer.is_idle and not self._pushes

    def callers(self) -> list[Caller]:
        """Who waits, and who has not settled."""
        return [*self._pushes, *self._buffer.callers()]

    def send(self, caller: Caller, text: Text) -> list[Answer]:
        """Take the text in, now or when there is room.  Raises QuotaExceeded."""
        self._usage.take(self.tenant, text.cost)
        self._pushes[caller] = text
        return self._admit()

    def is_waiting(self, caller: Caller) -> bool:
        """Whether it is a push that waits."""
        return caller in self._pushes

    def pull(self, caller: Caller) -> list[Answer]:
        return [*self._buffer.pull(caller), *self._admit()]

    def withdraw(self, caller: Caller) -> list[Answer]:
        """What waits ends with `cancelled`."""
        if caller in self._pushes:
            return self._end_push(caller, Cancelled("the request was withdrawn"))
        return self._buffer.withdraw(caller)

    def settle(self, caller: Caller, is_taken: bool) -> list[Answer]:
        return [*self._buffer.settle(caller, is_taken), *self._admit()]

    def expire(self, caller: Caller) -> list[Answer]:
        """The time of a waiting push is over."""
        return self._end_push(
            caller,
            DeadlineExceeded(
                f"queue {self.name!r} is full: {self._buffer.num_texts} texts of {self._buffer.cost} bytes are in it, "
                "and none was taken in time"
            ),
        )

    def _end_push(self, caller: Caller, error: Cancelled | DeadlineExceeded) -> list[Answer]:
        """Those behind it may fit where it did not."""
        self._usage.give(self.tenant, self._pushes.pop(caller).cost)
        return [(caller, error), *self._admit()]

    def _admit(self) -> list[Answer]:
        answers: list[Answer] = []
        while self._pushes:
            caller, text = next(iter(self._pushes.items()))
            if not self._buffer.has_room(text.cost):
                break
            del self._pushes[caller]
            answers += [*self._buffer.put(text), (caller, None)]
        return answers

    @property
    def cost(self) -> int:
        """Bytes that count against the tenant."""
        return self._buffer.cost + sum(t.cost for t in self._pushes.values())

    def check(self) -> None:
        """The books balance, and no push waits for room that there is."""
        self._buffer.check()
        first = next(iter(self._pushes.values()), None)
        assert first is None or not self._buffer.has_room(first.cost), f"{first} waits for nothing"
