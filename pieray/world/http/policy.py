"""What an inferlet may ask over HTTP: URLs, hosts, methods and headers, checked before anything is sent.

A URL is read once, by httpx, and the host that is checked is the one that is connected to.  Whatever parsers
differ about (userinfo, backslashes, control characters, other spellings of addresses) is refused, not repaired.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pieray.errors import ConfigError, Denied, InvalidRequest
from pieray.world.http import addresses

if TYPE_CHECKING:
    import httpx

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL = 8192
MAX_HEADER_BYTES = 32 << 10
OURS = frozenset(
    (
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "accept-encoding",
        "http2-settings",
    )
)
"""Headers of one connection, or that say how a body travels: the host writes them, nobody else."""
_SECRET = re.compile(r"auth|cookie|token|secret|key|credential|session|signature", re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_ODD = re.compile(r"[\x00-\x20\x7f-\x9f\\]")
_NO_VALUE = re.compile(r"[^\t\x20-\x7e\x80-\xff]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that has passed: `host` is a lower-case ASCII name or a canonical address, without brackets."""

    url: httpx.URL
    host: str
    port: int

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.url.scheme, self.host, self.port


@dataclass(frozen=True, slots=True)
class HostPattern:
    """ "host", "*.host" (any depth below, not the host itself), "*"; behind it ":port" or ":*".

    Without a port it is the default port of the scheme, for "*" too: "*:*" is every host at every port.
    """

    host: str
    port: int | None  # None: the default; 0: any

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Raises ConfigError."""
        host, port = _split_port(text.strip().lower())
        name = host.removeprefix("*.") if host != "*" else ""
        if (address := addresses.parse(host)) is not None:
            host = name = str(address)
        if not host or (name and address is None and not _is_name(name)):
            raise ConfigError(f"a host pattern is a host, *.host or *, and perhaps :port; given {text!r}")
        if not re.fullmatch(r"|\*|[0-9]{1,5}", port):
            raise ConfigError(f"the port of a host pattern is a number or *; given {text!r}")
        return cls(host, None if not port else 0 if port == "*" else int(port))

    def matches(self, target: Target) -> bool:
        port = DEFAULT_PORTS[target.url.scheme] if self.port is None else self.port
        if port not in (0, target.port):
            return False
        if self.host.startswith("*."):
            return target.host.endswith(self.host[1:])
        return self.host in ("*", target.host)

    def covers(self, other: HostPattern) -> bool:
        """Whether it matches all that the other does."""
        is_host = self.host in ("*", other.host) or (self.host[:2] == "*." and other.host.endswith(self.host[1:]))
        return is_host and self.port in (0, other.port)


class Policy:
    """Where one inferlet may go: a host must match a pattern of its manifest and one of the engine's."""

    def __init__(self, engine: Sequence[HostPattern], manifest: Sequence[HostPattern]) -> None:
        self._lists = (("this engine's http_hosts", engine), ("the inferlet's manifest", manifest))

    def check(self, text: str) -> Target:
        """The target of a URL.  Raises Denied, and InvalidRequest for what is no URL of http at all."""
        target = read_url(text)
        for whose, patterns in self._lists:
            if not any(pattern.matches(target) for pattern in patterns):
                raise Denied(f"http: {whose} does not name {target.host}:{target.port}{_hint(target)}")
        return target

    def check_redirect(self, text: str) -> Target:
        """As `check`; a redirect to what is no URL of http is Denied too."""
        try:
            return self.check(text)
        except InvalidRequest as error:
            raise Denied(f"http: the redirect is refused: {error.message}") from None


def _hint(target: Target) -> str:
    """What to write for a port that a host alone does not allow."""
    if target.port == DEFAULT_PORTS[target.url.scheme]:
        return ""
    return f"; a host alone is its default port: write {target.host}:{target.port}, {target.host}:* or *:*"


def read_url(text: str) -> Target:
    """The URL in its one reading.  Raises Denied for one that could be read in two ways."""
    import httpx

    if len(text) > MAX_URL:
        raise InvalidRequest(f"a URL has at most {MAX_URL} characters; given {len(text)}")
    if _ODD.search(text):
        raise Denied(f"http: no white space, control characters and backslashes in a URL; given {text!r}")
    if (found := _AUTHORITY.match(text)) is None:
        raise InvalidRequest(f"a URL begins with http:// or https:// and a host; given {text[:200]!r}")
    if "@" in found[1]:
        raise Denied("http: no user and password in a URL: send an Authorization header")
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
        port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise Denied(f"http: {text[:200]!r} is not a plain URL: {error}") from None
    if url.userinfo or not 0 < port < 65536:
        raise Denied(f"http: {text[:200]!r} is not a plain URL")
    return Target(url, check_host(host, found[1]), port)


def check_host(host: str, given: str) -> str:
    """A DNS name, or an address in its canonical spelling; raises Denied for anything else."""
    address = addresses.parse(host)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is None and given.startswith("["):
            return str(address)
    elif address is not None or _is_name(host):
        return host
    raise Denied(f"http: {given!r} names no host in canonical form (a DNS name, 1.2.3.4, [2001:db8::1])")


def check_method(method: str) -> str:
    """Raises InvalidRequest."""
    if method not in METHODS:
        raise InvalidRequest(f"an HTTP method is one of {', '.join(METHODS)}; given {method[:40]!r}")
    return method


def check_headers(flat: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of name, value, name, value, ...; raises InvalidRequest."""
    if len(flat) % 2:
        raise InvalidRequest(f"headers are name, value, name, value, ...; given {len(flat)} strings")
    if sum(map(len, flat)) > MAX_HEADER_BYTES:
        raise InvalidRequest(f"headers have at most {MAX_HEADER_BYTES} bytes; given {sum(map(len, flat))}")
    pairs = list(zip(flat[::2], flat[1::2], strict=True))
    for name, value in pairs:
        if not _TOKEN.fullmatch(name):
            raise InvalidRequest(f"{name[:80]!r} is no name of a header (RFC 9110, section 5.1)")
        if name.lower() in OURS or name.lower().startswith("proxy-"):
            raise InvalidRequest(f"the header {name} is written by the host alone")
        if _NO_VALUE.search(value):
            raise InvalidRequest(f"the value of {name} has a character that no header may have (RFC 9110, section 5.5)")
    return pairs


def across_origins(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that follow a redirect to another origin: none that may be a credential."""
    return [(name, value) for name, value in headers if not _SECRET.search(name)]


def covers(pattern: str, other: str) -> bool:
    """Whether a host pattern matches all that the other does; what is no pattern covers itself alone."""
    try:
        return HostPattern.parse(pattern).covers(HostPattern.parse(other))
    except ConfigError:
        return pattern == other


def parse_patterns(texts: Sequence[str]) -> list[HostPattern]:
    """Raises ConfigError."""
    return [HostPattern.parse(text) for text in texts]


def _is_name(host: str) -> bool:
    """A DNS name as it is looked up; one whose last label is a number is an address to some (WHATWG URL, 3.5)."""
    labels = host.split(".")
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not _NUMBER.fullmatch(labels[-1])


def _split_port(text: str) -> tuple[str, str]:
    """host, port of "host", "host:port", "[v6]", "[v6]:port"; an address without brackets has no port."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    if text.count(":") > 1:
        return text, ""
    host, _, port = text.partition(":")
    return host, port
