"""What is kept of an inferlet that has ended."""

from __future__ import annotations

from typing import Any

from pieray.errors import Cancelled, PierayError
from pieray.host.inferlet import Inferlet
from pieray.host.session.client_servers import ClientServers
from pieray.host.trace import trace_of


class EndedInferlet:
    """What is kept of an inferlet: its events, for clients that come late."""

    def __init__(self, inferlet: Inferlet) -> None:
        self.log = inferlet.log
        self.started = inferlet.started
        self._status = {**inferlet.status(), "pages": 0, "swapped": 0}
        self._usage = inferlet.usage()
        self._tracing = inferlet.tracing

    def deliver(self, text: str) -> None:  # noqa: ARG002 - as Inferlet.deliver
        raise Cancelled("the inferlet has ended; it receives no messages")

    def deliver_file(self, name: str, data: bytes) -> None:  # noqa: ARG002 - as Inferlet.deliver_file
        raise Cancelled("the inferlet has ended; it receives no files")

    @property
    def client_servers(self) -> ClientServers | None:
        return None

    @property
    def scratch_bytes(self) -> int:
        raise Cancelled("the inferlet has ended; it receives no files")

    def kill(self, error: PierayError) -> None:
        """Nothing is left to be ended."""

    def status(self) -> dict[str, Any]:
        return self._status

    def usage(self) -> dict[str, int]:
        return self._usage

    def trace(self) -> dict[str, Any]:
        return trace_of(self._tracing, self._status)
