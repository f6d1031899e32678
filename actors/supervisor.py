"""Brings an engine's actors up in order, watches them, and has those replaced that die or freeze."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pieray.actors.device_groups import DeviceGroups
from pieray.actors.health import TICK_S, Health
from pieray.actors.hosts import Hosts
from pieray.actors.kept_broker import KeptBroker
from pieray.actors.members import BATCHER, BROKER, INFERLETS, RESOURCE_MANAGER, Fleet, Member, Members
from pieray.actors.placement import Placement
from pieray.actors.records import Restarts
from pieray.concurrency.stalls import Stalls
from pieray.config import Config
from pieray.errors import NoAnswer, PierayError
from pieray.messages import Install
from pieray.programs.registry import Bounds, Registry

log = logging.getLogger(__name__)


class Supervisor:
    """The plain heart of the Controller.  Thread-safe."""

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        stalls: Stalls | None = None,
        num_actors: int = 1,
        num_groups: Mapping[str, int] | None = None,
    ) -> None:
        """`num_actors`: InferletActors to keep, if the settings leave that open; the first of them is waited for.
        `num_groups`: device groups by model, see `DeviceGroups`."""
        self._config = config
        self._fleet = fleet
        self.token = secrets.token_hex(32)
        self.registry: Registry
        self._stopped = threading.Event()
        self._restarts = {role: Restarts() for role in ("device group", BROKER, INFERLETS)}
        self._members = Members(fleet, self._ended, self._stopped)
        self._health = Health(
            lambda member: fleet.begin(member, "pulse"),
            suspect_s=config.suspect_after_s,
            replace_s=config.replace_after_s,
            stuck_s=config.turn_timeout_s,
        )
        self._hosts = Hosts(
            config,
            self._members,
            self._health,
            token=self.token,
            restarts=self._restarts[INFERLETS],
            stopped=self._stopped,
            num_kept=config.actor_pool or num_actors,
            lost=self._lost,
            device_failure=lambda: self.devices.failure,
        )
        self.devices = DeviceGroups(
            config,
            self._members,
            self._hosts,
            token=self.token,
            restarts=self._restarts["device group"],
            num_groups=num_groups,
        )
        self._broker = KeptBroker(config, self._members, self._hosts, token=self.token, restarts=self._restarts[BROKER])
        self.placement = Placement(
            config,
            self._members,
            self._hosts.pool,
            stalls or Stalls(float("inf")),
            registry=lambda: self.registry,
            failure=self._failure,
            lost=self._lost,
        )

    # --- life of the engine --------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up; on failure everything is taken down again and the error raised."""
        try:
            self.registry = _registry_of(self._config)
            self._hosts.want("set_registry", self.registry.revision)
            hosts = [self._hosts.create() for _ in range(self._config.actor_pool or 1)]
            self.devices.bring_up()
            if self._config.store_path:  # one that cannot be opened is an error of the start
                self._broker.bring_up()
            self._hosts.open(hosts)
            self._hosts.pool.add(hosts)
        except BaseException:
            self.shutdown()
            raise
        self.devices.keep()
        self._broker.keeper.start(is_down=not self._broker.running())  # no start waits for it; who asks it before waits
        for loop in (self._watch_deaths, self._watch_health):
            threading.Thread(target=self._repeat, args=(loop,), name=f"pieray{loop.__name__}", daemon=True).start()

    def shutdown(self) -> None:
        """Take all actors down, also while some are being replaced; idempotent."""
        self._stopped.set()
        self.devices.stop()
        self._broker.keeper.stop()
        self._hosts.stop()
        members = self._members.all()
        closing = [m for m in members if m.role == INFERLETS and m.endpoint and not m.is_suspect]
        self._members.gather(closing, "close", timeout_s=5.0)
        for member in members:
            self._members.end(member)
        self._hosts.close()

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
        members = self._members.all()
        began = time.monotonic()
        self._health.ask(members)
        self._stopped.wait(TICK_S)
        for member, why in self._health.hear(members, time.monotonic() - began):
            self._lost(member, why)
        for member in members:
            self.placement.note(member)
        self._note_registry()  # other engines may share its folder
        self._hosts.tell_late()
        self._hosts.pool.noted()
        self._hosts.pool.tend(time.monotonic())

    def _lost(self, member: Member, why: str) -> None:
        """A member has died, or is to be replaced: it is ended for good, and whoever keeps its kind is told."""
        if member not in self._members or self._stopped.is_set():
            return
        log.error("%s %s", member.describe(), why)
        self._members.end(member)
        if not self.devices.lost(member) and not self._broker.lost(member) and self._hosts.pool.remove(member):
            self._restarts[INFERLETS].note()
            self._hosts.pool.tend(time.monotonic())

    def _ended(self, member: Member) -> None:
        self.placement.forget(member)

    def _failure(self) -> str | None:
        """Why inferlets cannot be served at present; None also while something is being replaced in time."""
        return self.devices.failure or self._broker.keeper.failure

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
        self._hosts.tell_all()

    def _note_registry(self) -> None:
        with contextlib.suppress(OSError):  # its folder cannot be read at present
            self._hosts.want("set_registry", self.registry.revision)

    # --- facts ---------------------------------------------------------------------------------

    def config_mapping(self) -> dict[str, Any]:
        return dataclasses.asdict(self._config)

    def status(self) -> dict[str, Any]:
        """Facts of every actor, by role; of one that does not answer, what is known of it and its silence."""
        alive = [*self.devices.running(), *self._broker.running(), *self._hosts.pool.hosts()]
        rows = [self._row(m, found) for m, found in zip(alive, self._members.facts_of(alive, "status"), strict=True)]
        return {
            "namespace": self._config.namespace,
            "transport": self._config.transport,
            "failure": self._failure(),
            "silent": [row["name"] for row in rows if row["state"] == "silent"],
            "num_restarts": sum(restarts.num_recent for restarts in self._restarts.values()),
            "restarts": {kind: restarts.num_ever for kind, restarts in self._restarts.items()},
            "actors": rows,
            "admission": self.placement.admission(),
        }

    def _row(self, member: Member, found: Mapping[str, Any] | PierayError) -> dict[str, Any]:
        row: dict[str, Any] = {"role": member.role, "name": member.name, "incarnation": member.incarnation}
        row |= member.facts
        if member.role in (BATCHER, RESOURCE_MANAGER):
            row |= {"group": member.number, "model": self.devices.name_of(member)}
        if not isinstance(found, PierayError):
            return {**row, "state": "up", **found}
        state = "silent" if isinstance(found, NoAnswer) else "failing"
        return {**row, "state": state, "silent_s": round(member.silent_s, 1), "error": found.message}


def _registry_of(config: Config) -> Registry:
    bounds = Bounds(config.registry_programs, config.registry_bytes, config.limits.source_bytes)
    return Registry(Path(config.registry_path) if config.registry_path else None, bounds)
