"""HTTP.  Capability `http`, with the hosts that the inferlet asks; the engine must allow them too.

answer = await http.get("https://api.example.org/items", headers={"Accept": "application/json"})
answer.raise_for_status().json()
"""

from __future__ import annotations

import base64
import json as _json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import _convert, _host
from .errors import InvalidRequest, RemoteFailed
from .tickets import Ticket, take_text


@dataclass(frozen=True)
class Response:
    """What a server answered, whatever its status."""

    status: int
    url: str
    """Where it came from, after redirects."""
    headers: list[tuple[str, str]]
    bytes: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as UTF-8; what is none becomes U+FFFD."""
        return self.bytes.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON; raises ValueError."""
        return _convert.load(self.bytes)

    def header(self, name: str, default: str = "") -> str:
        """The first header of that name, in any case."""
        wanted = _convert.text("name", name).lower()
        return next((value for key, value in self.headers if key.lower() == wanted), default)

    def raise_for_status(self) -> Response:
        """This response; raises RemoteFailed unless its status is 2xx."""
        if not self.ok:
            raise RemoteFailed(f"{self.url} answered with status {self.status}: {self.text[:200]}")
        return self


async def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    data: str | bytes = b"",
    json: Any = None,
    timeout: float | None = None,
) -> Response:
    """One request; redirects are followed.  `json` is sent as JSON, in place of `data`.

    Raises Denied (the host is not allowed, or its address is private), InvalidRequest, DeadlineExceeded (after
    `timeout` seconds, at most the limit http_time_s), QuotaExceeded, PeerLost (the connection).
    """
    sent = dict(_convert.instance("headers", headers or {}, Mapping))  # type: ignore[type-abstract]
    if json is not None:
        data = _convert.to_json("the body", json, is_ascii=True)
        if not any(str(name).lower() == "content-type" for name in sent):
            sent["Content-Type"] = "application/json"
    return await _ask(_convert.text("method", method).upper(), url, sent, data, timeout)


async def get(url: str, *, headers: Mapping[str, str] | None = None, timeout: float | None = None) -> Response:
    """A GET request; see `request`."""
    return await request("GET", url, headers=headers, timeout=timeout)


async def post(
    url: str,
    *,
    json: Any = None,
    data: str | bytes = b"",
    headers: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Response:
    """A POST request; see `request`."""
    return await request("POST", url, headers=headers, data=data, json=json, timeout=timeout)


async def _ask(method: str, url: str, headers: dict[str, str], data: str | bytes, timeout: float | None) -> Response:
    headers_ = [str(part) for pair in headers.items() for part in pair]
    if isinstance(data, str):
        body = data
    else:
        body = base64.b64encode(_convert.instance("data", data, bytes, bytearray, memoryview)).decode()
    ticket = _host.http.request(method, url, headers_, body, not isinstance(data, str), _milliseconds(timeout))
    return _parse(await Ticket(ticket, take_text, is_long=True))


def _milliseconds(timeout: float | None) -> int:
    if timeout is None:
        return 0
    ms = _convert.milliseconds("timeout", timeout, 4_000_000_000)
    if not timeout:
        raise InvalidRequest("timeout is above 0 seconds; given 0")
    return max(1, ms)


def _parse(text: str) -> Response:
    found = _json.loads(text)
    body = base64.b64decode(found["body"]) if found["is_base64"] else found["body"].encode()
    return Response(found["status"], found["url"], [(name, value) for name, value in found["headers"]], body)
