"""The device groups of an engine, each a Batcher with its ResourceManager: brought up, kept up, replaced when they die.

A model has as many as `model.replicas` says, or as `scale` has made them.  They know nothing of each other; what is
loaded into one, adapters, is loaded into each.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pieray.actors.hosts import Hosts
from pieray.actors.keeper import Keeper
from pieray.actors.kept_adapters import KeptAdapters
from pieray.actors.members import BATCHER, FACTS_S, RESOURCE_MANAGER, Member, Members
from pieray.actors.records import Restarts
from pieray.config import MAX_REPLICAS, Config
from pieray.errors import ActorGone, EngineError, InvalidRequest, NotFound, PierayError

DRAIN_POLL_S = 0.1


class DeviceGroup:
    """One of them.  Thread-safe."""

    def __init__(
        self,
        number: int,
        config: Config,
        members: Members,
        hosts: Hosts,
        adapters: KeptAdapters,
        *,
        token: str,
        restarts: Restarts,
    ) -> None:
        self.number = number
        self.siblings: Callable[[], Sequence[Member]] = tuple
        """The batchers of the other groups."""
        self.has_siblings = False
        """Whether there are other groups: then hosts are told of what this one holds."""
        self._is_draining = self._is_ended = False
        self._config = config
        self._members = members
        self._hosts = hosts
        self._adapters = adapters
        self._token = token
        self.keeper = Keeper(f"device group {number}" if number else "device group", self.bring_up, restarts)
        self.models: list[dict[str, Any]] = []
        """Facts and tokenizer of each that it serves."""
        self._pair: tuple[Member, Member] | None = None
        self._lock = threading.Lock()  # guards the pair; never held while an actor is asked
        self._busy = threading.RLock()  # held while it is brought up

    def running(self) -> list[Member]:
        """The ResourceManager and the Batcher, or nothing while they are replaced."""
        with self._lock:
            return list((self._pair or ())[::-1])

    @property
    def batcher(self) -> Member | None:
        """None while it is replaced."""
        with self._lock:
            return self._pair[0] if self._pair is not None else None

    def bring_up(self) -> None:
        """Replace the batcher and its resource manager: neither's state means anything without the other's.

        The resource manager is put on the batcher's node: they die together in any case.
        """
        with self._busy:
            self._drop()
            if self._is_ended:
                raise EngineError("this device group has been ended")
            pair: list[Member] = []
            number = self.number or None
            try:
                pair.append(batcher := self._members.create(BATCHER, number))
                batcher.facts = self._members.ask(batcher, "describe", timeout_s=self._config.start_timeout_s)
                loading = self._members.begin(batcher, "load")
                pair.append(manager := self._members.create(RESOURCE_MANAGER, number, near=batcher))
                facts = loading(self._config.start_timeout_s)
                self._open(batcher, manager, facts["info"]["num_pages"])
                with self._adapters.lock:  # what is loaded from here on is loaded into this one too
                    self._adapters.give_to(batcher, facts["adapters"], self.siblings())
                    self.models = [facts]
                    with self._lock:
                        self._pair = batcher, manager
                        self._hosts.want("set_adapters", self._adapters.facts())
                        self._want_hosts(batcher, manager)
            except BaseException:
                for member in pair:
                    self._members.end(member)
                raise
        if any(member not in self._members for member in pair):  # it died before it could be missed
            raise ActorGone("one of the new device group has died already")
        self._hosts.tell_all()

    def _want_hosts(self, batcher: Member, manager: Member) -> None:
        endpoints = batcher.endpoint, manager.endpoint
        self._hosts.want_group(self.number, *endpoints, self.models, is_draining=self._is_draining)

    def gain_siblings(self) -> None:
        """There are other groups from now on."""
        with self._busy:
            if not self.has_siblings:
                self.has_siblings = True
                if self.running():
                    self.ask_pages("tell_news")

    def drain(self) -> None:
        """No inferlet chooses it any more."""
        with self._busy:
            self._is_draining = True
            with self._lock:
                if self._pair is not None:
                    self._want_hosts(*self._pair)

    @property
    def num_programs(self) -> int:
        """That compute on it; 0 while there is none."""
        try:
            found: int = self.ask_pages("status")["programs"]
        except PierayError:
            return len(self.running())  # it does not answer: until it is replaced, nobody knows
        return found

    def end(self) -> None:
        """For good; what computes on it fails with `device-lost`."""
        self.keeper.stop()
        with self._busy:
            self._is_ended = True
            self._drop()
            self._hosts.end_group(self.number)

    def _open(self, batcher: Member, manager: Member, num_pages: int) -> None:
        timeout_s = self._config.start_timeout_s
        manager.endpoint = tuple(
            self._members.ask(manager, "open", self._token, num_pages, self.has_siblings, timeout_s=timeout_s)
        )
        batcher.endpoint = tuple(self._members.ask(batcher, "open", self._token, manager.endpoint, timeout_s=timeout_s))

    def lost(self, member: Member) -> bool:
        """A member has died; if it was one of the group, what is left of it is ended and it is brought up again."""
        if member not in self.running():
            return False
        self._drop()
        self.keeper.down()
        return True

    def _drop(self) -> None:
        """End what is left of the device group; until hosts are connected to another one, it gets no launches."""
        with self._lock:
            old, self._pair = self._pair, None
            self._hosts.drop_group(self.number)
        for member in old or ():
            self._members.end(member)

    def ask_pages(self, method: str, *args: Any) -> Any:
        """The answer of the ResourceManager; raises EngineError while there is none."""
        with self._lock:
            pair = self._pair
        if pair is None:
            raise EngineError("the engine has no device group at present: it died and is being replaced")
        return self._members.ask(pair[1], method, *args, timeout_s=FACTS_S)


class DeviceGroups:
    """All of them, and the adapters that are loaded there.  Thread-safe."""

    def __init__(
        self, config: Config, members: Members, hosts: Hosts, *, token: str, restarts: Restarts, num_groups: int = 1
    ) -> None:
        self._members = members
        self._hosts = hosts
        self.adapters = KeptAdapters(members.ask, members.keep)

        def new(*, has_siblings: bool) -> DeviceGroup:
            number = next(self._numbers)
            made = DeviceGroup(number, config, members, hosts, self.adapters, token=token, restarts=restarts)
            made.has_siblings, made.siblings = has_siblings, self._running_batchers
            return made

        self._new = new
        self._numbers = itertools.count()
        self._groups = [new(has_siblings=num_groups > 1) for _ in range(num_groups)]
        self._scaling = threading.Lock()
        self._stopped = threading.Event()

    # --- life ------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Bring all up, side by side; raises what went wrong with the first that could not be."""
        _bring_up(self._groups)

    def keep(self) -> None:
        """From now on, replace those that die."""
        for group in self._groups:
            group.keeper.start()

    def scale(self, num_groups: int, drain_s: float) -> None:
        """Have so many, one at least: more are brought up, or the last ones go when nothing computes on them any more,
        after `drain_s` seconds in any case.  Raises InvalidRequest, and what `bring_up` does: then there are as many as
        before."""
        if not 1 <= num_groups <= MAX_REPLICAS:
            raise InvalidRequest(f"an engine has from 1 to {MAX_REPLICAS} replicas; given {num_groups}")
        with self._scaling:
            missing = num_groups - len(self._groups)
            if missing > 0:
                self._grow(missing)
            elif missing < 0:
                self._shrink(self._groups[num_groups:], drain_s)

    def _grow(self, count: int) -> None:
        for group in self._groups:
            group.gain_siblings()
        before, added = self._groups, [self._new(has_siblings=True) for _ in range(count)]
        self._groups = [*before, *added]  # one that dies while others are still loading is replaced when all are up
        try:
            _bring_up(added)
        except BaseException:
            self._groups = before
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
        self._groups = [group for group in self._groups if group not in leaving]
        for group in leaving:
            group.end()
        self._hosts.tell_all()

    def stop(self) -> None:
        """Bring none up any more, and wait for none that is to go."""
        self._stopped.set()
        for group in self._groups:
            group.keeper.stop()

    def lost(self, member: Member) -> bool:
        """A member has died; whether it was one of a group, which is replaced then."""
        return any(group.lost(member) for group in self._groups)

    # --- facts -----------------------------------------------------------------------------------

    def running(self) -> list[Member]:
        """The ResourceManager and the Batcher of each that runs."""
        return [member for group in self._groups for member in group.running()]

    @property
    def failure(self) -> str | None:
        """Why no device group can be used at present; None while one can, or is being replaced in time."""
        failures = [group.keeper.failure for group in self._groups]
        return failures[0] if all(failures) else None

    def models(self) -> list[dict[str, Any]]:
        """Facts of what is served, the smallest pool of pages among those of the replicas, and how many these are."""
        infos = [facts["info"] for group in self._groups for facts in group.models]
        if not infos:
            return []
        return [{**infos[0], "num_pages": min(info["num_pages"] for info in infos), "replicas": len(self._groups)}]

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
        return [batcher for group in self._groups if (batcher := group.batcher) is not None]

    def _batchers(self) -> list[Member]:
        if not (found := self._running_batchers()):
            raise EngineError("the engine has no device group at present: it died and is being replaced")
        return found

    def exports(self) -> list[dict[str, Any]]:
        """Facts of the exports of KV pages, of all groups; `group`: which has the pages.  Raises EngineError while
        there is none."""
        found: list[dict[str, Any]] = []
        for group, rows in self._ask_pages("exports"):
            found += [{**one, "group": group.number} for one in rows]
        return sorted(found, key=lambda one: (one["name"], one["group"]))

    def drop_export(self, name: str, access: str, tenant: str, user: str) -> dict[str, Any]:
        """Take an export away, of the first group that has one so named; whose it was.  Raises NotFound, and
        InvalidRequest if several of that group match."""
        dropped: dict[str, Any]
        for _, dropped in self._ask_pages("drop_export", name, access, tenant, user):
            return dropped
        raise AssertionError("unreachable: what went wrong was raised")

    def _ask_pages(self, method: str, *args: Any) -> Iterator[tuple[DeviceGroup, Any]]:
        """What each ResourceManager answers; those that have nothing to say are left out, if any has."""
        failures: list[PierayError] = []
        has_any = False
        for group in self._groups:
            try:
                found = group.ask_pages(method, *args)
            except (EngineError, NotFound) as error:
                failures.append(error)
                continue
            has_any = True
            yield group, found
        if not has_any:
            raise next((error for error in failures if isinstance(error, NotFound)), failures[0])

    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Steps that a traced inferlet has taken part in; none of a Batcher that is gone."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(EngineError):
            for batcher in self._batchers():
                with contextlib.suppress(PierayError):
                    found += self._members.ask(batcher, "steps", instance_id, timeout_s=FACTS_S)
        return found


def _bring_up(groups: Sequence[DeviceGroup]) -> None:
    """Side by side."""
    with ThreadPoolExecutor(len(groups), "pieray-groups") as threads:
        for done in [threads.submit(group.bring_up) for group in groups]:
            done.result()
