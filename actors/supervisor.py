"""Brings an engine's actors up in order, watches them, replaces those that die, places inferlets."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from pieray.actors.adapters import AdapterShelf
from pieray.actors.batcher import Batcher
from pieray.actors.broker import Broker
from pieray.actors.cluster_facts import await_free, num_gpus
from pieray.actors.common import actor_name, create_actor, launch_of
from pieray.actors.inferlet_actor import InferletActor
from pieray.actors.pool import HostPool, Member
from pieray.actors.records import Locations, Restarts
from pieray.actors.resource_manager import ResourceManager
from pieray.config import Config
from pieray.errors import DeadlineExceeded, DeviceLost, EngineError, NotFound, PeerLost, QuotaExceeded
from pieray.messages import encode
from pieray.raycalls import ask_actor, await_answer
from pieray.registry import Bounds, Registry

log = logging.getLogger(__name__)

Wire = tuple[Any, ...]

TEND_S = 10.0
PATIENCE_S = 60.0


class Supervisor:
    """The plain heart of the Controller.  Thread-safe."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.token = secrets.token_hex(32)
        self.registry: Registry
        self._resource_manager: Member | None = None
        self._batcher: Member | None = None
        self._broker: Member | None = None
        self._pool = HostPool(
            capacity=config.inferlets_per_actor, spare=config.actor_pool, create=self._new_host, end=self._end,
            num_live=lambda host: self._ask(host, "num_live"),
        )  # fmt: skip
        self._models: list[dict[str, Any]] = []
        self.shelf = AdapterShelf()
        self._locations = Locations()
        self._watched: dict[Any, Member] = {}
        self._restarts = Restarts()
        self._incarnation = 0
        self._failure: str | None = None
        self._is_stopping = False
        self._lock = threading.RLock()  # guards the fields; never held while an actor is asked
        self._mending = threading.RLock()  # held while actors are brought up or the device group is replaced
        self._next_host = 0
        self._may_need_host = threading.Event()

    # --- life of the engine --------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; on failure everything is taken down again and the error raised."""
        try:
            self.registry = _registry_of(self._config)
            hosts = [self._create_host() for _ in range(self._config.actor_pool)]
            self._bring_up_device()
            if self._config.store_path:  # one that cannot be opened is an error of the start
                self._replace_broker()
            self._pool.add(self._open_hosts(hosts))
        except BaseException:
            self.shutdown()
            raise
        for task, name in ((self._watch, "supervisor"), (self._tend, "pool"), (self._start_broker, "broker")):
            threading.Thread(target=task, name=f"pieray-{name}", daemon=True).start()

    def shutdown(self) -> None:
        """Take all actors down, also while some are being replaced; idempotent."""
        with self._lock:
            self._is_stopping = True
            members = list(self._watched.values())
        self._may_need_host.set()
        closing = [m.handle.close.remote() for m in members if m.role == "inferlets" and m.endpoint]
        ray.wait(closing, num_returns=len(closing), timeout=5.0) if closing else None
        for member in members:
            ray.kill(member.handle)

    def _create(self, cls: type, role: str, number: int | None = None) -> Member:
        with self._lock:
            self._incarnation += 1
            incarnation = self._incarnation
        name = actor_name(role, number)
        gpus = num_gpus(self._config) if role == "batcher" else 0.0
        handle = create_actor(cls, self._config, name, name, incarnation, num_gpus=gpus)
        member = Member(role, handle)
        with self._lock:
            self._watched[handle.watch.remote()] = member
        return member

    def _bring_up_device(self) -> None:
        """Start a batcher and its resource manager; of a pair that does not come up, neither is left."""
        pair: list[Member] = []
        try:
            pair.append(manager := self._create(ResourceManager, "resource-manager"))
            pair.append(batcher := self._create(Batcher, "batcher"))
            facts = self._ask(batcher, "load", timeout_s=self._config.start_timeout_s)
            self.shelf.give_to(batcher, facts["adapters"])
            manager.endpoint = tuple(self._ask(manager, "open", self.token, facts["info"]["num_pages"]))
            batcher.endpoint = tuple(self._ask(batcher, "open", self.token, manager.endpoint))
        except BaseException:
            for member in pair:
                self._end(member)
            raise
        self._models = [{**facts, "adapters": self.shelf.facts()}]
        self._resource_manager, self._batcher = manager, batcher

    def _open_hosts(self, hosts: list[Member]) -> list[Member]:
        if self._batcher is None or self._resource_manager is None:
            raise EngineError("the engine has no device group at present: it died and is not replaced")
        broker = () if self._broker is None else self._broker.endpoint
        peers = (self._batcher.endpoint, self._resource_manager.endpoint, broker)
        opening = [h.handle.open.remote(self.token, self._models, *peers) for h in hosts]
        for host, ref in zip(hosts, opening, strict=True):
            host.endpoint = tuple(await_answer(ref, "open", timeout_s=self._config.start_timeout_s))
        return hosts

    def _ask(self, member: Member, method: str, *args: Any, timeout_s: float = PATIENCE_S) -> Any:
        return ask_actor(member.handle, method, *args, timeout_s=timeout_s)

    # --- supervision ---------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._is_stopping:
            if not self._watched:  # all are given up: ray.wait would not wait
                time.sleep(1.0)
                continue
            ready, _ = ray.wait(list(self._watched), num_returns=1, timeout=1.0)
            for ref in ready:
                member = self._watched.pop(ref, None)
                if member is not None and not self._is_stopping:
                    self._replace(member)

    def _tend(self) -> None:
        """After launches, and now and then, see to the pool."""
        while not self._is_stopping:
            self._may_need_host.wait(TEND_S)
            self._may_need_host.clear()
            if self._is_stopping or self._failure is not None:
                return
            try:
                self._pool.tend(time.monotonic())
            except Exception as error:  # noqa: BLE001 - without this thread no actor would ever come again
                log.warning("the pool of InferletActors could not be tended: %s", error)

    def _replace(self, member: Member) -> None:
        is_device = member in (self._batcher, self._resource_manager)
        is_broker = member is self._broker
        if member.role != "inferlets" and not (is_device or is_broker):
            return  # one that was given up, or the other half of a pair
        log.error("%s died", member.role)
        try:
            self._restarts.spend(member.role)
            if is_device or is_broker:
                self._mend(self._replace_device if is_device else self._replace_broker, member.role)
            else:
                self._pool.remove(member)
                self._may_need_host.set()
        except Exception as error:  # noqa: BLE001 - whatever it is, launches are told
            self._give_up(member.role, error)

    def _start_broker(self) -> None:
        """Once the engine is up, so that its start is no slower: what inferlets ask of it till then waits for it."""
        try:
            if self._broker is None:
                self._mend(self._replace_broker, "broker")
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up("broker", error)

    def _give_up(self, role: str, error: Exception) -> None:
        if not self._is_stopping:
            self._failure = f"{role} died and could not be replaced: {error}"
            log.error("%s", self._failure, exc_info=error)

    def _mend(self, replace: Callable[[], None], role: str) -> None:
        while not self._is_stopping and not self._replaced(replace, role):
            self._restarts.spend(role)

    def _replaced(self, replace: Callable[[], None], role: str) -> bool:
        """False: not this time, but another try may succeed."""
        try:
            with self._mending:
                replace()
        except (EngineError, PeerLost, DeviceLost, DeadlineExceeded) as error:
            log.warning("the %s did not come up again: %s", role, error)
            return False
        return True

    def _replace_device(self) -> None:
        """A batcher and its resource manager live and die together: neither's state means anything alone."""
        for member in (self._batcher, self._resource_manager):
            if member is not None:
                ray.kill(member.handle)
        self._batcher = self._resource_manager = None
        await_free([actor_name("batcher"), actor_name("resource-manager")], self._config.namespace)
        self._bring_up_device()
        assert self._batcher is not None
        assert self._resource_manager is not None
        self._tell_hosts("reconnect", self._batcher.endpoint, self._resource_manager.endpoint)
        self._tell_adapters()

    def _replace_broker(self) -> None:
        """What waited at the old one has its answer; queues and topics begin anew."""
        if self._broker is not None:
            self._end(self._broker)
        self._broker = None
        await_free([actor_name("broker")], self._config.namespace)
        broker = self._create(Broker, "broker")
        try:
            broker.endpoint = tuple(self._ask(broker, "open", self.token, timeout_s=self._config.start_timeout_s))
        except BaseException:
            self._end(broker)
            raise
        self._broker = broker
        self._tell_hosts("reconnect_broker", broker.endpoint)

    def _tell_hosts(self, method: str, *endpoints: Wire) -> None:
        for host in self._pool.hosts():
            try:
                self._ask(host, method, *endpoints)
            except EngineError as error:  # dead or stuck; its death is seen to as any other's
                log.warning("an InferletActor did not %s: %s", method, error)
                ray.kill(host.handle)

    # --- the pool's hands ----------------------------------------------------------------------

    def _create_host(self) -> Member:
        with self._lock:
            number, self._next_host = self._next_host, self._next_host + 1
        return self._create(InferletActor, "inferlets", number)

    def _new_host(self) -> Member:
        if not self._mending.acquire(timeout=PATIENCE_S / 2):
            raise EngineError(f"the engine has been replacing actors for over {PATIENCE_S / 2:.0f} s; try again later")
        try:
            host = self._create_host()
            try:
                self._open_hosts([host])
            except BaseException:
                self._end(host)
                raise
            return host
        finally:
            self._mending.release()

    def _end(self, host: Member) -> None:
        with self._lock:
            for ref in [ref for ref, member in self._watched.items() if member is host]:
                del self._watched[ref]
        self._locations.forget(host)
        ray.kill(host.handle)

    # --- adapters ------------------------------------------------------------------------------

    def load_adapter(self, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load a LoRA adapter into the batcher and make it known; its facts."""
        with self._mending:
            if self._batcher is None:
                raise EngineError("the engine has no device group at present: it died and is not replaced")
            facts = self.shelf.add(self._batcher, file, data, owner)
            self._tell_adapters()
        return facts

    def unload_adapter(self, name: str, owner: str) -> None:
        """Nobody can open it from now on; passes through handles that are open already fail with `evicted`."""
        with self._mending:
            number = self.shelf.remove(name, owner)
            self._tell_adapters()
            if self._batcher is not None:
                self._ask(self._batcher, "remove_adapter", number)

    def _tell_adapters(self) -> None:
        facts = self.shelf.facts()
        self._models = [{**self._models[0], "adapters": facts}]
        asked = [host.handle.set_adapters.remote(facts) for host in self._pool.hosts()]
        for ref in asked:
            try:
                await_answer(ref, "set_adapters", timeout_s=PATIENCE_S)
            except EngineError as error:  # a new actor in its place is told when it opens
                log.warning("an InferletActor was not told of the adapters: %s", error)

    # --- inferlets -----------------------------------------------------------------------------

    def launch(self, frame: bytes) -> Wire:
        """Start an inferlet on the actor with the most room; a new actor is added when all are full."""
        message = launch_of(frame)
        if not message.source and not message.component:
            message = self.registry.filled(message, self._config.limits)
            frame = encode([message])
        if self._failure is not None:
            raise EngineError(self._failure)
        if message.depth and (num_live := self._pool.num_live()) >= self._config.child_ceiling:
            raise QuotaExceeded(f"child_ceiling: no child is launched while {self._config.child_ceiling} inferlets run "
                                f"on this engine; {num_live} do")  # fmt: skip
        host = self._pool.launch(lambda host: self._ask(host, "launch", frame))
        self._may_need_host.set()
        self._locations.add(message.instance_id, message.name, host)
        return host.endpoint

    def locate(self, instance_id: str) -> tuple[str, Wire]:
        name, host = self._location(instance_id)
        return name, host.endpoint

    def kill(self, instance_id: str, reason: str) -> None:
        _, host = self._location(instance_id)
        self._ask(host, "kill", instance_id, reason)

    def _location(self, instance_id: str) -> tuple[str, Member]:
        if (found := self._locations.find(instance_id)) is not None:
            return found
        for host, row in self._inferlets():  # it may have run for longer than locations are kept
            if row["instance_id"] == instance_id:
                return row["name"], host
        raise NotFound(f"no inferlet {instance_id!r} was launched here lately; see `pieray ps`")

    # --- facts ---------------------------------------------------------------------------------

    def config_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self._config)

    def models(self) -> list[dict[str, Any]]:
        return [facts["info"] for facts in self._models]

    def ps(self) -> list[dict[str, Any]]:
        return [row for _, row in self._inferlets()]

    def _inferlets(self) -> Iterator[tuple[Member, dict[str, Any]]]:
        """All inferlets, of the actors that answer."""
        for host in self._pool.hosts():
            try:
                rows = self._ask(host, "inferlets")
            except EngineError as error:
                log.info("an InferletActor does not answer: %s", error)
                continue
            for row in rows:
                yield host, row

    def status(self) -> dict[str, Any]:
        """Facts of every actor, by role."""
        alive = [m for m in (self._resource_manager, self._batcher, self._broker, *self._pool.hosts()) if m is not None]
        members = [{"role": m.role, **self._ask(m, "status")} for m in alive]
        return {"namespace": self._config.namespace, "transport": self._config.transport, "failure": self._failure,
                "num_restarts": self._restarts.num_recent, "actors": members}  # fmt: skip


def _registry_of(config: Config) -> Registry:
    bounds = Bounds(config.registry_programs, config.registry_bytes, config.limits.source_bytes)
    return Registry(Path(config.registry_path) if config.registry_path else None, bounds)
