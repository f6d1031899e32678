"""The InferletActors of an engine: which one an inferlet goes to, how many there are, and how many are kept ready."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence

from pieray.actors.members import Member
from pieray.errors import EngineError, NoAnswer, NoRoom, PierayError

log = logging.getLogger(__name__)

KEEP_IDLE_S = 60.0
"""An actor that nobody needs is kept so long: events of its inferlets can be read meanwhile."""
MAX_GROWING = 2
"""Actors started at one time: each takes a core for seconds."""


class HostPool:
    """Grows when all actors are full, keeps `spare` with room ready, lets go of those idle beyond that.  Thread-safe.

    Places are counted here, not asked for: a launch takes one before it is sent (`Member.num_sent`), a client that is
    to launch without asking is granted some; the actor says how many it has given back (`Member.num_returned`), late
    but never too many.  So no actor is sent more than it can hold, and launches that find no room, not even among the
    places that were granted and are free, share the actors that are started for them.

    `create` starts an actor and `end` kills one, which may take seconds; `refresh` asks actors for `num_returned`, and
    ends what was granted of them;
    `delay_s` says how long to wait before another actor is started, when they die too often.
    """

    def __init__(self, *, capacity: int, spare: int, max_hosts: int, create: Callable[[], Member],
                 end: Callable[[Member], None], refresh: Callable[[Sequence[Member]], None],
                 delay_s: Callable[[], float] = lambda: 0.0) -> None:  # fmt: skip
        self._capacity = capacity
        self._spare = spare
        self._max_hosts = max_hosts
        self._create = create
        self._end = end
        self._refresh = refresh
        self._delay_s = delay_s
        self._hosts: list[Member] = []
        self._changed = threading.Condition()  # guards all fields, and the counts of members
        self._num_waiting = 0
        self._num_growing = 0
        self._refreshed_at = 0.0  # when the last refresh began that has ended
        self._is_refreshing = False
        self._failed: tuple[float, PierayError] | None = None  # the last actor that could not be started
        self._stopped = threading.Event()

    def hosts(self) -> list[Member]:
        """All actors."""
        with self._changed:
            return list(self._hosts)

    def add(self, hosts: Sequence[Member]) -> None:
        with self._changed:
            self._hosts += hosts
            self._changed.notify_all()

    def remove(self, host: Member) -> bool:
        """The actor is dead; False: it was not of the pool."""
        with self._changed:
            if host not in self._hosts:
                return False
            self._hosts.remove(host)
            self._changed.notify_all()
            return True

    def noted(self) -> None:
        """Counts, or what is to be thought of actors, have changed."""
        with self._changed:
            self._changed.notify_all()

    def sent_again(self, host: Member) -> None:
        """The launch that had a place there came back, and is sent once more."""
        with self._changed:
            host.num_sent += 1

    def close(self) -> None:
        """Start no more actors; launches that wait fail.  Idempotent."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()

    def num_live(self) -> int:
        """Places taken on all actors, at most."""
        with self._changed:
            return sum(host.num_live for host in self._hosts)

    def num_live_now(self) -> int:
        """The same, as the actors know it."""
        self._refresh(self.hosts())
        return self.num_live()

    def grant(self, num_places: int) -> tuple[Member, int] | None:
        """Take up to so many places of the actor with the most room, of its free ones half at most, and one at least.

        None: there is no room, or launches wait for it.  They come back as those of launches do: the actor says so.
        """
        with self._changed:
            host = self._roomiest(())
            if host is None or self._num_waiting or self._stopped.is_set():
                return None
            num_granted = max(1, min(num_places, (self._capacity - host.num_live) // 2))
            host.num_sent += num_granted
            host.used_at = time.monotonic()
            return host, num_granted

    # --- launches --------------------------------------------------------------------------------

    def launch(self, start: Callable[[Member], None], deadline: float) -> Member:
        """Start an inferlet on the actor with the most room, on a new one if all are full; returns the actor.

        `start` raises NoAnswer when its actor is set aside before it has answered, and then must not start the inferlet
        any more: it is tried on one other.  Raises what `start` does, and EngineError when there is no room until
        `deadline` (time.monotonic).
        """
        avoided: list[Member] = []
        while True:
            host = self._reserve(deadline, avoided)
            try:
                start(host)
            except NoAnswer:
                if not host.is_suspect or avoided:
                    raise
                avoided.append(host)
            except NoRoom as error:  # it counts otherwise than we do: what it says goes
                log.warning("%s: %s", host.name, error.message)
                avoided.append(host)
            else:
                return host

    def _reserve(self, deadline: float, avoided: Collection[Member]) -> Member:
        """Take a place."""
        came = time.monotonic()
        with self._changed:
            self._num_waiting += 1
            try:
                while (host := self._roomiest(avoided)) is None:
                    self._check_wait(came, deadline)
                    if self._refreshed_at < came and not self._is_refreshing:
                        self._refresh_unlocked()
                        continue
                    if self._refreshed_at >= came:
                        self._grow(self._num_needed(avoided))
                    self._changed.wait(max(0.0, min(deadline - time.monotonic(), 1.0)))
                host.num_sent += 1
                host.used_at = time.monotonic()
                return host
            finally:
                self._num_waiting -= 1

    def _check_wait(self, came: float, deadline: float) -> None:
        if self._stopped.is_set():
            raise EngineError("the engine is shutting down")
        if self._failed is not None and self._failed[0] > came and not self._num_growing:
            error = self._failed[1]
            raise EngineError(f"no InferletActor could be started for it: {error.message}")
        if time.monotonic() >= deadline:
            raise EngineError(f"no InferletActor had room in time: {len(self._hosts)} run, max_actors is "
                              f"{self._max_hosts}, inferlets_per_actor is {self._capacity}; {self._num_waiting} "
                              f"launches wait, {sum(h.is_suspect for h in self._hosts)} actors do not answer, "
                              f"{sum(not h.is_current for h in self._hosts)} have no device group")  # fmt: skip

    def _roomiest(self, avoided: Collection[Member]) -> Member | None:
        room = [h for h in self._hosts if h.is_current and not h.is_suspect and h not in avoided]
        host = min(room, key=lambda h: h.num_live, default=None)
        return host if host is not None and host.num_live < self._capacity else None

    def _refresh_unlocked(self) -> None:
        """Called with the lock held, which is given up meanwhile: one thread asks for all that wait."""
        hosts = [host for host in self._hosts if not host.is_suspect]
        began, self._is_refreshing = time.monotonic(), True
        self._changed.release()
        try:
            self._refresh(hosts)
        finally:
            self._changed.acquire()
            self._refreshed_at, self._is_refreshing = began, False
            self._changed.notify_all()

    def _num_needed(self, avoided: Collection[Member]) -> int:
        """Actors that those who wait need, besides the ones with room that are just being reconnected."""
        coming = [h for h in self._hosts if not h.is_current and not h.is_suspect and h not in avoided]
        room = sum(max(0, self._capacity - host.num_live) for host in coming)
        return -(-(self._num_waiting - room) // self._capacity)

    # --- growth ----------------------------------------------------------------------------------

    def _grow(self, wanted: int) -> None:
        """Have so many actors under way, as far as the bounds allow.  Called with the lock held."""
        room = self._max_hosts - len(self._hosts) - self._num_growing
        for _ in range(min(wanted - self._num_growing, MAX_GROWING - self._num_growing, room)):
            self._num_growing += 1
            threading.Thread(target=self._grow_one, name="pieray-grow", daemon=True).start()

    def _grow_one(self) -> None:
        host = failed = None
        try:
            self._stopped.wait(self._delay_s())
            if not self._stopped.is_set():
                host = self._create()
        except BaseException as error:  # noqa: BLE001 - also a panic: those who wait for it are told
            log.warning("an InferletActor could not be started: %s", error)
            failed = error if isinstance(error, PierayError) else PierayError(f"{type(error).__name__}: {error}")
        with self._changed:
            self._num_growing -= 1
            if failed is not None:
                self._failed = time.monotonic(), failed
            if host is not None:
                self._hosts.append(host)
            self._changed.notify_all()
        if host is not None and self._stopped.is_set():
            self._end(host)

    def tend(self, now: float) -> None:
        """Have `spare` actors with room, started on other threads; end those idle for KEEP_IDLE_S beyond that."""
        with self._changed:
            with_room = [h for h in self._hosts if not h.is_suspect and h.num_live < self._capacity]
            self._grow(max(0, self._spare - len(with_room)))
            idle = [h for h in with_room if h.num_live == 0 and h.used_at < now - KEEP_IDLE_S]
            leaving = idle[: max(0, len(with_room) - self._spare)]
            for host in leaving:  # nothing is under way to it: each launch takes its place under this lock
                self._hosts.remove(host)
        for host in leaving:
            log.info("%s is idle and let go", host.name)
            self._end(host)
