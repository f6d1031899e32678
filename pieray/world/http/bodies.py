"""Bodies of responses: counted as they come, and unpacked without ever holding more than is allowed."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from pieray.config import Limits
from pieray.errors import QuotaExceeded, RemoteFailed

if TYPE_CHECKING:
    import httpx

ACCEPT_ENCODING = "gzip, deflate"


class Budget:
    """What one inferlet has used of its HTTP limits.  For the loop's thread alone."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_calls = 0
        self.num_bytes = 0

    def call(self) -> None:
        """One request more, a redirect too; raises QuotaExceeded."""
        if self.num_calls >= self.limits.http_calls:
            raise QuotaExceeded(
                f"http_calls: the limit is {self.limits.http_calls} requests, redirects included; "
                "one more was asked for"
            )
        self.num_calls += 1

    def charge(self, num_bytes: int) -> None:
        """Bytes of a body, sent or received; raises QuotaExceeded."""
        if self.num_bytes + num_bytes > self.limits.http_bytes:
            raise QuotaExceeded(
                f"http_bytes: the limit is {self.limits.http_bytes}; {self.num_bytes} are used, "
                f"at least {num_bytes} more came"
            )
        self.num_bytes += num_bytes


async def read_body(response: httpx.Response, budget: Budget) -> bytes:
    """The whole body, unpacked.  Raises QuotaExceeded as soon as it is too long, RemoteFailed for a broken one.

    What counts against `Limits.http_bytes` is the body as it travels and what it unpacks to beyond that.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return await _gather(response.stream, budget, None)
    if encoding in ("gzip", "x-gzip", "deflate"):
        return await _gather(response.stream, budget, Inflater())
    raise RemoteFailed(f"the server packed the body as {encoding[:80]!r}; {ACCEPT_ENCODING} were offered")


async def _gather(stream: object, budget: Budget, inflater: Inflater | None) -> bytes:
    assert isinstance(stream, AsyncIterable)
    limit, body, num_raw = budget.limits.message_bytes, bytearray(), 0
    num_charged = 0
    async for part in stream:
        num_raw += len(part)
        if inflater is None:
            body += part
        else:
            body += inflater.feed(part, limit + 1 - len(body))
        if len(body) > limit:
            raise QuotaExceeded(f"message_bytes: the limit is {limit}; the body of the response has more")
        grown = max(num_raw, len(body)) - num_charged
        budget.charge(grown)
        num_charged += grown
    if inflater is not None and not inflater.is_complete:
        raise RemoteFailed("the packed body of the response ends in the middle")
    return bytes(body)


class Inflater:
    """gzip (also of several members) and deflate (RFC 1950 to 1952), with a bound on what comes out."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._has_begun = False

    @property
    def is_complete(self) -> bool:
        return self._decoder.eof or not self._has_begun

    def feed(self, data: bytes, max_length: int) -> bytes:
        """What `data` unpacks to, cut at `max_length` (at least 1); raises RemoteFailed."""
        found = bytearray()
        while data and len(found) < max_length:
            if self._decoder.eof:
                self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
            try:
                found += self._decode(data, max_length - len(found))
            except zlib.error as error:
                raise RemoteFailed(f"the packed body of the response is broken: {error}") from None
            data = self._decoder.unused_data
        return bytes(found)

    def _decode(self, data: bytes, max_length: int) -> bytes:
        is_first, self._has_begun = not self._has_begun, True
        try:
            return self._decoder.decompress(data, max_length)
        except zlib.error:
            if not is_first:
                raise
        self._decoder = zlib.decompressobj(-zlib.MAX_WBITS)  # some servers send deflate without its wrapper
        return self._decoder.decompress(data, max_length)
