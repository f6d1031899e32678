"""The device groups of an engine, each a Batcher with its ResourceManager: brought up, kept up, replaced when they die.

A model has as many as `model.replicas` says.  They know nothing of each other; what is loaded into one, adapters, is
loaded into each.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pieray.actors.hosts import Hosts
from pieray.actors.keeper import Keeper
from pieray.actors.kept_adapters import KeptAdapters
from pieray.actors.members import BATCHER, FACTS_S, RESOURCE_MANAGER, TELL_S, Member, Members
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import ActorGone, EngineError, NotFound, PierayError


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
        has_siblings: bool,
    ) -> None:
        self.number = number
        self._has_siblings = has_siblings
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
            pair: list[Member] = []
            number = self.number or None
            try:
                pair.append(batcher := self._members.create(BATCHER, number))
                batcher.facts = self._members.ask(batcher, "describe", timeout_s=self._config.start_timeout_s)
                loading = self._members.begin(batcher, "load")
                pair.append(manager := self._members.create(RESOURCE_MANAGER, number, near=batcher))
                facts = loading(self._config.start_timeout_s)
                with self._adapters.lock:  # what is loaded from here on is loaded into this one too
                    self._adapters.give_to(batcher, facts["adapters"])
                    self._open(batcher, manager, facts["info"]["num_pages"])
                    self.models = [facts]
                    with self._lock:
                        self._pair = batcher, manager
                        self._hosts.want("set_adapters", self._adapters.facts())
                        self._hosts.want_group(self.number, batcher.endpoint, manager.endpoint, self.models)
            except BaseException:
                for member in pair:
                    self._members.end(member)
                raise
        if any(member not in self._members for member in pair):  # it died before it could be missed
            raise ActorGone("one of the new device group has died already")
        self._hosts.tell_all()

    def _open(self, batcher: Member, manager: Member, num_pages: int) -> None:
        timeout_s = self._config.start_timeout_s
        manager.endpoint = tuple(
            self._members.ask(manager, "open", self._token, num_pages, self._has_siblings, timeout_s=timeout_s)
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
        self._groups = [
            DeviceGroup(
                number,
                config,
                members,
                hosts,
                self.adapters,
                token=token,
                restarts=restarts,
                has_siblings=num_groups > 1,
            )
            for number in range(num_groups)
        ]

    # --- life ------------------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Bring all up, side by side; raises what went wrong with the first that could not be."""
        with ThreadPoolExecutor(len(self._groups), "pieray-groups") as threads:
            for done in [threads.submit(group.bring_up) for group in self._groups]:
                done.result()

    def keep(self) -> None:
        """From now on, replace those that die."""
        for group in self._groups:
            group.keeper.start()

    def stop(self) -> None:
        """Bring none up any more."""
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
            for batcher in self._batchers():
                self._members.ask(batcher, "remove_adapter", number, timeout_s=TELL_S)

    def _tell_adapters(self) -> None:
        self._hosts.want("set_adapters", self.adapters.facts())
        self._hosts.tell_all()

    def _batchers(self) -> Sequence[Member]:
        if not (found := [batcher for group in self._groups if (batcher := group.batcher) is not None]):
            raise EngineError("the engine has no device group at present: it died and is being replaced")
        return found

    def exports(self) -> list[dict[str, Any]]:
        """Facts of the exports of KV pages, of all groups; `group`: which has the pages.  Raises EngineError while
        there is none."""
        found: list[dict[str, Any]] = []
        for group in self._groups_with_pages():
            found += [{**one, "group": group.number} for one in group.ask_pages("exports")]
        return sorted(found, key=lambda one: (one["name"], one["group"]))

    def drop_export(self, name: str, access: str, tenant: str, user: str) -> dict[str, Any]:
        """Take an export away, of the first group that has one so named; whose it was.  Raises NotFound, and
        InvalidRequest if several of that group match."""
        missing: NotFound | None = None
        for group in self._groups_with_pages():
            try:
                dropped: dict[str, Any] = group.ask_pages("drop_export", name, access, tenant, user)
            except NotFound as error:
                missing = error
            else:
                return dropped
        assert missing is not None
        raise missing

    def _groups_with_pages(self) -> Iterator[DeviceGroup]:
        groups = [group for group in self._groups if group.running()] or self._groups[:1]  # which says what is wrong
        yield from groups

    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Steps that a traced inferlet has taken part in; none of a Batcher that is gone."""
        found: list[dict[str, Any]] = []
        with contextlib.suppress(EngineError):
            for batcher in self._batchers():
                with contextlib.suppress(PierayError):
                    found += self._members.ask(batcher, "steps", instance_id, timeout_s=FACTS_S)
        return found
