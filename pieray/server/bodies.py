"""Bodies of requests: read as JSON, within limits of size, time and depth."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, HTTPConnection, Request

from pieray.concurrency.off_loop import off_loop
from pieray.server.json_texts import INLINE_BYTES, MOST_DEPTH, loaded
from pieray.server.problems import HttpProblem

MOST_BYTES = 8 << 20
READ_S = 20.0
"""For all of a body to come."""
SIZE = "pieray.body_bytes"
"""Of a request's scope: how large its body was."""

P = ParamSpec("P")
T = TypeVar("T")


async def read_json(request: Request, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object that a request carries.  Raises HttpProblem, ClientDisconnect."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpProblem(415, f"content-type is application/json; given {kind[:100]!r}")
    return await parsed(request, await read_bytes(request, most_bytes, READ_S))


async def parsed(asker: HTTPConnection, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, which the asker has sent.  Raises HttpProblem."""
    asker.scope[SIZE] = len(data)
    return await worked_out(asker, _parsed, data)


async def worked_out(asker: HTTPConnection, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `call` makes of the body of a request, which has been read.

    It is on a thread if the body is large: the event loop has others to serve."""
    if asker.scope[SIZE] <= INLINE_BYTES:
        return call(*args, **kwargs)
    return await off_loop(call, *args, **kwargs)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = loaded(data)
    except (ValueError, RecursionError) as error:
        raise HttpProblem(400, f"the body is no JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise HttpProblem(400, f"the body is a JSON object; given {type(found).__name__}", code="invalid_json")
    _check(found)
    return found


async def read_bytes(request: Request, most_bytes: int, within_s: float) -> bytes:
    """The body of a request.  Raises HttpProblem 413, 408; ClientDisconnect."""
    told = request.headers.get("content-length", "0")
    if not re.fullmatch(r"[0-9]{1,18}", told) or int(told) > most_bytes:
        raise _too_large(most_bytes, told[:20])
    parts, size = [], 0
    try:
        async with asyncio.timeout(within_s):
            async for part in request.stream():
                size += len(part)
                if size > most_bytes:
                    raise _too_large(most_bytes, f"more than {size}")
                parts.append(part)
    except TimeoutError:
        raise HttpProblem(408, f"the body did not come within {within_s:g} s; {size} bytes of it have") from None
    return b"".join(parts)


def _too_large(most: int, given: str) -> HttpProblem:
    return HttpProblem(413, f"a body is at most {most} bytes; given {given}")


def _check(found: object) -> None:
    """Raises HttpProblem for what is nested too deep, and for halves of surrogate pairs, which are no Unicode."""
    level = [found]
    for _ in range(MOST_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not one.isascii():
                _check_unicode(one)
        if not below:
            return
        level = below
    raise HttpProblem(400, f"the body is nested more than {MOST_DEPTH} deep", code="invalid_json")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HttpProblem(400, f"the body has half of a surrogate pair: {error}", code="invalid_json") from None


__all__ = ["MOST_BYTES", "MOST_DEPTH", "READ_S", "ClientDisconnect", "parsed", "read_bytes", "read_json", "worked_out"]
