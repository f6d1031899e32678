"""The actors of an engine as its Supervisor knows them, and what it needs of a cluster to have and to ask them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from pieray.concurrency.stalls import RemoteClock
from pieray.errors import EngineError, NoAnswer, PierayError

Wire: TypeAlias = tuple[Any, ...]
Answer: TypeAlias = Callable[[float], Any]
"""Waits so many seconds for what a call returns; raises NoAnswer, ActorGone, EngineError and what the method raised."""

BATCHER, RESOURCE_MANAGER, BROKER, INFERLETS = "batcher", "resource-manager", "broker", "inferlets"

TELL_S = 30.0
"""How long an actor may take to connect to others, or to be told of adapters."""
FACTS_S = 3.0
"""How long an actor may take to say how it is, or to end an inferlet."""
SLICE_S = 0.25
"""Who waits for an actor looks so often whether it has been set aside meanwhile."""


@dataclass(eq=False, slots=True)
class Member:
    """One actor of the engine."""

    role: str
    name: str
    handle: Any
    incarnation: int = 0
    number: int = 0
    """Which of its role: of an InferletActor, or of the device group that it is of."""
    model: str = ""
    """Of a device group: the name of the model that it serves, "" for the default one."""
    endpoint: Wire = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """pid and node_id, once it has answered."""
    sent: dict[tuple[str, int], Wire] = field(default_factory=dict)
    """What it has been told last, by method and which of several that told of: endpoints of the others, adapters."""
    num_failed_tells: int = 0
    telling: threading.Lock = field(default_factory=threading.Lock)

    # --- as `pieray.actors.health` sees it
    clock: RemoteClock = field(default_factory=RemoteClock)
    pulse: Answer | None = None
    """The question for a sign of life that is under way."""
    asked_at: float = 0.0
    """When it was asked."""
    is_heard: bool = False
    """Whether it has ever answered: until then, or until it is open, its start has a deadline, and silence none."""
    silent_s: float = 0.0
    is_suspect: bool = False
    """It does not answer: nothing is placed on it, nobody waits for it."""

    # --- of an InferletActor, as `pieray.actors.pool` counts
    num_sent: int = 0
    """Launches sent to it in all."""
    num_returned: int = 0
    """Launches that it has refused, and inferlets that have left, in all."""
    launched: deque[tuple[str, str]] = field(default_factory=deque)
    """Ids and names of inferlets that clients have launched there by grants, as it has said lately."""
    tallies: deque[tuple[float, dict[str, Any]]] = field(default_factory=deque)
    """What it has said lately of tenants that have quotas, and when it was asked."""
    is_current: bool = True
    """Whether it is connected to the device group of today."""
    used_at: float = field(default_factory=time.monotonic)

    @property
    def num_live(self) -> int:
        """Places taken, those of launches under way included."""
        return self.num_sent - self.num_returned

    def returned(self, num_returned: int) -> None:
        """What the actor says of it, perhaps late."""
        if num_returned > self.num_returned:
            self.num_returned = num_returned
            self.used_at = time.monotonic()

    def describe(self) -> str:
        """For people: name, pid and node."""
        where = f" on node {self.facts['node_id'][:8]}" if "node_id" in self.facts else ""
        return f"{self.name} (pid {self.facts.get('pid', '?')}{where})"


class Fleet(Protocol):
    """The cluster's side of supervision.  Thread-safe."""

    def create(
        self, role: str, number: int | None, incarnation: int, near: Member | None = None, model: str = ""
    ) -> Member:
        """Start an actor, on the node of `near` if given; `model`: see `Member.model`.  Raises EngineError."""

    def begin(self, member: Member, method: str, *args: Any) -> Answer:
        """Call one of its methods.  Raises EngineError if that cannot even be sent."""

    def has_died(self, member: Member) -> bool:
        """Whether it is known by now to be dead: what is sent to it from here on reaches nobody."""

    def deaths(self, timeout_s: float) -> list[Member]:
        """Members created here that have died since, waiting so long for one; each once."""

    def keep(self, data: bytes) -> Any:
        """Put aside what actors are to be given, now and later: what to give them in its place."""

    def kill(self, member: Member) -> None:
        """End it for good, also one that is frozen, and its name is free.  Idempotent."""


class Members:
    """The actors that an engine has created and that have not ended.  Thread-safe.

    `on_end` hears of each that is ended.  Once `stopped` is set, none is created any more.
    """

    def __init__(self, fleet: Fleet, on_end: Callable[[Member], None], stopped: threading.Event) -> None:
        self._fleet = fleet
        self.keep = fleet.keep
        self._on_end = on_end
        self._stopped = stopped
        self._members: list[Member] = []
        self._incarnation = 0
        self._lock = threading.Lock()  # guards the fields; never held while an actor is asked

    def all(self) -> list[Member]:
        """Of all roles."""
        with self._lock:
            return list(self._members)

    def __contains__(self, member: Member) -> bool:
        return member in self._members

    def create(self, role: str, number: int | None = None, near: Member | None = None, model: str = "") -> Member:
        """Start an actor, see Fleet.  Raises EngineError, also while the engine is shutting down."""
        with self._lock:
            self._incarnation += 1
            incarnation = self._incarnation
        member = self._fleet.create(role, number, incarnation, near, model)
        member.number, member.model = number or 0, model
        with self._lock:
            self._members.append(member)
        if self._stopped.is_set():
            self.end(member)
            raise EngineError("the engine is shutting down")
        return member

    def end(self, member: Member) -> None:
        """End it for good.  Idempotent."""
        with self._lock:
            if member in self._members:
                self._members.remove(member)
        self._on_end(member)
        self._fleet.kill(member)

    def begin(self, member: Member, method: str, *args: Any) -> Answer:
        """See Fleet."""
        return self._fleet.begin(member, method, *args)

    def has_died(self, member: Member) -> bool:
        """See Fleet."""
        return self._fleet.has_died(member)

    def ask(self, member: Member, method: str, *args: Any, timeout_s: float) -> Any:
        """What one of its methods returns; raises as an `Answer` does."""
        return self.begin(member, method, *args)(timeout_s)

    def gather(self, members: Sequence[Member], method: str, timeout_s: float) -> list[Any]:
        """What each of them answers in time, or its PierayError."""
        deadline = time.monotonic() + timeout_s
        asked: list[Answer | PierayError] = []
        for member in members:
            try:
                asked.append(self.begin(member, method))
            except PierayError as error:
                asked.append(error)
        found: list[Any] = []
        for answer in asked:
            try:
                found.append(answer if isinstance(answer, PierayError) else answer(deadline - time.monotonic()))
            except PierayError as error:
                found.append(error)
        return found

    def facts_of(self, members: Sequence[Member], method: str) -> list[Any]:
        """As `gather`; those that are set aside are not waited for."""
        asked = [member for member in members if not member.is_suspect]
        found = dict(zip(map(id, asked), self.gather(asked, method, FACTS_S), strict=True))
        return [found.get(id(m), NoAnswer(f"{m.describe()} does not answer")) for m in members]
