"""One device group of an engine, a Batcher with its ResourceManager: brought up, kept up, replaced when they die."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pieray.actors.hosts import Hosts
from pieray.actors.keeper import Keeper
from pieray.actors.kept_adapters import KeptAdapters
from pieray.actors.members import BATCHER, FACTS_S, RESOURCE_MANAGER, Member, Members
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import ActorGone, EngineError, PierayError


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
        model: str,
        token: str,
        restarts: Restarts,
    ) -> None:
        """`model`: its name; "" for the default one."""
        self.number = number
        self.model = model
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
        self.served: dict[str, Any] | None = None
        """Facts and tokenizer of the model, as it has it; None until it was up."""
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
                pair.append(batcher := self._members.create(BATCHER, number, model=self.model))
                batcher.facts = self._members.ask(batcher, "describe", timeout_s=self._config.start_timeout_s)
                loading = self._members.begin(batcher, "load")
                pair.append(manager := self._members.create(RESOURCE_MANAGER, number, near=batcher, model=self.model))
                facts = loading(self._config.start_timeout_s)
                self._open(batcher, manager, facts["info"]["num_pages"])
                with self._adapters.lock:  # what is loaded from here on is loaded into this one too
                    self._adapters.give_to(batcher, facts["adapters"], self.siblings())
                    self.served = facts
                    with self._lock:
                        self._pair = batcher, manager
                        if not self.model:
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
        assert self.served is not None
        endpoints = batcher.endpoint, manager.endpoint
        self._hosts.want_group(self.number, self.model, *endpoints, self.served, is_draining=self._is_draining)

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


def bring_up(groups: Sequence[DeviceGroup]) -> None:
    """Bring them up, side by side; raises what went wrong with the first that could not be."""
    with ThreadPoolExecutor(len(groups), "pieray-groups") as threads:
        for done in [threads.submit(group.bring_up) for group in groups]:
            done.result()
