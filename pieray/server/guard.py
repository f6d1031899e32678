"""Before any route: which host is meant, whether the server is still open, and how many requests are under way."""

from __future__ import annotations

import ipaddress
import logging
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pieray.server.problems import HttpProblem

log = logging.getLogger("pieray.server.access")

DRAIN_RETRY_S = 5.0
HEAD_BYTES = 32 << 10
"""Names and values of a request's headers."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Counts requests, refuses them when the server is about to stop, and those that name a host that it is not.

    The latter keeps web pages out, whose names may lead to this machine too (DNS rebinding); they cannot send JSON of
    their own without asking first, which no route answers.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.num_running = 0

    def around(self, app: ASGIApp) -> ASGIApp:
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            began, status = time.perf_counter(), 0

            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            self.num_running += 1
            try:
                problem = self._problem(scope)
                if problem is not None:
                    await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, sending)
                else:
                    await app(scope, receive, sending)
            finally:
                self.num_running -= 1
                took_ms = (time.perf_counter() - began) * 1e3
                log.info("%s %r %d in %.1f ms", scope["method"], scope["path"][:200], status, took_ms)

        return guarded

    def _problem(self, scope: Scope) -> HttpProblem | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > HEAD_BYTES:
            return HttpProblem(431, f"the headers of a request are at most {HEAD_BYTES} bytes; given {size}")
        host = Headers(scope=scope).get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if not is_loopback(name.strip("[]")):
            return HttpProblem(403, f"this server answers to names of this machine alone; given host {host[:100]!r}")
        if self.is_draining:
            return HttpProblem(503, "the server is about to stop", retry_after_s=DRAIN_RETRY_S)
        return None
