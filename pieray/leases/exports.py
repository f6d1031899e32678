"""Exports: KV pages under a name, kept beyond the inferlet that wrote them.  Plain; part of the ResourceManager.

A name lives in a scope: the user's own, the tenant's, or public.  An import looks in that order.  Only the user
who made an export replaces or takes it away, and whoever runs the engine.  Exports that are not pinned and that nobody
has open are dropped, least recently used first, when memory is short.  A pin lasts for a time, and pinned exports hold
no more than a tenant's share of the pool.  A bounded number of names of those dropped is remembered, so that a later
import is told `evicted` rather than `not-found`.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pieray.errors import Denied, Evicted, InvalidRequest, NotFound, QuotaExceeded
from pieray.leases.ledger import Holder, PageLedger
from pieray.messages.leases import export_name, name_is_taken

KEEP_EVICTED = 1024
"""Names of evicted exports that are remembered."""

MANY_IMPORTERS = 128
"""From here on those who have given the pages back are looked for at each import."""


class Owner(NamedTuple):
    """Who answers for an inferlet."""

    tenant: str
    user: str


class Key(NamedTuple):
    """A name in its scope; `tenant` and `user` are "" where the scope is wider than they."""

    access: str  # "owner", "tenant" or "public"
    tenant: str
    user: str
    name: str


class Quota(NamedTuple):
    """Limits on all exports of an owner together."""

    exports: int
    export_pages: int
    export_bytes: int


@dataclass(slots=True)
class Export:
    """Pages under a name; slot i of page p was written if bit i of `written[p]` is set."""

    name: str
    access: str
    owner: Owner
    pages: list[int]
    written: bytes  # u64 per page
    num_tokens: int
    meta: str
    pinned_until: float  # seconds of the caller's clock; -inf: it is not pinned
    expires_at: float  # likewise; inf: never
    importers: set[Holder] = field(default_factory=set)

    @property
    def num_bytes(self) -> int:
        return len(self.meta.encode())

    def is_pinned(self, now: float) -> bool:
        """Whether it is kept although memory is short."""
        return now < self.pinned_until


class PinShares(NamedTuple):
    """Parts of the pool, from 0 to 1, that pinned exports may hold."""

    tenant: float = 1.0
    """Those of one tenant."""
    all: float = 1.0
    """Those of all together."""


def key_of(access: str, owner: Owner, name: str) -> Key:
    """The place of a name; raises InvalidRequest for an unknown access."""
    if access == "owner":
        return Key(access, owner.tenant, owner.user, name)
    if access == "tenant":
        return Key(access, owner.tenant, "", name)
    if access == "public":
        return Key(access, "", "", name)
    raise InvalidRequest(f"access is owner, tenant or public; given {access!r}")


class ExportTable:
    """All exports of one ledger.  `now` is seconds of a clock that never goes back, the same in all calls."""

    def __init__(self, ledger: PageLedger, pins: PinShares | None = None) -> None:
        self._ledger = ledger
        self._pins = pins or PinShares()
        self._exports: OrderedDict[Key, Export] = OrderedDict()  # least recently used first
        self._evicted: OrderedDict[Key, None] = OrderedDict()
        self._expiries: list[tuple[float, Key]] = []  # heap; entries of exports that are gone are skipped
        self.changes: dict[bytes, bool] | None = None
        """By `export_name`, what has come (True) or gone since somebody looked last; None: nobody looks."""

    def __len__(self) -> int:
        return len(self._exports)

    def put(self, holder: Holder, export: Export, quota: Quota, *, replace: bool, now: float = 0.0) -> None:
        """Keep the pages, which the holder has, under the name.

        Raises InvalidRequest (the name is taken and not to be replaced; pages that the holder does not have), Denied
        (it is another user's), QuotaExceeded; then nothing has changed.
        """
        key = key_of(export.access, export.owner, export.name)
        old = self._exports.get(key)
        if old is not None:
            _check_owner(old, export.owner)
            if not replace:
                raise name_is_taken(export.name, export.access)
        self._check_quota(export, old, quota)
        if export.is_pinned(now):
            self._check_pins(export, old, now)
        self._ledger.keep(holder, export.pages)
        if old is not None:
            self._remove(key)
        self._exports[key] = export
        self._changed(key, is_here=True)
        self._evicted.pop(key, None)
        if export.expires_at != math.inf:
            self._expire_later(export.expires_at, key)

    def open(self, holder: Holder, owner: Owner, name: str) -> Export:
        """Make the holder one more holder of the pages.  Raises NotFound and Evicted."""
        keys = [key_of(access, owner, name) for access in ("owner", "tenant", "public")]
        key = next((key for key in keys if key in self._exports), None)
        if key is None:
            if any(key in self._evicted for key in keys):
                raise Evicted(f"export {name!r} was dropped when memory was short; make it anew, or pin it")
            raise NotFound(f"there is no export {name!r} that this inferlet may import")
        export = self._exports[key]
        self._ledger.share(holder, export.pages)
        if len(export.importers) >= MANY_IMPORTERS:
            self.num_importers(export)
        export.importers.add(holder)
        self._exports.move_to_end(key)
        return export

    def remove(self, owner: Owner, access: str, name: str) -> None:
        """Take the name away; who has imported the pages keeps them.  Raises NotFound, Evicted and Denied."""
        self._remove(self.check_removal(owner, access, name))

    def check_removal(self, owner: Owner, access: str, name: str) -> Key:
        """Its place, if the owner may take it away; raises as `remove`."""
        key = key_of(access, owner, name)
        if key in self._evicted:
            raise Evicted(f"export {name!r} ({access}) was dropped already, when memory was short")
        if key not in self._exports:
            raise NotFound(f"there is no export {name!r} ({access})")
        _check_owner(self._exports[key], owner)
        return key

    def drop(self, name: str, *, access: str = "", tenant: str = "", user: str = "") -> Export:
        """Take away an export from outside, whoever made it and however it is pinned; who has imported it keeps the
        pages.  "" matches any access, tenant, user.  Raises NotFound, and InvalidRequest if several match."""
        wanted = (("access", access), ("tenant", tenant), ("user", user))
        found = [
            key
            for key, export in self._exports.items()
            if key.name == name and all(not value or value == _fact(export, what) for what, value in wanted)
        ]
        asked = ", ".join([repr(name), *(f"{what} {value!r}" for what, value in wanted if value)])
        if not found:
            raise NotFound(f"there is no export {asked}")
        if len(found) > 1:
            owners = (self._exports[key] for key in found)
            told = "; ".join(f"{e.access} of {e.owner.tenant}/{e.owner.user}" for e in owners)
            raise InvalidRequest(f"{len(found)} exports are named {asked}: {told}; say which")
        export = self._exports[found[0]]
        self._remove(found[0])
        return export

    def all(self) -> Iterator[Export]:
        """Every export there is, by name."""
        for key in sorted(self._exports, key=lambda key: (key.name, *key)):
            yield self._exports[key]

    def visible(self, owner: Owner, prefix: str) -> Iterator[Export]:
        """Exports that the owner's inferlets may import, by name."""
        found = [
            (key.name, key.access, export)
            for key, export in self._exports.items()
            if key.name.startswith(prefix) and key == key_of(key.access, owner, key.name)
        ]
        for _, _, export in sorted(found, key=lambda item: item[:2]):
            yield export

    def names(self) -> list[bytes]:
        """`export_name` of all."""
        return [export_name(*key) for key in self._exports]

    def num_importers(self, export: Export) -> int:
        """Inferlets that have imported it and still have a page of it."""
        ledger, pages = self._ledger, export.pages
        export.importers = {holder for holder in export.importers if ledger.is_held(holder, pages)}
        return len(export.importers)

    # --- how exports end -----------------------------------------------------------------------

    def expire(self, now: float) -> int:
        """Drop the exports whose time is over; returns how many pages came free."""
        num_freed = 0
        while (at := self.next_expiry()) is not None and at <= now:
            num_freed += self._remove(heapq.heappop(self._expiries)[1])
        return num_freed

    def next_expiry(self) -> float | None:
        """When `expire` has work; None: never, as things are."""
        while self._expiries:
            at, key = self._expiries[0]
            export = self._exports.get(key)
            if export is not None and export.expires_at == at:
                return at
            heapq.heappop(self._expiries)
        return None

    def evict(self, num_pages: int, now: float = 0.0) -> int:
        """Drop exports that are not pinned and that nobody has open, least recently used first, until that many pages
        came free or none is left to drop; returns how many came free."""
        idle = [key for key, export in self._exports.items() if not (export.is_pinned(now) or self._is_open(export))]
        stays = {page for key in self._exports.keys() - idle for page in self._exports[key].pages}
        num_freed = 0
        for key in idle:
            if num_freed >= num_pages:
                break
            if not stays.issuperset(self._exports[key].pages):
                num_freed += self._remove(key)
                self._remember(key)
        return num_freed

    def clear(self) -> None:
        """The batcher is dead, and what the pages held with it."""
        for key in list(self._exports):
            self._remove(key)
        self._evicted.clear()
        self._expiries.clear()

    # --- inside --------------------------------------------------------------------------------

    def _check_quota(self, export: Export, old: Export | None, quota: Quota) -> None:
        others = [e for e in self._exports.values() if e.owner == export.owner and e is not old]
        used = Quota(len(others), sum(len(e.pages) for e in others), sum(e.num_bytes for e in others))
        more = Quota(1, len(export.pages), export.num_bytes)
        for name, limit, have, asked in zip(Quota._fields, quota, used, more, strict=True):
            if have + asked > limit:
                raise QuotaExceeded(
                    f"{name}: the limit is {limit} for user {export.owner.user!r}; {have} are used, "
                    f"{asked} more were asked for"
                )

    def _check_pins(self, export: Export, old: Export | None, now: float) -> None:
        """Raises QuotaExceeded if pinned exports would hold too much of the pool; a page counts once."""
        pinned = [e for e in self._exports.values() if e is not old and e.is_pinned(now)]
        tenant = export.owner.tenant
        mine = [e for e in pinned if e.owner.tenant == tenant]
        for name, share, whose, others in (
            ("tenant_pin_share", self._pins.tenant, f"tenant {tenant!r}", mine),
            ("pin_share", self._pins.all, "all tenants", pinned),
        ):
            limit = int(share * self._ledger.total)
            used = {page for e in others for page in e.pages}
            more = len(set(export.pages) - used)
            if len(used) + more > limit:
                raise QuotaExceeded(
                    f"{name}: {share:g} of the pool, {limit} pages, is the limit of what {whose} may "
                    f"pin; {len(used)} are pinned, {more} more were asked for"
                )

    def _remove(self, key: Key) -> int:
        self._changed(key, is_here=False)
        return self._ledger.drop(self._exports.pop(key).pages)

    def _changed(self, key: Key, *, is_here: bool) -> None:
        if self.changes is not None:
            self.changes[export_name(*key)] = is_here

    def _is_open(self, export: Export) -> bool:
        return any(self._ledger.is_leased(page) for page in export.pages)

    def _expire_later(self, at: float, key: Key) -> None:
        if len(self._expiries) > 2 * len(self._exports) + 64:  # names replaced again and again leave entries behind
            self._expiries = [(e.expires_at, k) for k, e in self._exports.items() if e.expires_at != math.inf]
            heapq.heapify(self._expiries)
        else:
            heapq.heappush(self._expiries, (at, key))

    def _remember(self, key: Key) -> None:
        self._evicted[key] = None
        self._evicted.move_to_end(key)
        if len(self._evicted) > KEEP_EVICTED:
            self._evicted.popitem(last=False)


def _fact(export: Export, what: str) -> str:
    return {"access": export.access, "tenant": export.owner.tenant, "user": export.owner.user}[what]


def _check_owner(export: Export, owner: Owner) -> None:
    if export.owner != owner:
        raise Denied(
            f"export {export.name!r} ({export.access}) is another user's: only who made it replaces or takes it away"
        )
