"""WIT interface `http`: requests to the world."""

from __future__ import annotations

from pieray.errors import ConfigError, InvalidRequest, Unsupported
from pieray.host.identity import Identity
from pieray.host.services import Services
from pieray.host.ticket_work import LoopCalls, TicketWork
from pieray.texts import byte_size, check_size
from pieray.world.http.bodies import Budget
from pieray.world.http.client import Ask
from pieray.world.http.policy import HostPattern, Policy, check_headers, check_method, parse_patterns

MAX_RUNNING = 32
"""Requests of one inferlet at one time."""


class HttpHandlers:
    """Requests, checked against the engine's and the manifest's hosts."""

    def __init__(self, identity: Identity, services: Services, work: TicketWork) -> None:
        self._identity = identity
        self._services = services
        self._budget = Budget(identity.limits)
        self._policy: Policy | None = None
        self._calls = LoopCalls(work, services.loop, "http requests", MAX_RUNNING)
        if identity.capabilities.http and services.http is not None:
            services.http.load()

    def request(self, method: str, url: str, headers: list[str], body: str, is_base64: bool, timeout_ms: int) -> int:
        identity = self._identity
        identity.capabilities.require("http")
        client = self._services.http
        if client is None:
            raise Unsupported("http: this engine has no HTTP client")
        check_method(method)
        pairs = check_headers(headers)
        self._check_body(body)
        policy = self._policy_of(client.patterns)
        most = identity.limits.http_time_s
        timeout_s = min(timeout_ms / 1e3, most) if timeout_ms else most
        ask = Ask(identity.who, method, policy.check(url), pairs, body, is_base64, timeout_s)
        return self._calls.start(lambda: client.request(ask, policy, self._budget))

    def _check_body(self, body: str) -> None:
        check_size("message_bytes", self._identity.limits.message_bytes, byte_size(body), "the body given")

    def _policy_of(self, engine: list[HostPattern]) -> Policy:
        if self._policy is None:
            try:
                self._policy = Policy(engine, parse_patterns(self._identity.capabilities.http))
            except ConfigError as error:
                raise InvalidRequest(error.message) from None
        return self._policy
