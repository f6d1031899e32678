"""The services of the transport tests: a scripted server (also run in other processes) and a recording client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from pieray.errors import PeerLost
from pieray.messages import Completed, Event, Forward, Message, SendText
from pieray.transport import Connection, Endpoint, PendingCalls, connect

TOKEN = "correct horse battery staple"
OUTPUTS = [[8, 0, 0, 0.75, 40, 0.5, 0.0, 123]]


def forward(ticket: int, pages: bytes = bytes(128)) -> Forward:
    """A decode step over 32 pages."""
    return Forward(ticket, 3, 0, 0, pages, 500, b"\1\0\0\0", b"", b"", OUTPUTS)


class ScriptedService:
    """Echoes a Forward's pages; does what the text of a SendText says."""

    def __init__(self) -> None:
        self.num_frames = self.num_connects = 0
        self.closed: list[str] = []

    def on_connect(self, conn: Connection) -> None:
        self.num_connects += 1

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        self.num_frames += 1
        for message in messages:
            if isinstance(message, Forward):
                conn.post([Completed(message.ticket, message.pages)])
            elif isinstance(message, SendText):
                self._do(conn, message.ticket, *message.text.split())
        if conn.is_open:
            conn.flush()

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self.closed.append(conn.peer_id)

    def _do(self, conn: Connection, ticket: int, verb: str, argument: str = "0") -> None:
        if verb == "raise":
            raise ValueError("as told")
        if verb == "hang_up":
            conn.close("as told")
            return
        if verb == "sleep":
            time.sleep(float(argument))
        if verb == "hold":
            wait_until(lambda: not os.path.exists(argument), 60)
        if verb == "burst":
            for number in range(int(argument)):
                conn.send([Event("i", number, "text", "x")])
        answers = {"num_frames": self.num_frames, "closed": self.closed, "num_connects": self.num_connects}
        conn.post([Completed(ticket, answers.get(verb))])


class Client:
    """Records all that its connections bring, and keeps the calls over them."""

    def __init__(self) -> None:
        self.calls = PendingCalls()
        self.received: list[Message] = []
        self.closed: list[PeerLost] = []
        self.is_closed = threading.Event()

    def on_connect(self, conn: Connection) -> None:
        return

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        self.received += self.calls.resolve(conn, messages)

    def on_close(self, conn: Connection, error: PeerLost) -> None:
        self.calls.fail_all(conn, error)
        self.closed.append(error)
        self.is_closed.set()

    def tell(self, conn: Connection, text: str, timeout_s: float = 20.0) -> Any:
        """Have the ScriptedService do something; its answer."""
        return self.calls.call(conn, lambda ticket: SendText(ticket, "i", text), timeout_s)

    def echo(self, conn: Connection, pages: bytes = bytes(128), timeout_s: float = 20.0) -> Any:
        """The pages, from the other end."""
        return self.calls.call(conn, lambda ticket: forward(ticket, pages), timeout_s)


class Door:
    """A ScriptedService that listens by some transport, and the way to connect to it."""

    def __init__(self, endpoint: Endpoint, dial: Callable[..., Connection] = connect) -> None:
        self.endpoint = endpoint
        self._dial = dial

    def connect(self, service: Any, *, endpoint: Endpoint | None = None, **changes: Any) -> Connection:
        settings: dict[str, Any] = {"role": "inferlets", "peer_id": "host-3", "token": TOKEN, "timeout_s": 10.0}
        return self._dial(endpoint or self.endpoint, service, **(settings | changes))


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> bool:
    """True as soon as the condition holds, False if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
