"""HTTP requests of inferlets: checked, bounded, redirects followed and checked anew."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pieray
from pieray.concurrency.loop_shares import Shares, Who
from pieray.errors import DeadlineExceeded, PeerLost, RemoteFailed
from pieray.texts import from_base64
from pieray.world.http.bodies import ACCEPT_ENCODING, Budget, read_body
from pieray.world.http.policy import MAX_HEADER_BYTES, Policy, Target, across_origins, parse_patterns

if TYPE_CHECKING:  # httpx is loaded when it is needed: most actors never make a request
    import httpx

    from pieray.world.http.transport import CheckedTransport, Resolve, SystemResolver

MAX_REDIRECTS = 5
OWN_CONNECTIONS = 4
"""That each tenant has in an actor without waiting for another."""
COMMON_CONNECTIONS = 64
"""Beyond these, for all tenants of an actor; see `Shares`.  Who waits for one, waits within its own deadline."""
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, its parts checked already but for the body."""

    who: Who
    method: str
    target: Target
    headers: Sequence[tuple[str, str]]
    body: str
    is_base64: bool
    timeout_s: float


class HttpClient:
    """Shared by the inferlets of an actor.  All methods run on one event loop."""

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        allow_private: bool,
        resolve: Resolve | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.patterns = parse_patterns(hosts)
        self._resolve = resolve
        self._resolver: SystemResolver | None = None
        self._allow_private = allow_private
        self._ssl_context = ssl_context
        self.connections = Shares(OWN_CONNECTIONS, COMMON_CONNECTIONS)

    def load(self) -> None:
        """Import what requests need, some tenths of a second of it: not to be done first while guests run."""
        from pieray.world.http import transport  # noqa: F401 - loaded, no more

    async def request(self, ask: Ask, policy: Policy, budget: Budget) -> str:
        """The response as the WIT describes it.  Raises Denied, QuotaExceeded, DeadlineExceeded, PeerLost,
        RemoteFailed; any status is a response."""
        try:
            async with asyncio.timeout(ask.timeout_s) as allowed:
                async with self.connections.place(ask.who):
                    return await self._follow(ask, policy, budget)
        except TimeoutError:
            if not allowed.expired():
                raise
            raise DeadlineExceeded(f"http: {ask.target.host} did not answer within {ask.timeout_s} s") from None

    def close(self) -> None:
        if self._resolver is not None:
            self._resolver.close()

    async def _follow(self, ask: Ask, policy: Policy, budget: Budget) -> str:
        method, target, headers = ask.method, ask.target, list(ask.headers)
        body = from_base64(ask.body) if ask.is_base64 else ask.body.encode("utf-8", "surrogatepass")
        for _ in range(MAX_REDIRECTS + 1):
            budget.call()
            budget.charge(len(body))
            answer = await self._once(ask.who, method, target, headers, body, budget)
            if not isinstance(answer, _Redirect):
                return answer
            if _becomes_get(answer.status, method):
                method, body = "GET", b""
                headers = [(name, value) for name, value in headers if not name.lower().startswith("content-")]
            before, target = target, policy.check_redirect(_joined(target.url, answer.location))
            if target.origin != before.origin:
                headers = across_origins(headers)
        raise RemoteFailed(f"http: more than {MAX_REDIRECTS} redirects, the last to {target.host}")

    async def _once(
        self, who: Who, method: str, target: Target, headers: list[tuple[str, str]], body: bytes, budget: Budget
    ) -> str | _Redirect:
        import httpcore
        import httpx

        request = httpx.Request(method, target.url, headers=_with_ours(headers), content=body or None)
        try:
            response = await self._open(who).handle_async_request(request)
            try:
                location = response.headers.get("location")
                if response.status_code in REDIRECTS and location is not None:
                    return _Redirect(response.status_code, location)
                content = b"" if method == "HEAD" else await read_body(response, budget)
            finally:
                await response.stream.aclose()  # type: ignore[union-attr]  # asynchronous, as our transport makes it
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise PeerLost(f"http: the connection with {target.host}:{target.port} failed: {_text(error)}") from None
        return _answer(response, target, content)

    def _open(self, who: Who) -> CheckedTransport:
        import httpx

        from pieray.world.http.transport import CheckedBackend, CheckedTransport, SystemResolver

        if self._ssl_context is None:
            self._ssl_context = httpx.create_ssl_context(trust_env=False)
        if self._resolve is None and self._resolver is None:
            self._resolver = SystemResolver()
        resolve = self._resolve or partial(self._resolver.look_up, who)  # type: ignore[union-attr]
        return CheckedTransport(CheckedBackend(resolve, allow_private=self._allow_private), self._ssl_context)


def _becomes_get(status: int, method: str) -> bool:
    """RFC 9110, section 15.4, and what all clients do with 301 and 302."""
    return (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST")


@dataclass(frozen=True, slots=True)
class _Redirect:
    status: int
    location: str


def _with_ours(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    given = {name.lower() for name, _ in headers}
    ours = [("Accept-Encoding", ACCEPT_ENCODING), ("Connection", "close")]
    ours += [("User-Agent", f"pieray/{pieray.__version__}")] if "user-agent" not in given else []
    ours += [("Accept", "*/*")] if "accept" not in given else []
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in [*headers, *ours]]


def _joined(url: httpx.URL, location: str) -> str:
    """Where a redirect leads, as text that is read anew; what is odd in the location stays in it."""
    import httpx

    if any(c in location for c in "\\ \t\r\n"):
        return f"http://{location}"  # refused by whoever reads it: browsers and libraries differ about these
    try:
        return str(url.join(location))
    except (httpx.InvalidURL, ValueError):
        return f"http://\\{location}"


def _answer(response: httpx.Response, target: Target, content: bytes) -> str:
    dropped = {"content-encoding", "content-length"} if "content-encoding" in response.headers else set()
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in response.headers.raw]
    body, is_base64 = _as_text(content)
    answer: dict[str, Any] = {
        "status": response.status_code,
        "url": str(target.url),
        "headers": [pair for pair in headers if pair[0].lower() not in dropped],
        "body": body,
        "is_base64": is_base64,
    }
    text = json.dumps(answer, ensure_ascii=False)
    if not is_base64 and len(text) > 2 * len(content) + MAX_HEADER_BYTES:  # mostly control characters
        answer |= {"body": base64.b64encode(content).decode("ascii"), "is_base64": True}
        text = json.dumps(answer, ensure_ascii=False)
    return text


def _as_text(content: bytes) -> tuple[str, bool]:
    try:
        return content.decode("utf-8"), False
    except UnicodeDecodeError:
        return base64.b64encode(content).decode("ascii"), True


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
