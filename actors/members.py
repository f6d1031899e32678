"""The actors of an engine as its Supervisor knows them, and what it needs of a cluster to have them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from pieray.concurrency.stalls import RemoteClock

Wire: TypeAlias = tuple[Any, ...]
Answer: TypeAlias = Callable[[float], Any]
"""Waits so many seconds for what a call returns; raises NoAnswer, ActorGone, EngineError and what the method raised."""

BATCHER, RESOURCE_MANAGER, BROKER, INFERLETS = "batcher", "resource-manager", "broker", "inferlets"


@dataclass(eq=False, slots=True)
class Member:
    """One actor of the engine."""

    role: str
    name: str
    handle: Any
    incarnation: int = 0
    endpoint: Wire = ()
    facts: dict[str, Any] = field(default_factory=dict)
    """pid and node_id, once it has answered."""
    told: dict[str, Wire] = field(default_factory=dict)
    """What it has been told last, by method: a host's endpoints of the others, and the adapters."""
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

    def create(self, role: str, number: int | None, incarnation: int, near: Member | None = None) -> Member:
        """Start an actor, on the node of `near` if given.  Raises EngineError."""

    def begin(self, member: Member, method: str, *args: Any) -> Answer:
        """Call one of its methods.  Raises EngineError if that cannot even be sent."""

    def has_died(self, member: Member) -> bool:
        """Whether it is known by now to be dead: what is sent to it from here on reaches nobody."""

    def deaths(self, timeout_s: float) -> list[Member]:
        """Members created here that have died since, waiting so long for one; each once."""

    def kill(self, member: Member) -> None:
        """End it for good, also one that is frozen, and its name is free.  Idempotent."""
