"""KV pages, by handle."""

from __future__ import annotations

from . import _host
from .errors import raises
from .tickets import Ticket, take_none


@_host.cached
def page_size() -> int:
    """Tokens in a page."""
    return int(_host.kv.page_size())


@raises
def alloc(count: int) -> list[int]:
    """New page handles.  If no memory comes free behind them, the first command that needs it says so."""
    return list(_host.kv.alloc(count))


@raises
def free(pages: list[int]) -> None:
    """Give handles back; commands in flight still finish."""
    _host.kv.free(pages)


@raises
def fork(pages: list[int]) -> list[int]:
    """Second handles to the same pages, copy-on-write."""
    return list(_host.kv.fork(pages))


@raises
def copy(queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> Ticket[None]:
    """Copy `count` tokens of KV from slot `src_offset` of page `src` to slot `dst_offset` of page `dst`."""
    return Ticket(_host.kv.copy(queue, src, src_offset, dst, dst_offset, count), take_none)
