"""A device group of real connections, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pieray.errors import DeviceLost, PeerLost
from pieray.host.device.device import DeviceClient
from pieray.host.device.sessions import DeviceSessions
from pieray.leases.service import LeaseService
from pieray.messages import CancelInferlet, Completed, FencePeer, Forward, Message, OpenInferlet
from pieray.transport import Connection, serve

TOKEN = "t" * 64


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class ScriptedBatcher:
    """Answers cancels when allowed, and passes with None; asked for a fence it says nothing: tests do."""

    def __init__(self) -> None:
        self.may_cancel = threading.Event()
        self.may_cancel.set()
        self.conns: list[Connection] = []

    def on_connect(self, conn: Connection) -> None:
        self.conns.append(conn)

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, (FencePeer, OpenInferlet)):
                continue
            if isinstance(message, CancelInferlet):
                self.may_cancel.wait(5)
            assert isinstance(message, (CancelInferlet, Forward))
            conn.send([Completed(message.ticket, None)])

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...


class Group:
    """A device group of real connections."""

    def __init__(self, num_pages: int, news_s: float = 0.0) -> None:
        self.leases = LeaseService(num_pages, batcher_away_s=0.2, news_s=news_s)
        self.batcher = ScriptedBatcher()
        self.doors = [
            serve(service, peer_id=name, incarnation=1, token=TOKEN)
            for service, name in ((self.leases, "rm"), (self.batcher, "batcher"))
        ]
        self.clients: list[DeviceClient | DeviceSessions] = []
        self.losses: list[DeviceLost] = []

    def client(self, peer_id: str) -> DeviceClient:
        client = DeviceClient(
            batcher=self.doors[1].endpoint,
            resource_manager=self.doors[0].endpoint,
            peer_id=peer_id,
            token=TOKEN,
            timeout_s=5,
            on_lost=lambda _client, error: self.losses.append(error),
        )
        self.clients.append(client)
        return client

    def sessions(self, peer_id: str) -> DeviceSessions:
        """What an InferletActor has: dialled, and dialled again."""
        sessions = DeviceSessions(peer_id=peer_id, token=TOKEN, timeout_s=5)
        self.clients.append(sessions)
        sessions.open(self.doors[1].endpoint, self.doors[0].endpoint)
        return sessions

    def free(self) -> int:
        free: int = self.leases.status()["free"]
        return free

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for door in self.doors:
            door.close()
        self.leases.close()
