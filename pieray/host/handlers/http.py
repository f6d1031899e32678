"""WIT interface `http`: requests to the world."""

from __future__ import annotations

from pieray.errors import ConfigError, InvalidRequest, QuotaExceeded, Unsupported
from pieray.host import aio
from pieray.host.handlers.base import HandlerGroup
from pieray.host.http.bodies import Budget
from pieray.host.http.client import Ask
from pieray.host.http.policy import HostPattern, Policy, check_headers, check_method, parse_patterns
from pieray.host.session import byte_size
from pieray.host.state import InstanceState

MAX_RUNNING = 16
"""Requests of one inferlet at one time."""


class HttpHandlers(HandlerGroup):
    """Requests, checked against the engine's and the manifest's hosts."""

    def __init__(self, state: InstanceState) -> None:
        super().__init__(state)
        self._budget = Budget(state.limits)
        self._policy: Policy | None = None
        self._num_requests = 0

    def http_request(self, method: str, url: str, headers: list[str], body: str, is_base64: bool,
                     timeout_ms: int) -> int:  # fmt: skip
        state = self._state
        state.capabilities.require("http")
        client = state.services.http
        if client is None:
            raise Unsupported("http: this engine has no HTTP client")
        check_method(method)
        pairs = check_headers(headers)
        self._check_body(body)
        policy = self._policy_of(client.patterns)
        most = state.limits.http_time_s
        timeout_s = min(timeout_ms / 1e3, most) if timeout_ms else most
        ask = Ask(method, policy.check(url), pairs, body, is_base64, timeout_s)
        return aio.start(state, state.services.loop, lambda: self._request(ask, policy))

    async def _request(self, ask: Ask, policy: Policy) -> str:
        client = self._state.services.http
        assert client is not None
        if self._num_requests >= MAX_RUNNING:
            raise QuotaExceeded(f"http: the limit is {MAX_RUNNING} requests of one inferlet at one time; "
                                "one more was asked for")  # fmt: skip
        self._num_requests += 1
        try:
            return await client.request(ask, policy, self._budget)
        finally:
            self._num_requests -= 1

    def _check_body(self, body: str) -> None:
        limit, size = self._state.limits.message_bytes, byte_size(body)
        if size > limit:
            raise QuotaExceeded(f"message_bytes: the limit is {limit}; the body given has {size}")

    def _policy_of(self, engine: list[HostPattern]) -> Policy:
        if self._policy is None:
            try:
                self._policy = Policy(engine, parse_patterns(self._state.capabilities.http))
            except ConfigError as error:
                raise InvalidRequest(error.message) from None
        return self._policy
