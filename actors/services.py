"""The services of an engine, the device group and the Broker: brought up, kept up, and replaced when they die."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from pieray.actors.hosts import Hosts
from pieray.actors.keeper import Keeper
from pieray.actors.kept_adapters import KeptAdapters
from pieray.actors.members import BATCHER, BROKER, FACTS_S, RESOURCE_MANAGER, TELL_S, Member, Members
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import ActorGone, EngineError


class DeviceGroup:
    """The Batcher and its ResourceManager, and the adapters that are loaded there.  Thread-safe."""

    def __init__(self, config: Config, members: Members, hosts: Hosts, *, token: str, restarts: Restarts) -> None:
        self._config = config
        self._members = members
        self._hosts = hosts
        self._token = token
        self.adapters = KeptAdapters(members.ask, members.keep)
        self.keeper = Keeper("device group", self.bring_up, restarts)
        self._models: list[dict[str, Any]] = []
        self._pair: tuple[Member, Member] | None = None
        self._lock = threading.Lock()  # guards the pair; never held while an actor is asked
        self._busy = threading.RLock()  # held while it is brought up, and by work on its adapters

    def models(self) -> list[dict[str, Any]]:
        """Facts of what it serves."""
        return [facts["info"] for facts in self._models]

    def running(self) -> list[Member]:
        """The ResourceManager and the Batcher, or nothing while they are replaced."""
        with self._lock:
            return list((self._pair or ())[::-1])

    def bring_up(self) -> None:
        """Replace the batcher and its resource manager: neither's state means anything without the other's.

        The resource manager is put on the batcher's node: they die together in any case.
        """
        with self._busy:
            self._drop()
            pair: list[Member] = []
            try:
                pair.append(batcher := self._members.create(BATCHER))
                batcher.facts = self._members.ask(batcher, "describe", timeout_s=self._config.start_timeout_s)
                loading = self._members.begin(batcher, "load")
                pair.append(manager := self._members.create(RESOURCE_MANAGER, near=batcher))
                facts = loading(self._config.start_timeout_s)
                self.adapters.give_to(batcher, facts["adapters"])
                timeout_s = self._config.start_timeout_s
                num_pages = facts["info"]["num_pages"]
                manager.endpoint = tuple(
                    self._members.ask(manager, "open", self._token, num_pages, timeout_s=timeout_s)
                )
                batcher.endpoint = tuple(
                    self._members.ask(batcher, "open", self._token, manager.endpoint, timeout_s=timeout_s)
                )
            except BaseException:
                for member in pair:
                    self._members.end(member)
                raise
            self._models = [{**facts, "adapters": self.adapters.facts()}]
            with self._lock:
                self._pair = batcher, manager
                self._hosts.want("set_adapters", self.adapters.facts())
                self._hosts.want_device(batcher.endpoint, manager.endpoint, self._models)
        if any(member not in self._members for member in pair):  # it died before it could be missed
            raise ActorGone("one of the new device group has died already")
        self._hosts.tell_all()

    def lost(self, member: Member) -> bool:
        """A member has died; if it was one of the group, what is left of it is ended and it is brought up again."""
        if member not in self.running():
            return False
        self._drop()
        self.keeper.down()
        return True

    def _drop(self) -> None:
        """End what is left of the device group; until hosts are connected to another one, launches wait."""
        with self._lock:
            old, self._pair = self._pair, None
            self._hosts.drop_device()
        for member in old or ():
            self._members.end(member)

    # --- work on it ------------------------------------------------------------------------------

    def load_adapter(self, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load a LoRA adapter into the batcher and make it known; its facts."""
        with self._busy:
            facts = self.adapters.add(self._both()[0], file, data, owner)
            self._tell_adapters()
        return facts

    def unload_adapter(self, name: str, owner: str) -> None:
        """Nobody can open it from now on; passes through handles that are open already fail with `evicted`."""
        with self._busy:
            number = self.adapters.remove(name, owner)
            self._tell_adapters()
            self._members.ask(self._both()[0], "remove_adapter", number, timeout_s=TELL_S)

    def ask_pages(self, method: str, *args: Any) -> Any:
        """The answer of the ResourceManager; raises EngineError while there is none."""
        return self._members.ask(self._both()[1], method, *args, timeout_s=FACTS_S)

    def steps(self, instance_id: str) -> list[dict[str, Any]]:
        """Steps that a traced inferlet has taken part in; none of a Batcher that is gone."""
        with contextlib.suppress(EngineError):
            found: list[dict[str, Any]] = self._members.ask(self._both()[0], "steps", instance_id, timeout_s=FACTS_S)
            return found
        return []

    def _both(self) -> tuple[Member, Member]:
        if self._pair is None:
            raise EngineError("the engine has no device group at present: it died and is being replaced")
        return self._pair

    def _tell_adapters(self) -> None:
        self._hosts.want("set_adapters", self.adapters.facts())
        self._hosts.tell_all()


class KeptBroker:
    """The Broker, whose heart is `pieray.broker.service`.  Thread-safe."""

    def __init__(self, config: Config, members: Members, hosts: Hosts, *, token: str, restarts: Restarts) -> None:
        self._config = config
        self._members = members
        self._hosts = hosts
        self._token = token
        self.keeper = Keeper(BROKER, self.bring_up, restarts)
        self._broker: Member | None = None
        self._lock = threading.Lock()  # guards the field; never held while an actor is asked

    def running(self) -> list[Member]:
        """The Broker, or nothing while it is replaced."""
        with self._lock:
            return [self._broker] if self._broker is not None else []

    def bring_up(self) -> None:
        """What waited at the old one has its answer; queues and topics begin anew."""
        with self._lock:
            old, self._broker = self._broker, None
        if old is not None:
            self._members.end(old)
        broker = self._members.create(BROKER)
        try:
            broker.endpoint = tuple(
                self._members.ask(broker, "open", self._token, timeout_s=self._config.start_timeout_s)
            )
        except BaseException:
            self._members.end(broker)
            raise
        with self._lock:
            self._broker = broker
            self._hosts.want("reconnect_broker", broker.endpoint)
        if broker not in self._members:
            raise ActorGone("the new broker has died already")
        self._hosts.tell_all()

    def lost(self, member: Member) -> bool:
        """A member has died; if it was the Broker, it is brought up again."""
        if member not in self.running():
            return False
        self.keeper.down()
        return True
