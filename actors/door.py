"""The Controller's socket: what clients ask of it, without being Ray drivers.

Who knows the engine's token may ask; `pieray up` keeps endpoint and token where only its user reads them.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pieray.errors import InvalidRequest, PeerLost, PierayError
from pieray.messages import Completed, Failed, Message
from pieray.messages.controller import Ask
from pieray.transport import Connection, Listener, serve

log = logging.getLogger(__name__)

QUICK_METHODS = frozenset(
    {
        "config",
        "models",
        "adapters",
        "programs",
        "exports",
        "drop_export",
        "locate",
        "kill",
        "ps",
        "status",
        "ping",
        "grant",
        "resolve",
        "admission",
        "trace",
    }
)
"""Answered within seconds, however many others are under way: they have threads of their own."""
METHODS = QUICK_METHODS | {
    "load_adapter",
    "unload_adapter",
    "launch",
    "install",
    "uninstall",
    "program",
    "scale",
    "shutdown",
}
QUICK_THREADS, THREADS = 8, 64
"""Asks that are worked on at one time, as many as Ray calls of the Controller, beside the launches that wait for a
place; others wait."""


class ControllerDoor:
    """Answers `Ask` messages with the Controller's methods, each on a thread of a pool."""

    def __init__(self, controller: Any, num_waiting: int = 0) -> None:
        """`num_waiting`: launches that may wait for a place, each on a thread."""
        self._controller = controller
        self._quick = ThreadPoolExecutor(QUICK_THREADS, "pieray-door-quick")
        self._pool = ThreadPoolExecutor(THREADS + num_waiting, "pieray-door")

    def on_connect(self, conn: Connection) -> None: ...

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, Ask):
                pool = self._quick if message.method in QUICK_METHODS else self._pool
                pool.submit(self._answer, conn, message)
            else:
                log.warning("client %s sent %s, which is none of its business", conn.peer_id, type(message).__name__)

    def on_close(self, conn: Connection, error: PeerLost) -> None: ...

    def _answer(self, conn: Connection, ask: Ask) -> None:
        answer: Completed | Failed
        try:
            answer = Completed(ask.ticket, self._call(ask))
        except PierayError as error:
            answer = Failed(ask.ticket, error.code, error.message, error.retry_after_s)
        except BaseException as error:
            log.exception("%s failed", ask.method)
            answer = Failed(ask.ticket, "engine", f"{ask.method} failed in the engine: {type(error).__name__}: {error}")
        try:
            conn.send([answer])
        except PeerLost:
            log.debug("%s is gone: nobody waits for %s", conn.peer_id, ask.method)
        except PierayError as error:  # it cannot travel
            conn.send([Failed(ask.ticket, error.code, error.message)])

    def _call(self, ask: Ask) -> Any:
        if ask.method not in METHODS:
            raise InvalidRequest(f"the Controller has no {ask.method[:100]!r} for clients")
        return getattr(self._controller, ask.method)(*ask.args)


def open_door(controller: Any, token: str, host: str, num_waiting: int = 0) -> Listener:
    """Let clients ask the Controller: on a unix socket, and on a TCP port of `host`."""
    door = ControllerDoor(controller, num_waiting)
    return serve(door, peer_id="pieray.controller", incarnation=1, token=token, host=host)
