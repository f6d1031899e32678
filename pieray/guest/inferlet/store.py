"""Text by key, shared by the inferlets of a tenant; it outlives them.  Capability: store."""

from __future__ import annotations

import json
from typing import Any

from . import _convert, _host
from .errors import NotFound
from .tickets import Ticket, take_none, take_text, take_tokens


async def get(key: str, default: str | None = None) -> str:
    """The text at a key; if there is none, `default`, or NotFound without one."""
    try:
        return await Ticket(_host.store.get(key), take_text)
    except NotFound:
        if default is None:
            raise
        return default


async def put(key: str, value: str, ttl: float = 0.0) -> None:
    """Put a text at a key, in place of what is there; it is gone after `ttl` seconds, 0: it stays.

    A time that is not 0 is at least a millisecond.
    """
    ttl_ms = _convert.milliseconds("ttl", ttl, 1 << 53)
    await Ticket(_host.store.put(key, value, max(ttl_ms, 1) if ttl else 0), take_none)


async def put_if(key: str, expected: str | None, value: str) -> bool:
    """Put if the text there is `expected` (None: if there is none), in one step; whether it did."""
    is_absent = expected is None
    ticket = _host.store.put_if(key, "" if expected is None else expected, is_absent, value)
    return bool((await Ticket(ticket, take_tokens))[0])


async def delete(key: str) -> bool:
    """Whether it was there."""
    return bool((await Ticket(_host.store.delete(key), take_tokens))[0])


async def names(prefix: str = "") -> list[str]:
    """The keys that begin with `prefix`, in order."""
    return list(json.loads(await Ticket(_host.store.names(prefix), take_text)))


async def get_json(key: str, default: Any = None) -> Any:
    """The value whose JSON is at a key, or `default`."""
    try:
        return _convert.load(await Ticket(_host.store.get(key), take_text))
    except NotFound:
        return default


async def put_json(key: str, value: Any, ttl: float = 0.0) -> None:
    """Put a value as JSON."""
    await put(key, _convert.to_json("value", value), ttl)
