"""The InferletActors of an engine: which one an inferlet goes to, how many there are, and how many are kept ready."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pieray.actors.admission import FreeRate, Line, Standing, Waiting
from pieray.actors.members import Member
from pieray.errors import ActorGone, EngineError, NoAnswer, NoRoom, Overloaded, PierayError

log = logging.getLogger(__name__)

KEEP_IDLE_S = 60.0
"""An actor that nobody needs is kept so long: events of its inferlets can be read meanwhile."""
MAX_GROWING = 2
"""Actors started at one time: each takes a core for seconds."""
REFRESH_S = 0.2
"""While launches wait, actors are asked so often for places that have come free."""
KEEP_REFUSED = 1000
"""Tenants of which refusals are counted."""
ANYBODY = Standing()


class HostPool:
    """Grows when all actors are full, keeps `spare`, and one with room, lets go of those idle beyond.  Thread-safe.

    Places are counted here, not asked for: a launch takes one before it is sent (`Member.num_sent`), a client that is
    to launch without asking is granted some; the actor says how many it has given back (`Member.num_returned`), late
    but never too many.  So no actor is sent more than it can hold, and launches that find no room, not even among the
    places that were granted and are free, share the actors that are started for them.  They wait in a `Line`; who is
    first there has actors asked and started for all.

    `create` starts an actor and `end` kills one, which may take seconds; `refresh` asks actors for `num_returned`, and
    ends what was granted of them;
    `delay_s` says how long to wait before another actor is started, when they die too often.
    """

    def __init__(
        self,
        *,
        capacity: int,
        spare: int,
        max_hosts: int,
        create: Callable[[], Member],
        end: Callable[[Member], None],
        refresh: Callable[[Sequence[Member]], None],
        max_waiting: int = 1024,
        delay_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._capacity = capacity
        self._spare = spare
        self._max_hosts = max_hosts
        self._create = create
        self._end = end
        self._refresh = refresh
        self._delay_s = delay_s
        self._hosts: list[Member] = []
        self._lock = threading.Lock()  # guards all fields, and the counts of members
        self._max_waiting = max_waiting
        self._line: Line[Member] = Line(max_waiting)
        self._rate = FreeRate(time.monotonic())
        self._num_returned = 0  # places, by all hosts, when it was last looked
        self._refused: Counter[str] = Counter()  # by tenant
        self._num_growing = 0
        self._refreshed_at = 0.0  # when the last refresh began that has ended
        self._is_refreshing = False
        self._failed: tuple[float, PierayError] | None = None  # the last actor that could not be started
        self._stopped = threading.Event()

    def hosts(self) -> list[Member]:
        """All actors."""
        with self._lock:
            return list(self._hosts)

    def add(self, hosts: Sequence[Member]) -> None:
        with self._lock:
            self._hosts += hosts
            self._settle()

    def remove(self, host: Member) -> bool:
        """The actor is dead; False: it was not of the pool."""
        with self._lock:
            if host not in self._hosts:
                return False
            self._hosts.remove(host)
            self._settle()
            return True

    def noted(self) -> None:
        """Counts, or what is to be thought of actors, have changed."""
        with self._lock:
            self._settle()

    def sent_again(self, host: Member) -> None:
        """The launch that had a place there came back, and is sent once more."""
        with self._lock:
            host.num_sent += 1

    def close(self) -> None:
        """Start no more actors; launches that wait fail.  Idempotent."""
        with self._lock:
            self._stopped.set()
            self._tell_all()

    @property
    def num_waiting(self) -> int:
        """Launches in line."""
        return len(self._line)

    def launches(self) -> dict[str, dict[str, int]]:
        """By tenant, launches that wait for a place, and those that were refused one since the engine is up."""
        with self._lock:
            return {"waiting": self._line.by_tenant(), "refused": dict(self._refused)}

    def note_refused(self, tenant: str) -> None:
        """A launch of the tenant was refused before it came here."""
        with self._lock:
            self._count_refused(tenant)

    def _count_refused(self, tenant: str) -> None:
        self._refused[tenant] += 1
        if len(self._refused) > KEEP_REFUSED:
            del self._refused[next(iter(self._refused))]

    def num_live(self) -> int:
        """Places taken on all actors, at most."""
        with self._lock:
            return sum(host.num_live for host in self._hosts)

    def num_live_now(self) -> int:
        """The same, as the actors know it."""
        self._refresh(self.hosts())
        return self.num_live()

    def grant(self, num_places: int) -> list[tuple[Member, int]]:
        """Take up to so many places, spread over the actors with room: of each one's free places half at most, and one
        in all at least.

        Empty: there is no room, or launches wait for it.  They come back as those of launches do: the actor says so.
        """
        with self._lock:
            if len(self._line) or self._stopped.is_set():
                return []
            hosts = sorted(self._with_room(()), key=lambda host: host.num_live)
            share = -(-num_places // max(len(hosts), 1))
            granted = []
            for host in hosts:
                if count := min(share, num_places, (self._capacity - host.num_live) // 2):
                    num_places -= count
                    granted.append((host, count))
            granted = granted or [(host, 1) for host in hosts[:1]]
            for host, count in granted:
                host.num_sent += count
                host.used_at = time.monotonic()
            return granted

    def not_granted(self, host: Member, num_places: int) -> None:
        """The actor could not even be asked to open a grant: the places are free."""
        with self._lock:
            host.num_sent -= num_places

    # --- launches --------------------------------------------------------------------------------

    def launch(self, start: Callable[[Member], None], deadline: float, standing: Standing = ANYBODY) -> Member:
        """Start an inferlet on the actor with the most room, on a new one if all are full; returns the actor.

        `start` raises NoAnswer when its actor is set aside before it has answered, and then must not start the inferlet
        any more: it is tried on one other.  It raises ActorGone where its actor was dead before, and it is tried on
        others.  Raises what else `start` does, Overloaded when there is no place until `deadline` (time.monotonic) or
        too many wait, and EngineError where no actor is fit to hold it.
        """
        with self._lock:
            waiting = self._line.new(standing, time.monotonic())
        avoided = waiting.avoided
        while True:
            host = self._reserve(waiting, deadline)
            try:
                start(host)
            except NoAnswer:
                if not host.is_suspect or avoided:
                    raise
                avoided.append(host)
            except (NoRoom, ActorGone) as error:  # it counts otherwise than we do: what it says goes
                log.warning("%s: %s", host.name, error.message)
                avoided.append(host)
            else:
                return host

    def _reserve(self, waiting: Waiting[Member], deadline: float) -> Member:
        """Take a place, at once if there is one and nobody goes before."""
        with self._lock:
            if not self._line.num_ahead(waiting) and (host := self._take(waiting)) is not None:
                return host
            wake = threading.Condition(self._lock)
            waiting.place, waiting.wake = None, wake.notify
            if (displaced := self._line.join(waiting)) is not None:
                displaced.wake()
            try:
                self._settle()
                while waiting.place is None:
                    self._check_wait(waiting, deadline)
                    self._wait(waiting, wake, deadline)
                return waiting.place
            finally:
                self._line.leave(waiting)
                self._wake_first()

    def _wait(self, waiting: Waiting[Member], wake: threading.Condition, deadline: float) -> None:
        """For a change.  Who is first asks actors for what has come free; then actors are started."""
        now = time.monotonic()
        is_first = waiting is self._line.first
        if is_first and not self._is_refreshing and self._refreshed_at < max(waiting.came, now - REFRESH_S):
            self._refresh_unlocked()
            return
        if is_first or self._refreshed_at >= waiting.came - REFRESH_S:
            self._grow(self._num_needed(waiting.avoided))
        left_s = max(0.0, deadline - now)
        wake.wait(min(left_s, REFRESH_S) if is_first else left_s)

    def _check_wait(self, waiting: Waiting[Member], deadline: float) -> None:
        if self._stopped.is_set():
            raise EngineError("the engine is shutting down")
        if self._failed is not None and self._failed[0] > waiting.came and not self._num_growing:
            error = self._failed[1]
            raise EngineError(f"no InferletActor could be started for it: {error.message}")
        if waiting.is_displaced:
            raise self._overloaded(
                waiting,
                f"max_waiting_launches: {self._max_waiting} launches wait for a place, and this one is not among them",
            )
        if time.monotonic() >= deadline:
            why = (
                f"no InferletActor had room in time: {len(self._hosts)} run, max_actors is {self._max_hosts}, "
                f"inferlets_per_actor is {self._capacity}; {len(self._line)} launches wait, "
                f"{sum(h.is_suspect for h in self._hosts)} actors do not answer, "
                f"{sum(not h.is_current for h in self._hosts)} have no device group"
            )
            is_fit = any(h.is_current and not h.is_suspect for h in self._hosts)
            raise self._overloaded(waiting, why) if is_fit else EngineError(why)

    def _overloaded(self, waiting: Waiting[Member], why: str) -> Overloaded:
        retry_after_s = self._rate.retry_after_s(self._line.num_ahead(waiting) + 1, time.monotonic())
        self._count_refused(waiting.standing.tenant)
        return Overloaded(f"{why}; try again in about {retry_after_s:g} s", retry_after_s)

    def _settle(self) -> None:
        """Give out what places there are.  Called with the lock held, when something has changed."""
        num_returned = sum(host.num_returned for host in self._hosts)
        self._rate.note(num_returned - self._num_returned, time.monotonic())
        self._num_returned = num_returned
        for served in self._line.serve(self._take):
            served.wake()
        self._wake_first()

    def _wake_first(self) -> None:
        if (first := self._line.first) is not None:
            first.wake()

    def _tell_all(self) -> None:
        for waiting in self._line:
            waiting.wake()

    def _take(self, waiting: Waiting[Member]) -> Member | None:
        """A place on the actor with the most room, if there is one."""
        host = self._roomiest(waiting.avoided)
        if host is not None:
            host.num_sent += 1
            host.used_at = time.monotonic()
        return host

    def _roomiest(self, avoided: Collection[Member]) -> Member | None:
        return min(self._with_room(avoided), key=lambda host: host.num_live, default=None)

    def _with_room(self, avoided: Collection[Member]) -> list[Member]:
        fit = (host for host in self._hosts if host.is_current and not host.is_suspect and host not in avoided)
        return [host for host in fit if host.num_live < self._capacity]

    def _refresh_unlocked(self) -> None:
        """Called with the lock held, which is given up meanwhile: one thread asks for all that wait."""
        hosts = [host for host in self._hosts if not host.is_suspect]
        began, self._is_refreshing = time.monotonic(), True
        self._lock.release()
        try:
            self._refresh(hosts)
        finally:
            self._lock.acquire()
            self._refreshed_at, self._is_refreshing = began, False
            self._settle()

    def _num_needed(self, avoided: Collection[Member]) -> int:
        """Actors that those who wait need, besides the ones with room that are just being reconnected."""
        coming = [h for h in self._hosts if not h.is_current and not h.is_suspect and h not in avoided]
        room = sum(max(0, self._capacity - host.num_live) for host in coming)
        return -(-(len(self._line) - room) // self._capacity)

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
        with self._lock:
            self._num_growing -= 1
            if failed is not None:
                self._failed = time.monotonic(), failed
                self._tell_all()
            if host is not None:
                self._hosts.append(host)
                self._rate.note(self._capacity, time.monotonic())
            self._settle()
        if host is not None and self._stopped.is_set():
            self._end(host)

    def tend(self, now: float) -> None:
        """Have `spare` actors, and one with room, started on other threads; end those idle for KEEP_IDLE_S beyond
        that."""
        with self._lock:
            fit = [h for h in self._hosts if not h.is_suspect]
            with_room = [h for h in fit if h.num_live < self._capacity]
            self._grow(max(self._spare - len(fit), 1 - len(with_room), 0))
            idle = [h for h in with_room if h.num_live == 0 and h.used_at < now - KEEP_IDLE_S]
            leaving = idle[: max(0, min(len(with_room) - 1, len(fit) - self._spare))]
            for host in leaving:  # nothing is under way to it: each launch takes its place under this lock
                self._hosts.remove(host)
        for host in leaving:
            log.info("%s is idle and let go", host.name)
            self._end(host)
