"""A bounded line of texts that callers take from: what stands behind a queue and behind a subscription."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pieray.errors import Cancelled, PierayError, QuotaExceeded
from pieray.texts import byte_size

TEXT_OVERHEAD = 256
"""Counted for each text beside its own bytes: short ones take memory too."""


class Caller(NamedTuple):
    """A request that waits: who asked, and under which number."""

    peer: str
    ticket: int
    inferlet: str = ""
    tenant: str = ""


Answer: TypeAlias = tuple[Caller, str | PierayError | None]
"""What a caller is told: a text, None (done), or why not."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a tenant's texts is kept."""

    num_texts: int = 4096
    """In one queue, or unread in one subscription."""
    num_bytes: int = 16 << 20
    """Of these together; a single text may be longer."""
    tenant_bytes: int = 256 << 20
    """All texts of a tenant, those that wait for room included."""
    bytes_of: Callable[[str], int] | None = None
    """That of a tenant by name, in place of `tenant_bytes`."""


@dataclass(eq=False, frozen=True, slots=True)
class Text:
    """One text in one buffer; `number` is its place in the order of arrival."""

    number: int
    text: str
    cost: int


def cost_of(text: str) -> int:
    """Bytes that a text is counted as."""
    return TEXT_OVERHEAD + byte_size(text)


class Usage:
    """Bytes of texts that are kept, by tenant."""

    def __init__(self, bounds: Bounds) -> None:
        self._limit_of = bounds.bytes_of or (lambda _tenant: bounds.tenant_bytes)
        self.by_tenant: dict[str, int] = {}

    def take(self, tenant: str, cost: int) -> None:
        """Count `cost` more; raises QuotaExceeded naming the limit."""
        used, limit = self.by_tenant.get(tenant, 0), self._limit_of(tenant)
        if used + cost > limit:
            raise QuotaExceeded(
                f"broker_bytes: the limit of the tenant is {limit}; {used} are used by texts that "
                f"nobody has taken, {cost} more were given"
            )
        self.by_tenant[tenant] = used + cost

    def give(self, tenant: str, cost: int) -> None:
        left = self.by_tenant[tenant] - cost
        assert left >= 0, f"tenant {tenant!r} gives back {-left} bytes more than it has"
        if left:
            self.by_tenant[tenant] = left
        else:
            del self.by_tenant[tenant]


class Buffer:
    """Texts in order, those given out and not settled yet, and pulls that wait.

    `freed` is called with the cost of a text that has left for good.
    """

    def __init__(self, bounds: Bounds, freed: Callable[[int], None]) -> None:
        self._bounds = bounds
        self._freed = freed
        self._texts: deque[Text] = deque()
        self._out: dict[Caller, Text] = {}
        self._pulls: OrderedDict[Caller, None] = OrderedDict()
        self._cost = 0

    @property
    def num_texts(self) -> int:
        """Texts that nobody has taken for good."""
        return len(self._texts) + len(self._out)

    @property
    def cost(self) -> int:
        return self._cost

    @property
    def is_idle(self) -> bool:
        """Nothing in it, nobody at it."""
        return not (self._texts or self._out or self._pulls)

    def callers(self) -> list[Caller]:
        """Who waits, and who has not settled."""
        return [*self._pulls, *self._out]

    def has_room(self, cost: int) -> bool:
        """An empty one, and one whose reader waits, have room for any text."""
        if self._pulls or not self.num_texts:
            return True
        return self.num_texts < self._bounds.num_texts and self._cost + cost <= self._bounds.num_bytes

    def put(self, text: Text) -> list[Answer]:
        self._cost += text.cost
        self._texts.append(text)
        return self._match()

    def pull(self, caller: Caller) -> list[Answer]:
        self._pulls[caller] = None
        return self._match()

    def withdraw(self, caller: Caller) -> list[Answer]:
        """A waiting pull ends with `cancelled`; one that has its text keeps it until it settles."""
        if caller not in self._pulls:
            return []
        del self._pulls[caller]
        return [(caller, Cancelled("the request was withdrawn"))]

    def settle(self, caller: Caller, is_taken: bool) -> list[Answer]:
        """The text given to the caller is gone for good, or goes back to where it was."""
        text = self._out.pop(caller, None)
        if text is None:
            return []
        if is_taken:
            self._cost -= text.cost
            self._freed(text.cost)
            return []
        self._put_back(text)
        return self._match()

    def _put_back(self, text: Text) -> None:
        later = next((i for i, t in enumerate(self._texts) if t.number > text.number), len(self._texts))
        self._texts.insert(later, text)

    def close(self, why: str) -> list[Answer]:
        """Drop all texts; waiting pulls end with `cancelled`."""
        answers: list[Answer] = [(caller, Cancelled(why)) for caller in self._pulls]
        if self._cost:
            self._freed(self._cost)
        self._texts.clear()
        self._out.clear()
        self._pulls.clear()
        self._cost = 0
        return answers

    def _match(self) -> list[Answer]:
        answers: list[Answer] = []
        while self._pulls and self._texts:
            caller, _ = self._pulls.popitem(last=False)
            text = self._out[caller] = self._texts.popleft()
            answers.append((caller, text.text))
        return answers

    def check(self) -> None:
        """The books balance; AssertionError prints what does not."""
        cost = sum(t.cost for t in (*self._texts, *self._out.values()))
        assert cost == self._cost, f"texts cost {cost}, the buffer says {self._cost}"
        assert not (self._pulls and self._texts), f"{len(self._pulls)} pulls wait beside {len(self._texts)} texts"
        numbers = [t.number for t in self._texts]
        assert numbers == sorted(numbers), f"texts out of order: {numbers}"
