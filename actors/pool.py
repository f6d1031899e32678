"""The InferletActors of an engine: which one an inferlet goes to, and how many are kept ready."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pieray.errors import EngineError

log = logging.getLogger(__name__)

Wire = tuple[Any, ...]

KEEP_IDLE_S = 60.0
"""An actor that nobody needs is kept so long: events of its inferlets can be read meanwhile."""


@dataclass(eq=False, slots=True)
class Member:
    """One actor of the engine."""

    role: str
    handle: Any
    endpoint: Wire = ()
    used_at: float = field(default_factory=time.monotonic)


class HostPool:
    """Grows when all actors are full, keeps `spare` with room ready, lets go of those idle beyond that.  Thread-safe.

    `create` starts an actor, `end` kills one, `num_live` asks one how many inferlets it holds.
    """

    def __init__(self, *, capacity: int, spare: int, create: Callable[[], Member], end: Callable[[Member], None],
                 num_live: Callable[[Member], int]) -> None:  # fmt: skip
        self._capacity = capacity
        self._spare = spare
        self._create = create
        self._end = end
        self._ask_live = num_live
        self._hosts: list[Member] = []
        self._leaving: list[Member] = []
        self._lock = threading.Lock()
        self._growing = threading.Lock()

    def hosts(self) -> list[Member]:
        """All actors, those on their way out included."""
        with self._lock:
            return [*self._hosts, *self._leaving]

    def add(self, hosts: list[Member]) -> None:
        with self._lock:
            self._hosts += hosts

    def remove(self, host: Member) -> None:
        """The actor is dead."""
        with self._lock:
            for hosts in (self._hosts, self._leaving):
                if host in hosts:
                    hosts.remove(host)

    def num_live(self) -> int:
        """Inferlets on all actors; one that does not answer counts as full."""
        return sum(map(self._load, self.hosts()))

    def launch(self, start: Callable[[Member], None]) -> Member:
        """Start an inferlet on the actor with the most room, on a new one if all are full; returns the actor.

        `start` raises EngineError naming `inferlets_per_actor` when the actor is full after all.
        """
        host = self._roomiest() or self._grow()
        while True:
            host.used_at = time.monotonic()
            try:
                start(host)
            except EngineError as error:
                if "inferlets_per_actor" not in error.message:
                    raise
                host = self._grow()
            else:
                return host

    def _roomiest(self) -> Member | None:
        with self._lock:
            hosts = list(self._hosts)
        if len(hosts) == 1:  # the usual case needs no question: it says so when it is full
            return hosts[0]
        loads = [(self._load(host), index) for index, host in enumerate(hosts)]
        load, index = min(loads, default=(self._capacity, 0))
        return hosts[index] if load < self._capacity else None

    def _load(self, host: Member) -> int:
        """Inferlets on the actor; one that does not answer counts as full, until somebody sees that it is dead."""
        try:
            return self._ask_live(host)
        except EngineError as error:
            log.info("an InferletActor does not answer: %s", error)
            return self._capacity

    def _grow(self) -> Member:
        """A new actor; of several threads that ask at once, each gets one of its own."""
        host = self._create()
        self.add([host])
        return host

    def tend(self, now: float) -> None:
        """Keep `spare` actors with room; end those that have been idle for KEEP_IDLE_S beyond that.

        An actor leaves in two steps: it is taken out of placement first, and ended at a later call if nothing has
        been launched on it meanwhile.
        """
        with self._growing:
            self._end_leaving()
            with self._lock:
                hosts = list(self._hosts)
            loads = {id(host): self._load(host) for host in hosts}
            with_room = [host for host in hosts if loads[id(host)] < self._capacity]
            for _ in range(self._spare - len(with_room)):
                self._grow()
            idle = [h for h in with_room if loads[id(h)] == 0 and h.used_at < now - KEEP_IDLE_S]
            for host in idle[: max(0, len(with_room) - self._spare)]:
                self._move(host, self._hosts, self._leaving)

    def _end_leaving(self) -> None:
        with self._lock:
            leaving = list(self._leaving)
        for host in leaving:
            if self._load(host):
                self._move(host, self._leaving, self._hosts)
            else:
                log.info("an idle InferletActor is let go")
                self.remove(host)
                self._end(host)

    def _move(self, host: Member, source: list[Member], target: list[Member]) -> None:
        """Unless it has been removed meanwhile."""
        with self._lock:
            if host in source:
                source.remove(host)
                target.append(host)
