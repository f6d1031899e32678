"""The client's side of tools that it brings with a launch: answers the calls that come over its connection."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from pieray.concurrency.loop_thread import Job, LoopThread
from pieray.errors import PierayError
from pieray.messages import CancelCall, ClientAnswer, ClientCall

log = logging.getLogger(__name__)

Reply = Callable[[ClientAnswer], None]


class ClientTools:
    """The servers of one launch, on an event loop of their own.  Thread-safe; nothing runs before the first call."""

    def __init__(self, servers: Mapping[str, Any]) -> None:
        from pieray.world.mcp.servers import ToolServers

        self._servers = ToolServers(servers)
        self._loop = LoopThread("pieray-tools")
        self._loop.before_close(self._servers.close)
        self._jobs: dict[int, Job] = {}

    @property
    def names(self) -> list[str]:
        return self._servers.names

    def answer(self, call: ClientCall, reply: Reply) -> None:
        """Run a call; `reply` is called once, on the loop's thread, unless the call is cancelled."""
        job = self._jobs[call.call] = Job(self._loop)

        def done(result: Any) -> None:
            self._jobs.pop(call.call, None)
            reply(_answer(call, result))

        try:
            job.start(self._servers.ask(call.server, call.tool, call.arguments), done)
        except PierayError as error:  # closed
            self._jobs.pop(call.call, None)
            reply(_answer(call, error))

    def cancel(self, cancel: CancelCall) -> None:
        if (job := self._jobs.pop(cancel.call, None)) is not None:
            job.cancel()

    def close(self) -> None:
        """End the servers that were started here; returns when they have ended.  Idempotent."""
        self._loop.close()

    def close_soon(self) -> threading.Thread:
        """`close` on a thread of its own, which the interpreter waits for at its exit."""
        thread = threading.Thread(target=self.close, name="pieray-tools-close")
        thread.start()
        return thread


def _answer(call: ClientCall, result: Any) -> ClientAnswer:
    if isinstance(result, PierayError):
        return ClientAnswer(call.call, call.instance_id, "", result.code, result.message)
    return ClientAnswer(call.call, call.instance_id, result, "", "")
