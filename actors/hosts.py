"""The InferletActors of an engine: started, opened, and told of the other actors, the adapters and the programs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeAlias

from pieray.actors.health import Health
from pieray.actors.members import FACTS_S, INFERLETS, SLICE_S, TELL_S, Member, Members, Wire
from pieray.actors.pool import HostPool
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import EngineError, PierayError

log = logging.getLogger(__name__)

DEVICE_S = 60.0
"""How long a new actor waits for a device group."""
GROUP = "connect_group"
"""The method that tells of a device group."""
Telling: TypeAlias = tuple[str, int]
"""A method, and which of several it tells of."""
MAX_FAILED_TELLS = 3
"""An actor that cannot be connected so often is replaced."""


class Hosts:
    """What each is to know is kept here by the methods that tell it; they are told, and told again, until they know.

    Thread-safe.  `lost` is told of an actor that is to be replaced; `device_failure` says why there is no device group.
    """

    def __init__(
        self,
        config: Config,
        members: Members,
        health: Health,
        *,
        token: str,
        restarts: Restarts,
        stopped: threading.Event,
        num_kept: int,
        lost: Callable[[Member, str], None],
        device_failure: Callable[[], str | None],
    ) -> None:
        self._config = config
        self._members = members
        self._health = health
        self._token = token
        self._stopped = stopped
        self._lost = lost
        self._device_failure = device_failure
        self.pool = HostPool(
            capacity=config.inferlets_per_actor,
            spare=num_kept,
            max_hosts=config.max_actors,
            create=self._new,
            end=members.end,
            refresh=self.refresh,
            max_waiting=config.max_waiting_launches,
            delay_s=lambda: restarts.delay_s,
        )
        self._wanted: dict[Telling, Wire] = {}  # what each is to know: the arguments of its methods
        self._served: dict[int, tuple[str, dict[str, Any]]] = {}  # by device group: its model's name, and facts
        self._names = list(config.all_models())
        self._lock = threading.Lock()  # guards the fields; never held while an actor is asked
        self._has_device = threading.Condition(self._lock)
        self._tellers = ThreadPoolExecutor(16, "pieray-tell")
        self._next_number = 0

    def stop(self) -> None:
        """Start none any more; those that wait for a device group do so no longer.  Idempotent."""
        self.pool.close()
        with self._lock:
            self._has_device.notify_all()

    def close(self) -> None:
        """Tell them nothing any more.  Idempotent."""
        self._tellers.shutdown(wait=False, cancel_futures=True)

    # --- what they are to know ------------------------------------------------------------------

    def want(self, method: str, *args: Any) -> None:
        """Each is to be told so, by `tell_all` or a little later."""
        with self._lock:
            self._wanted[method, 0] = args

    def want_group(
        self,
        number: int,
        model: str,
        batcher: Wire,
        manager: Wire,
        served: dict[str, Any],
        *,
        is_draining: bool = False,
    ) -> None:
        """Each is to be connected to this device group, and those that wait for one are opened.  `model`: its name, ""
        for the default one; `served`: what the group tells of it.  `is_draining`: no inferlet is to choose it."""
        with self._lock:
            self._served[number] = model, served
            self._wanted[GROUP, number] = number, model, batcher, manager, is_draining
            self._has_device.notify_all()

    def drop_group(self, number: int) -> None:
        """There is no such device group; until they are connected to one, nothing is placed on them."""
        with self._lock:
            self._wanted.pop((GROUP, number), None)
        for host in self.pool.hosts():
            self._is_behind(host)

    def end_group(self, number: int) -> None:
        """There will never be such a device group again: each is to let go of it."""
        with self._lock:
            self._wanted.pop((GROUP, number), None)
            self._served.pop(number, None)
            self._wanted["end_group", number] = (number,)

    def tell_all(self, timeout_s: float = TELL_S) -> None:
        """Bring all hosts up to date, at once; those that take longer, or do not answer, are told later."""
        hosts = [host for host in self.pool.hosts() if self._is_behind(host) and not host.is_suspect]
        telling = {self._tellers.submit(self._tell, host): host for host in hosts}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and (left := [f for f, h in telling.items() if not h.is_suspect]):
            if not wait(left, timeout=SLICE_S).not_done:
                return

    def tell_late(self) -> None:
        """Begin to tell those that do not know all yet; waits for none."""
        for host in self.pool.hosts():
            if not host.is_suspect and self._is_behind(host):
                self._tellers.submit(self._tell, host)

    def _tell(self, host: Member) -> None:
        """Tell a host what it does not know yet; one thread at a time does."""
        if not host.telling.acquire(blocking=False):
            return
        try:
            while behind := self._news_for(host):
                told = [self._tell_one(host, what, args) for what, args in behind]
                if not all(told):
                    break
                host.num_failed_tells = 0
        finally:
            host.telling.release()
        self.pool.noted()
        if host.num_failed_tells >= MAX_FAILED_TELLS:
            self._lost(host, f"could not be connected {MAX_FAILED_TELLS} times")

    def _tell_one(self, host: Member, what: Telling, args: Wire) -> bool:
        """False: it did not come to know it, and is told again."""
        try:
            self._members.ask(host, what[0], *args, timeout_s=TELL_S)
        except BaseException as error:  # noqa: BLE001 - whatever it is, others are told
            log.warning("%s could not be told of the others: %s", host.describe(), error)
            if what[0] != GROUP or not host.is_current:  # else another group serves it
                host.num_failed_tells += 1
            return False
        host.sent[what] = args
        return True

    def _is_behind(self, host: Member) -> bool:
        return bool(self._news_for(host))

    def _news_for(self, host: Member) -> list[tuple[Telling, Wire]]:
        """What there is to tell it; notes whether it is connected to a device group of today of the default model."""
        with self._lock:
            host.is_current = any(host.sent.get(what) == args for what, args in self._groups())
            return [(what, args) for what, args in self._wanted.items() if host.sent.get(what) != args]

    def _groups(self) -> list[tuple[Telling, Wire]]:
        """The device groups that there are of the default model; with the lock held."""
        return [(what, args) for what, args in self._wanted.items() if what[0] == GROUP and not args[1]]

    # --- starting them ---------------------------------------------------------------------------

    def create(self) -> Member:
        """Start one more; it is to be opened."""
        with self._lock:
            number, self._next_number = self._next_number, self._next_number + 1
        return self._members.create(INFERLETS, number)

    def open(self, hosts: Sequence[Member]) -> None:
        """Connect new ones to the other actors, when there is a device group; raises what their `open` does, and
        EngineError."""
        wanted, models = self._known()
        groups = [args for what, args in wanted.items() if what[0] == GROUP]
        peers = groups, wanted.get(("reconnect_broker", 0), ((),))[0], *wanted["set_registry", 0]
        opening = [self._members.begin(host, "open", self._token, models, *peers) for host in hosts]
        for host, answer in zip(hosts, opening, strict=True):
            host.endpoint = tuple(answer(self._config.start_timeout_s))
            host.sent = dict(wanted)
            self._health.answered(host, self._members.ask(host, "pulse", timeout_s=FACTS_S))
            self._is_behind(host)

    def _new(self) -> Member:
        host = self.create()
        try:
            self.open([host])
        except BaseException:
            self._members.end(host)
            raise
        return host

    def _known(self) -> tuple[dict[Telling, Wire], list[dict[str, Any]]]:
        """What new ones are to know, and facts of the models; waits for a device group.  Raises EngineError."""
        with self._lock:
            if not self._has_device.wait_for(lambda: self._groups() or self._stopped.is_set(), DEVICE_S):
                failure = self._device_failure()
                raise EngineError(f"the engine has had no device group for {DEVICE_S:.0f} s: {failure}")
            if not self._groups():
                raise EngineError("the engine is shutting down")
            wanted = dict(self._wanted)
            models = []
            for name in self._names:
                facts = [served for model, served in self._served.values() if model == name]  # pools may differ
                info = {**facts[0]["info"], "num_pages": min(one["info"]["num_pages"] for one in facts)}
                adapters = [] if name else wanted["set_adapters", 0][0]
                models.append({**facts[0], "info": info, "adapters": adapters})
            return wanted, models

    def refresh(self, hosts: Sequence[Member]) -> None:
        """Have hosts give back the places that were granted to clients and are free, and say how many came back."""
        for host, found in zip(hosts, self._members.gather(hosts, "recall_places", timeout_s=1.0), strict=True):
            if not isinstance(found, PierayError):
                host.returned(found)
