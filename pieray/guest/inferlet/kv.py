"""KV pages, by handle."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from . import _convert, _host
from . import model as models
from ._idle import held
from .errors import InvalidRequest
from .tickets import Ticket, take_none, take_text

#: What the host counts in without loss.
MAX_TTL_MS = 1 << 53


@_host.cached
def page_size(model: str = "") -> int:
    """Tokens in a page."""
    return int(models.info(model)["page_size"])


def alloc(count: int, model: str = "") -> list[int]:
    """New page handles, for passes on that model alone.  If no memory comes free behind them, the first command that
    needs it says so."""
    return list(_host.kv.alloc_for(model, count) if model else _host.kv.alloc(count))


def free(pages: list[int]) -> None:
    """Give handles back; commands in flight still finish."""
    _host.kv.free(pages)


def fork(pages: list[int]) -> list[int]:
    """Second handles to the same pages, copy-on-write."""
    return list(_host.kv.fork(pages))


def copy(queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> Ticket[None]:
    """Copy `count` tokens of KV from slot `src_offset` of page `src` to slot `dst_offset` of page `dst`."""
    return Ticket(_host.kv.copy(queue, src, src_offset, dst, dst_offset, count), take_none)


def reserve(count: int, model: str = "") -> Ticket[None]:
    """Lease memory for `count` pages ahead of their use; the ticket may bring OutOfPages."""
    ticket = Ticket(_host.kv.reserve_for(model, count) if model else _host.kv.reserve(count), take_none)
    held.has_reserved = True
    return ticket


def mask(page: int, offset: int, count: int, visible: bool = False) -> None:
    """Hide slots [offset, offset + count) of a page from later passes through this handle, or show them again.

    Forks made later inherit it.  A hidden slot need not have been written; writing to it does not show it.
    """
    _host.kv.mask(page, offset, count, visible)


def truncate(pages: list[int], num_tokens: int) -> None:
    """Of the tokens in `pages`, in order, keep the first: later slots count as not written."""
    _host.kv.truncate(pages, num_tokens)


def idle(pages: list[int]) -> None:
    """Nothing will be computed for a while: memory leased ahead of need goes back now, and what pages hold may be kept
    in host memory for as long, if others lack pages.  The next command ends it."""
    _host.kv.idle(pages)
    held.has_reserved = False


def pin() -> None:
    """Do not count as idle, whatever is waited for, until `unpin` has been called as often.  Those who rank higher may
    still take the pages for a while."""
    _host.kv.pin()
    held.num_pins += 1


def unpin() -> None:
    """Take one `pin` back.  Raises InvalidRequest if there is none."""
    _host.kv.unpin()
    held.num_pins -= 1


def expect(count: int, model: str = "") -> None:
    """`count` pages more will be needed soon: memory for them is leased ahead, without waiting and as far as there is
    any.  Others who need it first get it, unlike what was reserved.  0: no more than usual."""
    if model:
        _host.kv.expect_for(model, count)
    else:
        _host.kv.expect(count)


class Imported(NamedTuple):
    """An export, opened: handles of your own, copy-on-write."""

    pages: list[int]
    num_tokens: int
    meta: str
    access: str
    owner: str


class Export(NamedTuple):
    """What `list_exports` tells of an export; `expires_in`: seconds, None: never."""

    name: str
    access: str
    owner: str
    num_pages: int
    num_tokens: int
    pinned: bool
    expires_in: float | None
    num_importers: int


def export_pages(
    name: str,
    pages: list[int],
    num_tokens: int,
    *,
    meta: str = "",
    access: str = "owner",
    ttl: float = 0,
    pinned: bool = False,
    replace: bool = False,
) -> Ticket[None]:
    """Give the first `num_tokens` tokens of pages a name under which others import them; await the ticket.

    They outlive this inferlet: for `ttl` seconds (0: as long as the engine lives), unless memory is short and nobody
    has them open (`pinned`: even then, for the time of the limit pin_time_s; QuotaExceeded if the tenant's pinned
    exports would hold more than its share of the pool).  `access`: "owner" (your user), "tenant" or "public".
    """
    ttl_ms = _convert.milliseconds("ttl", ttl, MAX_TTL_MS)
    if ttl and not ttl_ms:
        ttl_ms = 1  # 0 would be for ever
    arguments = (name, pages, num_tokens, meta, _access(access), ttl_ms, pinned, replace)
    return Ticket(_host.kv.export_pages(*arguments), take_none)


def import_pages(name: str, model: str = "") -> Ticket[Imported]:
    """Open an export of the model's pages: yours, else the tenant's, else a public one.  Each model has names of its
    own.  The ticket may bring NotFound or Evicted."""
    ticket = _host.kv.import_for(model, name) if model else _host.kv.import_pages(name)
    return Ticket(ticket, lambda ticket: Imported(**json.loads(take_text(ticket))))


def unexport(name: str, access: str = "owner", model: str = "") -> Ticket[None]:
    """Take the name of an export of yours away; who has imported the pages keeps them."""
    whose = _access(access)
    return Ticket(_host.kv.unexport_for(model, name, whose) if model else _host.kv.unexport(name, whose), take_none)


def list_exports(prefix: str = "", model: str = "") -> Ticket[list[Export]]:
    """Exports that this inferlet may import and whose names begin with `prefix`."""
    ticket = _host.kv.list_exports_for(model, prefix) if model else _host.kv.list_exports(prefix)
    return Ticket(ticket, _take_exports)


def _take_exports(ticket: int) -> list[Export]:
    rows = json.loads(take_text(ticket))
    for row in rows:
        left = row.pop("expires_in_ms")
        row["expires_in"] = None if left is None else left / 1000
    return [Export(**row) for row in rows]


def _access(name: str) -> Any:
    if isinstance(name, str) and name.upper() in _host.Access.__members__:
        return _host.Access[name.upper()]
    raise InvalidRequest(f"access is owner, tenant or public; given {_convert.shown(name)}")
