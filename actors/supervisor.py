"""Brings an engine's actors up in order, watches them, replaces those that die or freeze, places inferlets."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pieray.actors.adapters import AdapterShelf
from pieray.actors.admission import Standing
from pieray.actors.health import TICK_S, Health
from pieray.actors.keeper import Keeper
from pieray.actors.members import BATCHER, BROKER, INFERLETS, RESOURCE_MANAGER, Answer, Fleet, Member, Wire
from pieray.actors.pool import HostPool
from pieray.actors.quotas import Quotas
from pieray.actors.records import Locations, Restarts
from pieray.concurrency.stalls import Stalls
from pieray.config import Config
from pieray.errors import ActorGone, ChildCeiling, EngineError, NoAnswer, NotFound, Overloaded, PierayError, Stalled
from pieray.messages import Install, Launch, decode_one, encode
from pieray.programs.launches import may_have_run
from pieray.programs.registry import Bounds, Registry
from pieray.urgency import admitted

log = logging.getLogger(__name__)

LAUNCH_S = 60.0
"""How long a launch may take that comes without a deadline."""
TELL_S = 30.0
"""How long an actor may take to connect to others, or to be told of adapters."""
FACTS_S = 3.0
"""How long an actor may take to say how it is, or to end an inferlet."""
GRANT_S = 30.0
"""How long a client may launch at places that were granted to it."""
GRANT_PATIENCE_S = 1.0
"""How long an actor may take to hear of a grant."""
SLICE_S = 0.25
"""How often a launch looks whether its actor has been set aside meanwhile."""
MAX_FAILED_TELLS = 3
"""An actor that cannot be connected so often is replaced."""


class Supervisor:
    """The plain heart of the Controller.  Thread-safe."""

    def __init__(self, config: Config, fleet: Fleet, stalls: Stalls | None = None) -> None:
        self._config = config
        self._fleet = fleet
        self._stalls = stalls or Stalls(float("inf"))
        self.token = secrets.token_hex(32)
        self.registry: Registry
        self.shelf = AdapterShelf(self._ask)
        self._models: list[dict[str, Any]] = []
        self._members: list[Member] = []  # that were created and have not ended
        self._pair: tuple[Member, Member] | None = None  # the Batcher and its ResourceManager
        self._broker: Member | None = None
        self._wanted: dict[str, Wire] = {}  # what each host is to know: the arguments of its methods
        self._locations = Locations()
        self._restarts = {role: Restarts() for role in ("device group", BROKER, INFERLETS)}
        self._health = Health(
            lambda member: fleet.begin(member, "pulse"),
            suspect_s=config.suspect_after_s,
            replace_s=config.replace_after_s,
            stuck_s=config.turn_timeout_s,
        )
        self._pool = HostPool(
            capacity=config.inferlets_per_actor,
            spare=config.actor_pool,
            max_hosts=config.max_actors,
            create=self._new_host,
            end=self._end,
            refresh=self._refresh,
            max_waiting=config.max_waiting_launches,
            delay_s=lambda: self._restarts[INFERLETS].delay_s,
        )
        self._quotas = Quotas(config.tenant, self._ask_counted)
        self._keep_device = Keeper("device group", self._bring_up_device, self._restarts["device group"])
        self._keep_broker = Keeper(BROKER, self._bring_up_broker, self._restarts[BROKER])
        self._lock = threading.Lock()  # guards the fields; never held while an actor is asked
        self._has_device = threading.Condition(self._lock)
        self._device_lock = threading.RLock()  # held while the device group is brought up, and by work on its adapters
        self._tellers = ThreadPoolExecutor(16, "pieray-tell")
        self._stopped = threading.Event()
        self._incarnation = 0
        self._next_host = 0

    # --- life of the engine --------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; on failure everything is taken down again and the error raised."""
        try:
            self.registry = _registry_of(self._config)
            self._wanted["set_registry"] = (self.registry.revision,)
            hosts = [self._create_host() for _ in range(self._config.actor_pool)]
            self._bring_up_device()
            if self._config.store_path:  # one that cannot be opened is an error of the start
                self._bring_up_broker()
            self._open_hosts(hosts)
            self._pool.add(hosts)
        except BaseException:
            self.shutdown()
            raise
        self._keep_device.start()
        self._keep_broker.start(is_down=self._broker is None)  # no start waits for it; who asks it before waits
        for loop in (self._watch_deaths, self._watch_health):
            threading.Thread(target=self._repeat, args=(loop,), name=f"pieray{loop.__name__}", daemon=True).start()

    def shutdown(self) -> None:
        """Take all actors down, also while some are being replaced; idempotent."""
        self._stopped.set()
        for keeper in (self._keep_device, self._keep_broker):
            keeper.stop()
        self._pool.close()
        with self._lock:
            members = list(self._members)
            self._has_device.notify_all()
        closing = [m for m in members if m.role == INFERLETS and m.endpoint and not m.is_suspect]
        self._gather(closing, "close", timeout_s=5.0)
        for member in members:
            self._end(member)
        self._tellers.shutdown(wait=False, cancel_futures=True)

    def _create(self, role: str, number: int | None = None, near: Member | None = None) -> Member:
        with self._lock:
            self._incarnation += 1
            incarnation = self._incarnation
        member = self._fleet.create(role, number, incarnation, near)
        with self._lock:
            self._members.append(member)
        if self._stopped.is_set():
            self._end(member)
            raise EngineError("the engine is shutting down")
        return member

    def _end(self, member: Member) -> None:
        with self._lock:
            if member in self._members:
                self._members.remove(member)
        self._locations.forget(member)
        self._quotas.lost(member)
        self._fleet.kill(member)

    def _ask(self, member: Member, method: str, *args: Any, timeout_s: float) -> Any:
        return self._fleet.begin(member, method, *args)(timeout_s)

    def _gather(self, members: Sequence[Member], method: str, timeout_s: float) -> list[Any]:
        """What each of them answers in time, or its PierayError."""
        deadline = time.monotonic() + timeout_s
        asked: list[Answer | PierayError] = []
        for member in members:
            try:
                asked.append(self._fleet.begin(member, method))
            except PierayError as error:
                asked.append(error)
        found: list[Any] = []
        for answer in asked:
            try:
                found.append(answer if isinstance(answer, PierayError) else answer(deadline - time.monotonic()))
            except PierayError as error:
                found.append(error)
        return found

    # --- supervision ---------------------------------------------------------------------------

    def _repeat(self, loop: Callable[[], None]) -> None:
        """The life of a thread of supervision: nothing that a turn raises ends it."""
        while not self._stopped.is_set():
            try:
                loop()
            except BaseException:
                log.exception("a turn of the supervision failed; it goes on")
                self._stopped.wait(TICK_S)

    def _watch_deaths(self) -> None:
        for member in self._fleet.deaths(TICK_S):
            self._lost(member, "died")

    def _watch_health(self) -> None:
        """Finds who is frozen or stuck, deaths that `_watch_deaths` has missed, and what is to be told or tended."""
        with self._lock:
            members = list(self._members)
        began = time.monotonic()
        self._health.ask(members)
        self._stopped.wait(TICK_S)
        for member, why in self._health.hear(members, time.monotonic() - began):
            self._lost(member, why)
        for member in members:
            while member.launched:
                self._locations.add(*member.launched.popleft(), member)
            while member.tallies:
                self._note_tallies(member, *member.tallies.popleft())
        self._note_registry()  # other engines may share its folder
        for host in self._pool.hosts():
            if not host.is_suspect and self._is_behind(host):
                self._tellers.submit(self._tell, host)
        self._pool.noted()
        self._pool.tend(time.monotonic())

    def _lost(self, member: Member, why: str) -> None:
        """A member has died, or is to be replaced: it is ended for good, and whoever keeps its kind is told."""
        with self._lock:
            if member not in self._members or self._stopped.is_set():
                return
            is_device = self._pair is not None and member in self._pair
            is_broker = member is self._broker
        log.error("%s %s", member.describe(), why)
        self._end(member)
        if is_device:
            self._drop_pair()
            self._keep_device.down()
        elif is_broker:
            self._keep_broker.down()
        elif self._pool.remove(member):
            self._restarts[INFERLETS].note()
            self._pool.tend(time.monotonic())

    def _failure(self) -> str | None:
        """Why inferlets cannot be served at present; None also while something is being replaced in time."""
        return self._keep_device.failure or self._keep_broker.failure

    # --- the device group and the broker -------------------------------------------------------

    def _bring_up_device(self) -> None:
        """Replace the batcher and its resource manager: neither's state means anything without the other's.

        The resource manager is put on the batcher's node: they die together in any case.
        """
        with self._device_lock:
            self._drop_pair()
            pair: list[Member] = []
            try:
                pair.append(batcher := self._create(BATCHER))
                batcher.facts = self._ask(batcher, "describe", timeout_s=self._config.start_timeout_s)
                loading = self._fleet.begin(batcher, "load")
                pair.append(manager := self._create(RESOURCE_MANAGER, near=batcher))
                facts = loading(self._config.start_timeout_s)
                self.shelf.give_to(batcher, facts["adapters"])
                timeout_s = self._config.start_timeout_s
                num_pages = facts["info"]["num_pages"]
                manager.endpoint = tuple(self._ask(manager, "open", self.token, num_pages, timeout_s=timeout_s))
                batcher.endpoint = tuple(self._ask(batcher, "open", self.token, manager.endpoint, timeout_s=timeout_s))
            except BaseException:
                for member in pair:
                    self._end(member)
                raise
            self._models = [{**facts, "adapters": self.shelf.facts()}]
            with self._lock:
                self._pair = batcher, manager
                self._wanted["reconnect"] = batcher.endpoint, manager.endpoint
                self._wanted["set_adapters"] = (self.shelf.facts(),)
                self._has_device.notify_all()
        if any(member not in self._members for member in pair):  # it died before it could be missed
            raise ActorGone("one of the new device group has died already")
        self._tell_all()

    def _drop_pair(self) -> None:
        """End what is left of the device group; until hosts are connected to another one, launches wait."""
        with self._lock:
            old, self._pair = self._pair, None
            self._wanted.pop("reconnect", None)
        for host in self._pool.hosts():
            self._is_behind(host)
        for member in old or ():
            self._end(member)

    def _bring_up_broker(self) -> None:
        """What waited at the old one has its answer; queues and topics begin anew."""
        with self._lock:
            old, self._broker = self._broker, None
        if old is not None:
            self._end(old)
        broker = self._create(BROKER)
        try:
            broker.endpoint = tuple(self._ask(broker, "open", self.token, timeout_s=self._config.start_timeout_s))
        except BaseException:
            self._end(broker)
            raise
        with self._lock:
            self._broker = broker
            self._wanted["reconnect_broker"] = (broker.endpoint,)
        if broker not in self._members:
            raise ActorGone("the new broker has died already")
        self._tell_all()

    # --- hosts: what they are told ---------------------------------------------------------------

    def _is_behind(self, host: Member) -> bool:
        """Whether there is something to tell it; notes whether it is connected to the device group of today."""
        with self._lock:
            host.is_current = host.told.get("reconnect") == self._wanted.get("reconnect")
            return any(host.told.get(method) != args for method, args in self._wanted.items())

    def _tell_all(self, timeout_s: float = TELL_S) -> None:
        """Bring all hosts up to date, at once; those that take longer, or do not answer, are told later."""
        hosts = [host for host in self._pool.hosts() if self._is_behind(host) and not host.is_suspect]
        telling = {self._tellers.submit(self._tell, host): host for host in hosts}
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and (left := [f for f, h in telling.items() if not h.is_suspect]):
            if not wait(left, timeout=SLICE_S).not_done:
                return

    def _tell(self, host: Member) -> None:
        """Tell a host what it does not know yet; one thread at a time does."""
        if not host.telling.acquire(blocking=False):
            return
        try:
            while self._is_behind(host):
                with self._lock:
                    method, args = next((m, a) for m, a in self._wanted.items() if host.told.get(m) != a)
                self._ask(host, method, *args, timeout_s=TELL_S)
                host.told[method] = args
                host.num_failed_tells = 0
        except BaseException as error:  # noqa: BLE001 - it is told again
            host.num_failed_tells += 1
            log.warning("%s could not be told of the others: %s", host.describe(), error)
        finally:
            host.telling.release()
        self._pool.noted()
        if host.num_failed_tells >= MAX_FAILED_TELLS:
            self._lost(host, f"could not be connected {MAX_FAILED_TELLS} times")

    def _create_host(self) -> Member:
        with self._lock:
            number, self._next_host = self._next_host, self._next_host + 1
        return self._create(INFERLETS, number)

    def _new_host(self) -> Member:
        host = self._create_host()
        try:
            self._await_device()
            self._open_hosts([host])
        except BaseException:
            self._end(host)
            raise
        return host

    def _await_device(self) -> None:
        with self._lock:
            if not self._has_device.wait_for(lambda: self._pair is not None or self._stopped.is_set(), LAUNCH_S):
                failure = self._keep_device.failure
                raise EngineError(f"the engine has had no device group for {LAUNCH_S:.0f} s: {failure}")

    def _open_hosts(self, hosts: list[Member]) -> None:
        with self._lock:
            wanted = dict(self._wanted)
            models = [{**facts, "adapters": wanted["set_adapters"][0]} for facts in self._models]
        peers = *wanted["reconnect"], wanted.get("reconnect_broker", ((),))[0], *wanted["set_registry"]
        opening = [self._fleet.begin(host, "open", self.token, models, *peers) for host in hosts]
        for host, answer in zip(hosts, opening, strict=True):
            host.endpoint = tuple(answer(self._config.start_timeout_s))
            host.told = dict(wanted)
            self._health.answered(host, self._ask(host, "pulse", timeout_s=FACTS_S))
            self._is_behind(host)

    def _refresh(self, hosts: Sequence[Member]) -> None:
        """Have hosts give back the places that were granted to clients and are free, and say how many came back."""
        for host, found in zip(hosts, self._gather(hosts, "recall_places", timeout_s=1.0), strict=True):
            if not isinstance(found, PierayError):
                host.returned(found)

    def _ask_counted(self, hosts: Collection[Member]) -> None:
        """Ask them which of the inferlets that count against quotas live there."""
        asked = [host for host in hosts if not host.is_suspect]
        asked_at = time.monotonic()
        for host, found in zip(asked, self._gather(asked, "counted", timeout_s=1.0), strict=True):
            if not isinstance(found, PierayError):
                self._quotas.heard(host, found, asked_at)

    def _note_tallies(self, host: Member, asked_at: float, tallies: Mapping[str, Any]) -> None:
        self._quotas.heard(host, tallies["live"], asked_at)
        for tenant, num_tokens in tallies["tokens"].items():
            self._quotas.used(tenant, num_tokens)

    # --- adapters ------------------------------------------------------------------------------

    def load_adapter(self, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load a LoRA adapter into the batcher and make it known; its facts."""
        with self._device_lock:
            facts = self.shelf.add(self._batcher(), file, data, owner)
            self._tell_adapters()
        return facts

    def unload_adapter(self, name: str, owner: str) -> None:
        """Nobody can open it from now on; passes through handles that are open already fail with `evicted`."""
        with self._device_lock:
            number = self.shelf.remove(name, owner)
            self._tell_adapters()
            self._ask(self._batcher(), "remove_adapter", number, timeout_s=TELL_S)

    def ask_pages(self, method: str, *args: Any) -> Any:
        """The answer of the ResourceManager; raises EngineError while there is none."""
        return self._ask(self._device_pair()[1], method, *args, timeout_s=FACTS_S)

    def _batcher(self) -> Member:
        return self._device_pair()[0]

    def _device_pair(self) -> tuple[Member, Member]:
        if self._pair is None:
            raise EngineError("the engine has no device group at present: it died and is being replaced")
        return self._pair

    def _tell_adapters(self) -> None:
        with self._lock:
            self._wanted["set_adapters"] = (self.shelf.facts(),)
        self._tell_all()

    # --- programs ------------------------------------------------------------------------------

    def install(self, program: Install) -> dict[str, Any]:
        """Keep a program; its facts.  When this returns, no actor that answers launches what it replaces."""
        facts = self.registry.install(program)
        self._tell_registry()
        return facts

    def uninstall(self, spec: str, tenant: str, user: str) -> list[str]:
        """Forget it; what is dropped.  When this returns, no actor that answers launches it any more."""
        dropped = self.registry.uninstall(spec, tenant, user)
        self._tell_registry()
        return dropped

    def _tell_registry(self) -> None:
        self._note_registry()
        self._tell_all()

    def _note_registry(self) -> None:
        with contextlib.suppress(OSError):  # its folder cannot be read at present
            revision = self.registry.revision
            with self._lock:
                self._wanted["set_registry"] = (revision,)

    # --- inferlets -----------------------------------------------------------------------------

    def launch(self, frame: bytes, sent_at: float | None = None, deadline: float | None = None) -> Wire:
        """Start an inferlet on the actor with the most room; a new actor is added when all are full.

        Times are of this process's time.monotonic.  Raises Stalled, having started nothing, if it stood still since
        the launch was sent: its client may have given it up.  Raises Overloaded where there is no place for it, and
        PeerLost where its actor died so that it may have run.
        """
        sent_at = time.monotonic() if sent_at is None else sent_at
        deadline = min(time.monotonic() + self._config.launch_wait_s, float("inf") if deadline is None else deadline)
        message = decode_one(frame, Launch)
        standing = self._standing_of(message)
        if not message.source and not message.component:
            message = self.registry.filled(message, self._config.limits)
            frame = encode([message])
        if (failure := self._failure()) is not None:
            raise EngineError(failure)
        ceiling = self._config.child_ceiling
        if message.depth and self._pool.num_live() >= ceiling and (num_live := self._pool.num_live_now()) >= ceiling:
            raise ChildCeiling(
                f"child_ceiling: no child is launched while {ceiling} inferlets run on this engine; {num_live} do"
            )

        def start(host: Member) -> None:
            self._check_stall(sent_at)
            if self._fleet.has_died(host):  # before anything was sent to it: the launch has its place elsewhere
                self._lost(host, "died")
                raise ActorGone(f"{host.describe()} has died")
            self._launch_on(host, frame, message.instance_id, deadline)

        with self._counted(message):
            host = self._pool.launch(start, deadline, standing)
        self._quotas.placed(message.instance_id, host)
        self._locations.add(message.instance_id, message.name, host)
        self._check_stall(sent_at, lambda: self._give_up(host, message.instance_id))
        return host.endpoint

    def _standing_of(self, message: Launch) -> Standing:
        """Raises InvalidRequest for a priority or a deadline that is none."""
        ranked = admitted(message, self._config.tenant(message.tenant), time.time())
        return Standing(ranked.tenant, ranked.priority, ranked.deadline, is_child=bool(ranked.depth))

    @contextlib.contextmanager
    def _counted(self, message: Launch) -> Iterator[None]:
        """The launch counts against its tenant's quotas, unless it comes to nothing.  Raises Overloaded."""
        try:
            self._quotas.take(message.tenant, message.instance_id)
        except Overloaded:
            self._pool.note_refused(message.tenant)
            raise
        try:
            yield
        except BaseException:
            self._quotas.give_back(message.instance_id)
            raise

    def grant(self, num_places: int) -> tuple[Any, ...] | None:
        """Up to so many places of one actor for a client, which launches there without a word to the Controller:

        (endpoint, id of the grant, places, for how many seconds, the actor's time.monotonic); None where there is no
        room, or no actor that answers at once: `launch` waits for one.  Raises EngineError while nothing can be served.
        """
        if (failure := self._failure()) is not None:
            raise EngineError(failure)
        found = self._pool.grant(num_places)
        if found is None:
            return None
        host, num_granted = found
        grant_id = secrets.token_hex(8)
        try:
            clock = self._ask(host, "grant", grant_id, num_granted, GRANT_S, timeout_s=GRANT_PATIENCE_S)
        except NoAnswer:  # should it open it later, the places come back when the grant ends there
            return None
        except ActorGone:
            self._lost(host, "died")
            return None
        return host.endpoint, grant_id, num_granted, GRANT_S, clock

    def _check_stall(self, sent_at: float, undo: Callable[[], None] = lambda: None) -> None:
        if self._stalls.is_since(sent_at):
            undo()
            raise Stalled("the Controller was frozen while it had the launch: launch again")

    def _launch_on(self, host: Member, frame: bytes, instance_id: str, deadline: float) -> None:
        """Launch there, and wait while the actor lives.  One that is given up does not start any more."""
        while True:
            now = time.monotonic()
            answer = self._fleet.begin(host, "launch", frame, host.clock.at(now), host.clock.at(deadline))
            try:
                return self._launched(host, answer, deadline)
            except Stalled:  # the actor woke up with it, and has not started it
                self._pool.sent_again(host)
            except NoAnswer:
                self._give_up(host, instance_id)
                raise
            except ActorGone as gone:
                self._lost(host, "died with a launch under way")
                raise may_have_run(host.describe(), instance_id) from gone

    def _launched(self, host: Member, answer: Answer, deadline: float) -> None:
        while True:
            try:
                answer(SLICE_S)
            except NoAnswer:
                if host.is_suspect:
                    raise NoAnswer(
                        f"{host.describe()} does not answer, for {host.silent_s:.0f} s now: it is frozen or "
                        "out of reach"
                    ) from None
                if time.monotonic() > deadline + FACTS_S:
                    raise NoAnswer(f"{host.describe()} did not launch it in time") from None
            else:
                return

    def _give_up(self, host: Member, instance_id: str) -> None:
        """Should it have started just before its actor fell silent, it ends when that wakes up."""
        try:
            self._fleet.begin(host, "kill", instance_id, "its launch was given up")(0.0)
        except PierayError as error:
            log.info("%s: %s", host.name, error)

    def locate(self, instance_id: str) -> tuple[str, Wire]:
        name, host = self._location(instance_id)
        return name, host.endpoint

    def kill(self, instance_id: str, reason: str) -> None:
        """End an inferlet.  Raises NotFound, NoAnswer naming the actor: it ends when that wakes up, or with it."""
        _, host = self._location(instance_id)
        answer = self._fleet.begin(host, "kill", instance_id, reason)
        try:
            answer(0.1 if host.is_suspect else FACTS_S)
        except NoAnswer:
            raise NoAnswer(
                f"{host.describe()} does not answer: {instance_id} ends when it wakes up, or when it is "
                f"replaced, after {self._config.replace_after_s:.0f} s of silence"
            ) from None

    def _location(self, instance_id: str) -> tuple[str, Member]:
        if (found := self._locations.find(instance_id)) is not None:
            return found
        for host, row in self._inferlets():  # launched by a grant just now, or for longer than locations are kept
            if row["instance_id"] == instance_id:
                return row["name"], host
        if silent := [host.describe() for host in self._pool.hosts() if host.is_suspect]:
            raise NoAnswer(f"{', '.join(silent)} does not answer: {instance_id} may run there")
        raise NotFound(f"no inferlet {instance_id!r} was launched here lately; see `pieray ps`")

    # --- facts ---------------------------------------------------------------------------------

    def config_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self._config)

    def models(self) -> list[dict[str, Any]]:
        return [facts["info"] for facts in self._models]

    def ps(self) -> list[dict[str, Any]]:
        """Inferlets that run or have ended lately; those on an actor that does not answer are "unreachable"."""
        return [row for _, row in self._inferlets()]

    def _inferlets(self) -> Iterator[tuple[Member, dict[str, Any]]]:
        hosts = self._pool.hosts()
        for host, rows in zip(hosts, self._facts_of(hosts, "inferlets"), strict=True):
            for row in self._unreachable(host, rows) if isinstance(rows, PierayError) else rows:
                yield host, row

    def _unreachable(self, host: Member, why: PierayError) -> Iterator[dict[str, Any]]:
        log.info("%s: %s", host.name, why)
        for instance_id, name in self._locations.on(host):
            yield {
                "instance_id": instance_id,
                "name": name,
                "state": "unreachable",
                "cpu_time_s": 0.0,
                "pages": 0,
                "swapped": 0,
                "output_bytes": 0,
                "error": f"{host.describe()} does not answer",
            }

    def admission(self) -> dict[str, Any]:
        """By tenant, launches that wait for a place ("waiting") and that were refused one ("refused"), and what is used
        of quotas ("quotas": inferlets, tokens_left)."""
        return {**self._pool.launches(), "quotas": self._quotas.facts()}

    def status(self) -> dict[str, Any]:
        """Facts of every actor, by role; of one that does not answer, what is known of it and its silence."""
        with self._lock:
            alive = [*(self._pair or ())[::-1], *([self._broker] if self._broker is not None else [])]
        alive += self._pool.hosts()
        rows = [_row(m, found) for m, found in zip(alive, self._facts_of(alive, "status"), strict=True)]
        return {
            "namespace": self._config.namespace,
            "transport": self._config.transport,
            "failure": self._failure(),
            "silent": [row["name"] for row in rows if row["state"] == "silent"],
            "num_restarts": sum(restarts.num_recent for restarts in self._restarts.values()),
            "actors": rows,
            "admission": self.admission(),
        }

    def _facts_of(self, members: Sequence[Member], method: str) -> list[Any]:
        """As `_gather`; those that are set aside are not waited for."""
        asked = [member for member in members if not member.is_suspect]
        found = dict(zip(map(id, asked), self._gather(asked, method, FACTS_S), strict=True))
        return [found.get(id(m), NoAnswer(f"{m.describe()} does not answer")) for m in members]


def _row(member: Member, found: Mapping[str, Any] | PierayError) -> dict[str, Any]:
    row: dict[str, Any] = {"role": member.role, "name": member.name, "incarnation": member.incarnation, **member.facts}
    if not isinstance(found, PierayError):
        return {**row, "state": "up", **found}
    state = "silent" if isinstance(found, NoAnswer) else "failing"
    return {**row, "state": state, "silent_s": round(member.silent_s, 1), "error": found.message}


def _registry_of(config: Config) -> Registry:
    bounds = Bounds(config.registry_programs, config.registry_bytes, config.limits.source_bytes)
    return Registry(Path(config.registry_path) if config.registry_path else None, bounds)
