"""The device groups of one model: as many as its `replicas` says, or as `scale` has made them.

They know nothing of each other; what is loaded into one, adapters, is loaded into each.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from pieray.actors.device_group import DeviceGroup, bring_up
from pieray.actors.hosts import Hosts
from pieray.actors.kept_adapters import KeptAdapters
from pieray.actors.members import FACTS_S, Member, Members
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import EngineError, InvalidRequest, PierayError
from pieray.model_settings import MAX_REPLICAS

DRAIN_POLL_S = 0.1


class ModelGroups:
    """Those of one model, and the adapters that are loaded there.  Thread-safe."""

    def __init__(
        self,
        name: str,
        config: Config,
        members: Members,
        hosts: Hosts,
        numbers: Iterator[int],
        *,
        token: str,
        restarts: Restarts,
        num_groups: int = 1,
    ) -> None:
        """`name`: of the model, "" for the default one.  `numbers` gives each group one that no other has."""
        self.name = name
        settings = config.all_models()[name]
        self.served_name = settings.served_name
        """By which programs ask for it."""
        self._members = members
        self._hosts = hosts
        self.adapters = KeptAdapters(members.ask, members.keep)

        def new(*, has_siblings: bool) -> DeviceGroup:
            made = DeviceGroup(
                next(numbers), config, members, hosts, self.adapters, model=name, token=token, restarts=restarts
            )
            made.has_siblings, made.siblings = has_siblings, self._running_batchers
            return made

        self._new = new
        self.groups = [new(has_siblings=num_groups > 1) for _ in range(num_groups)]
        self._scaling = threading.Lock()
        self._stopped = threading.Event()

    # --- life ------------------------------------------------------------------------------------

    def keep(self) -> None:
        """From now on, replace those that die."""
        for group in self.groups:
            group.keeper.start()

    def scale(self, num_groups: int, drain_s: float) -> None:
        """Have so many, one at least: more are brought up, or the last ones go when nothing computes on them any more,
        after `drain_s` seconds in any case.  Raises InvalidRequest, and what `bring_up` does: then there are as many as
        before."""
        if not 1 <= num_groups <= MAX_REPLICAS:
            raise InvalidRequest(f"a model has from 1 to {MAX_REPLICAS} replicas; given {num_groups}")
        with self._scaling:
            missing = num_groups - len(self.groups)
            if missing > 0:
                self._grow(missing)
            elif missing < 0:
                self._shrink(self.groups[num_groups:], drain_s)

    def _grow(self, count: int) -> None:
        for group in self.groups:
            group.gain_siblings()
        before, added = self.groups, [self._new(has_siblings=True) for _ in range(count)]
        self.groups = [*before, *added]  # one that dies while others are still loading is replaced when all are up
        try:
            bring_up(added)
        except BaseException:
            self.groups = before
            for group in added:
                group.end()
            raise
        for group in added:
            group.keeper.start()

    def _shrink(self, leaving: list[DeviceGroup], drain_s: float) -> None:
        for group in leaving:
            group.drain()
        self._hosts.tell_all()
        deadline = time.monotonic() + drain_s
        while any(group.num_programs for group in leaving) and time.monotonic() < deadline:
            if self._stopped.wait(DRAIN_POLL_S):
                return
        self.groups = [group for group in self.groups if group not in leaving]
        for group in leaving:
            group.end()
        self._hosts.tell_all()

    def stop(self) -> None:
        """Bring none up any more, and wait for none that is to go."""
        self._stopped.set()
        for group in self.groups:
            group.keeper.stop()

    def lost(self, member: Member) -> bool:
        """A member has died; whether it was one of a group, which is replaced then."""
        return any(group.lost(member) for group in self.groups)

    # --- facts -----------------------------------------------------------------------------------

    def running(self) -> list[Member]:
        """The ResourceManager and the Batcher of each that runs."""
        return [member for group in self.groups for member in group.running()]

    @property
    def failure(self) -> str | None:
        """Why no device group can be used at present; None while one can, or is being replaced in time."""
        failures = [group.keeper.failure for group in self.groups]
        return failures[0] if all(failures) else None

    def facts(self) -> dict[str, Any] | None:
        """Of the model, the smallest pool of pages among those of the replicas, and how many these are; None until one
        was up."""
        infos = [group.served["info"] for group in self.groups if group.served is not None]
        if not infos:
            return None
        return {**infos[0], "num_pages": min(info["num_pages"] for info in infos), "replicas": len(self.groups)}

    # --- work on them ----------------------------------------------------------------------------

    def load_adapter(self, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load a LoRA adapter into all batchers and make it known; its facts."""
        with self.adapters.lock:
            facts = self.adapters.add(self._batchers(), file, data, owner)
            self._tell_adapters()
        return facts

    def unload_adapter(self, name: str, owner: str) -> None:
        """Nobody can open it from now on; passes through handles that are open already fail with `evicted`."""
        with self.adapters.lock:
            number = self.adapters.remove(name, owner)
            self._tell_adapters()
            self.adapters.tell_removed(self._batchers(), number)

    def _tell_adapters(self) -> None:
        self._hosts.want("set_adapters", self.adapters.facts())
        self._hosts.tell_all()

    def _running_batchers(self) -> list[Member]:
        return [batcher for group in self.groups if (batcher := group.batcher) is not None]

    def _batchers(self) -> list[Member]:
        if not (found := self._running_batchers()):
            raise EngineError("the engine has no device group at present: it died and is being replaced")
        return found

    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Steps that a traced inferlet has taken part in; none of a Batcher that is gone."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(EngineError):
            for batcher in self._batchers():
                with contextlib.suppress(PierayError):
                    found += self._members.ask(batcher, "steps", instance_id, timeout_s=FACTS_S)
        return found
