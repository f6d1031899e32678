"""Before any route: which host is meant, who asks, whether the server is still open, and how much is under way."""

from __future__ import annotations

import ipaddress
import logging
import sqlite3
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pieray.server.keys import ANYBODY, Caller, Keys, Rates
from pieray.server.problems import RETRY_S, HttpProblem
from pieray.server.ui.page_files import is_page

log = logging.getLogger("pieray.server.access")

DRAIN_RETRY_S = 5.0
HEAD_BYTES = 32 << 10
"""Names and values of a request's headers."""
RUN = "x-pieray-run"
"""The header of an answer that has the id of the run."""
TRACE = "pieray.trace"
"""Of a request's scope: the W3C traceparent of its span; absent: it is not traced."""
CALLER = "pieray.caller"
"""Of a request's scope: who asks."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def caller_of(request: HTTPConnection) -> Caller:
    """Who asks, as the guard has found."""
    found: Caller = request.scope[CALLER]
    return found


def trace_of(request: HTTPConnection) -> str:
    """The traceparent for what a request launches; "": it is not traced."""
    found: str = request.scope.get(TRACE, "")
    return found


class Guard:
    """Counts requests, and refuses those without a key, where keys are asked for, and all when the server is to stop.

    Without `keys` it refuses requests that name a host that this is not: web pages, whose names may lead to this
    machine too (DNS rebinding), stay outside.  They cannot send JSON of their own without asking first, which no route
    answers.
    """

    def __init__(self, keys: Keys | None = None) -> None:
        self.keys = keys
        self.rates = Rates()
        self.is_draining = False
        self.num_running = 0
        self.on_answer: Callable[[int], None] | None = None
        """Told the status of each answer."""

    def around(self, app: ASGIApp) -> ASGIApp:
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] not in ("http", "websocket"):
                return
            scope.setdefault("method", "WEBSOCKET")  # what the log calls one
            began, status, run = time.perf_counter(), 0, ""

            async def sending(message: Message) -> None:
                nonlocal status, run
                if message["type"] in ("http.response.start", "websocket.http.response.start"):
                    status = message["status"]
                    run = Headers(raw=message["headers"]).get(RUN, "")
                elif message["type"] == "websocket.accept":
                    status = 101
                await send(message)

            self.num_running += 1
            try:
                try:
                    scope[CALLER] = self._admit(scope)
                except HttpProblem as problem:
                    await JSONResponse(problem.body, problem.status, problem.headers)(scope, receive, sending)
                else:
                    await app(scope, receive, sending)
            finally:
                self.num_running -= 1
                if self.on_answer is not None:
                    self.on_answer(status)
                took_ms = (time.perf_counter() - began) * 1e3
                who = scope[CALLER].key_id if CALLER in scope else "-"
                what = scope["method"], scope["path"][:200], status, took_ms, who or "-"
                names = ("method", "path", "status", "took_ms", "key")
                log.info(
                    "%s %r %d in %.1f ms, key %s", *what, extra={**dict(zip(names, what, strict=True)), "run": run}
                )

        return guarded

    def _admit(self, scope: Scope) -> Caller:
        """Who asks.  Raises HttpProblem."""
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > HEAD_BYTES:
            raise HttpProblem(431, f"the headers of a request are at most {HEAD_BYTES} bytes; given {size}")
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            _check_origin(headers)
        caller = ANYBODY
        if self.keys is None:
            _check_host(headers.get("host", ""))
        elif not is_page(scope["method"], scope["path"]):
            caller = self._caller(self.keys, headers.get("authorization", ""), scope)
        if self.is_draining:
            raise HttpProblem(503, "the server is about to stop", retry_after_s=DRAIN_RETRY_S)
        return caller

    def _caller(self, keys: Keys, authorization: str, scope: Scope) -> Caller:
        now = time.monotonic()
        scheme, _, key = authorization.partition(" ")
        try:
            caller = keys.find(key.strip(), now) if scheme.lower() == "bearer" else None
        except sqlite3.Error as error:  # nobody comes in unseen
            log.warning("the file of keys: %s", error)
            raise HttpProblem(503, "the file of keys cannot be read now", retry_after_s=RETRY_S) from None
        if caller is None:
            address = str((scope.get("client") or ("",))[0])
            if wait_s := self.rates.failed(address, now):
                raise HttpProblem(429, f"too many wrong keys from {address}", code="rate_limit", retry_after_s=wait_s)
            raise HttpProblem(401, "a key is asked for: Authorization: Bearer pk-...", code="invalid_api_key")
        wait_s, what = self.rates.admit(caller, now)
        if wait_s:
            raise HttpProblem(429, f"this key has used up its {what}", code="rate_limit", retry_after_s=wait_s)
        return caller


def _check_host(host: str) -> None:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if not is_loopback(name.strip("[]")):
        raise HttpProblem(403, f"this server answers to names of this machine alone; given host {host[:100]!r}")


def _check_origin(headers: Headers) -> None:
    """Browsers open websockets to anywhere unasked, but say for which page: only a page of this server may."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
        raise HttpProblem(403, f"no page of another server opens websockets here; given origin {origin[:100]!r}")


def check_priority(caller: Caller, priority: int) -> None:
    """Raises HttpProblem 403 for a launch of higher priority than the caller's key may have."""
    if priority > caller.max_priority:
        raise HttpProblem(
            403,
            f"priority: the highest of this key is {caller.max_priority}; given {priority} (vLLM's field `priority`, "
            "where lower goes first, has the other sign)",
            param="priority",
            code="priority",
        )
