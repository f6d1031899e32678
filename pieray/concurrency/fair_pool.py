"""Work that some do for all: threads that take jobs of tenants in turn, so that nobody's jobs hold up another's.

    pool = FairPool("grammars", num_threads=2)
    future = pool.submit(lambda: compile(text), tenant="a", owner="inferlet-1", wait_s=30.0)

`FairQueue` is the order alone, without threads: tenants are equal whatever they ask for, and so are the owners
(inferlets) of one tenant.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pieray.concurrency.timers import Timer, Timers
from pieray.errors import Cancelled, DeadlineExceeded, PierayError, QuotaExceeded

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_IDLE_FLOWS = 1024
"""Tenants, and owners of each, whose past use is remembered while they ask for nothing."""
LEAST_CHARGE_S = 1e-4
"""What a job costs at least: also those that cost nothing take turns."""


def _any(_key: str) -> bool:
    return True


@dataclass(slots=True, eq=False)
class _Flow(Generic[T]):
    """What one tenant, or one owner, has had of the service, and what it asks for next."""

    used: float
    waiting: T


class _Flows(Generic[T]):
    """Flows of one level by key.  The next is the one that has had least (start-time fair queueing): who comes back
    after a pause starts where the others stand, neither with a debt forgotten nor with time saved up."""

    def __init__(self, new: Callable[[], T]) -> None:
        self._new = new
        self._flows: dict[str, _Flow[T]] = {}
        self._now = 0.0  # virtual time: the use of the flow that was served last

    def get(self, key: str) -> T | None:
        """What waits in the flow, None if nothing is known of it."""
        flow = self._flows.get(key)
        return None if flow is None else flow.waiting

    def enter(self, key: str) -> T:
        """What waits in the flow; it takes part from now on."""
        flow = self._flows.get(key)
        if flow is None:
            self._forget_idle()
            flow = self._flows[key] = _Flow(self._now, self._new())
        if not flow.waiting:
            flow.used = max(flow.used, self._now)
        return flow.waiting

    def least(self, is_eligible: Callable[[str], bool] = _any) -> T | None:
        """What waits in the flow to be served next; None if nothing waits in those eligible."""
        found = [flow for key, flow in self._flows.items() if flow.waiting and is_eligible(key)]
        if not found:
            return None
        flow = min(found, key=lambda flow: flow.used)
        self._now = max(self._now, flow.used)
        return flow.waiting

    def charge(self, key: str, cost: float) -> None:
        if (flow := self._flows.get(key)) is not None:
            flow.used += cost

    def _forget_idle(self) -> None:
        if len(self._flows) >= MAX_IDLE_FLOWS:
            idle = [key for key, flow in self._flows.items() if not flow.waiting]
            for key in sorted(idle, key=lambda key: self._flows[key].used)[: MAX_IDLE_FLOWS // 2]:
                del self._flows[key]


class _Owners(Generic[T]):
    """The owners of one tenant and their items, each owner's in order."""

    def __init__(self) -> None:
        self.flows: _Flows[deque[T]] = _Flows(deque)
        self.num_waiting = 0

    def __len__(self) -> int:
        return self.num_waiting


class FairQueue(Generic[T]):
    """Items of owners, owners of tenants.  Next is the first item of that owner, of that tenant, which has used least
    so far, by what `charge` says.  Not thread-safe."""

    def __init__(self) -> None:
        self._tenants: _Flows[_Owners[T]] = _Flows(_Owners)
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def num_waiting(self, tenant: str) -> int:
        owners = self._tenants.get(tenant)
        return 0 if owners is None else len(owners)

    def put(self, tenant: str, owner: str, item: T) -> None:
        owners = self._tenants.enter(tenant)
        owners.flows.enter(owner).append(item)
        self._count(owners, 1)

    def pop(self, is_eligible: Callable[[str], bool] = _any) -> T | None:
        """Take the next item of the tenants that are eligible; None if there is none."""
        owners = self._tenants.least(is_eligible)
        if owners is None:
            return None
        items = owners.flows.least()
        assert items is not None, "a tenant that waits has an owner that waits"
        self._count(owners, -1)
        return items.popleft()

    def charge(self, tenant: str, owner: str, cost: float) -> None:
        """Somebody's items have used `cost` of the service, in whatever unit."""
        self._tenants.charge(tenant, cost)
        if (owners := self._tenants.get(tenant)) is not None:
            owners.flows.charge(owner, cost)

    def remove(self, tenant: str, owner: str, item: T) -> bool:
        """Take one item back; False if it is not there."""
        owners = self._tenants.get(tenant)
        items = None if owners is None else owners.flows.get(owner)
        if owners is None or items is None or item not in items:
            return False
        items.remove(item)
        self._count(owners, -1)
        return True

    def _count(self, owners: _Owners[T], change: int) -> None:
        owners.num_waiting += change
        self._num_waiting += change


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    tenant: str
    owner: str
    future: Future[Any] = field(default_factory=Future)
    timer: Timer | None = None


class FairPool:
    """Up to `num_threads` threads, started when needed, and the jobs that wait for one.  Thread-safe.

    No tenant has more than `num_threads` - 1 of them at one time (one, of one), so that another's job waits for
    none of its own.  A job that raises anything at all fails its own future, with a PierayError.
    """

    def __init__(self, name: str, num_threads: int = 2, *, max_waiting: int = 1024) -> None:
        """`max_waiting`: jobs of one tenant that wait for a thread."""
        self.name = name
        self._num_threads = num_threads
        self._per_tenant = max(1, num_threads - 1)
        self._max_waiting = max_waiting
        self._queue: FairQueue[_Job] = FairQueue()
        self._running: dict[str, int] = {}
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._num_idle = 0
        self._timers: Timers | None = None
        self._is_closed = False

    def submit(self, work: Callable[[], T], *, tenant: str, owner: str = "", wait_s: float | None = None) -> Future[T]:
        """Call `work` on a thread of the pool.  `Future.cancel` takes the job back unless it has begun.

        Args:
            tenant, owner: whose turn it takes.
            wait_s: how long it may wait for a thread; its future fails with DeadlineExceeded then.

        Raises:
            QuotaExceeded: `max_waiting` jobs of the tenant wait already.
            Cancelled: the pool is closed.
        """
        job = _Job(work, tenant, owner)
        with self._changed:
            if self._is_closed:
                raise Cancelled(f"{self.name}: the engine is shutting down")
            if (waiting := self._queue.num_waiting(tenant)) >= self._max_waiting:
                raise QuotaExceeded(
                    f"{self.name}: at most {self._max_waiting} jobs of one tenant wait at one time; "
                    f"{waiting} do, and one more was asked for"
                )
            self._queue.put(tenant, owner, job)
            if wait_s is not None:
                self._timers = self._timers or Timers()
                job.timer = self._timers.at(time.monotonic() + wait_s, lambda: self._expire(job, wait_s))
            if len(self._queue) > self._num_idle and len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name=f"pieray-{self.name}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()
        job.future.add_done_callback(lambda future: self._taken_back(job) if future.cancelled() else None)
        return job.future

    def num_waiting(self, tenant: str) -> int:
        """Jobs of the tenant that no thread has taken yet."""
        with self._changed:
            return self._queue.num_waiting(tenant)

    def close(self) -> None:
        """Fail what waits with Cancelled; what runs comes to its own end.  Idempotent."""
        with self._changed:
            self._is_closed = True
            jobs = []
            while (job := self._queue.pop()) is not None:
                jobs.append(job)
            timers = self._timers
            self._changed.notify_all()
        for job in jobs:
            _fail(job.future, Cancelled(f"{self.name}: the engine is shutting down"))
        if timers is not None:
            timers.close()

    def _expire(self, job: _Job, wait_s: float) -> None:
        if self._taken_back(job):
            _fail(job.future, DeadlineExceeded(f"{self.name}: no thread came free within {wait_s:g} s"))

    def _taken_back(self, job: _Job) -> bool:
        with self._changed:
            is_waiting = self._queue.remove(job.tenant, job.owner, job)
        if job.timer is not None:
            job.timer.cancel()
        return is_waiting

    def _work(self) -> None:
        while (job := self._next()) is not None:
            began = time.monotonic()
            try:
                self._run(job)
            except BaseException:  # of what is called when a future is done
                log.exception("%s: who waited for a job failed", self.name)
            with self._changed:
                self._running[job.tenant] -= 1
                if not self._running[job.tenant]:
                    del self._running[job.tenant]
                cost = time.monotonic() - began
                self._queue.charge(job.tenant, job.owner, max(0.0, cost - LEAST_CHARGE_S))
                self._changed.notify_all()
            del job  # while this thread sleeps, what the last job held must not live on

    def _run(self, job: _Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            result = job.work()
        except PierayError as error:
            _fail(job.future, error)
        except BaseException as error:  # noqa: BLE001 - a panic of native code too: whoever waits must hear of it
            _fail(job.future, PierayError(f"{self.name} failed: {error!r}"))
        else:
            job.future.set_result(result)

    def _next(self) -> _Job | None:
        """The next job of a tenant that has fewer threads than it may have; None when closed."""
        with self._changed:
            while not self._is_closed:
                job = self._queue.pop(lambda tenant: self._running.get(tenant, 0) < self._per_tenant)
                if job is not None:
                    self._running[job.tenant] = self._running.get(job.tenant, 0) + 1
                    self._queue.charge(job.tenant, job.owner, LEAST_CHARGE_S)
                    return job
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
            return None


def _fail(future: Future[Any], error: PierayError) -> None:
    try:
        future.set_exception(error)
    except InvalidStateError:  # cancelled at the same moment: nobody waits for it
        return
