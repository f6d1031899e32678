"""The Broker of an engine: brought up, kept up, and replaced when it dies."""

from __future__ import annotations

import threading

from pieray.actors.hosts import Hosts
from pieray.actors.keeper import Keeper
from pieray.actors.members import BROKER, Member, Members
from pieray.actors.records import Restarts
from pieray.config import Config
from pieray.errors import ActorGone


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
