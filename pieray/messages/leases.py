"""InferletActor and Batcher <-> ResourceManager."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from pieray.errors import InvalidRequest
from pieray.messages.frame import Message, register

HASH_BYTES = 16


def fingerprints(hashes: bytes) -> list[int]:
    """Of hashes of HASH_BYTES each: 32 bits, by which groups tell what they hold."""
    return [int.from_bytes(hashes[start : start + 4], "little") for start in range(0, len(hashes), HASH_BYTES)]


ACCESSES = ("owner", "tenant", "public")
"""Of exports, from the narrowest scope to the widest."""


def export_name(access: str, tenant: str, user: str, name: str) -> bytes:
    """A hash of HASH_BYTES of an export's name in its scope."""
    scope = {"owner": (tenant, user), "tenant": (tenant,)}.get(access, ())
    return blake2b("\0".join((access, *scope, name)).encode(), digest_size=HASH_BYTES).digest()


def export_print(access: str, tenant: str, user: str, name: str) -> int:
    """The fingerprint by which groups tell of an export."""
    return fingerprints(export_name(access, tenant, user, name))[0]


def name_is_taken(name: str, access: str) -> InvalidRequest:
    """The error of who exports under a name that there is."""
    return InvalidRequest(f"an export {name!r} ({access}) exists; replace it, or choose another name")


class Place(NamedTuple):
    """Where a page is in the chain of all that its content depends on."""

    name: bytes  # its hash
    before: bytes  # that of the page before it, or the root
    depth: int  # pages before it


@register(20)
@dataclass(frozen=True, slots=True)
class LeasePages(Message):
    """Ask for pages; answered with Completed([pages u32 bytes, how many of them were found by `hashes`]) or
    Failed(out-of-pages)."""

    ticket: int
    inferlet: int
    count: int
    deadline_s: float  # how long the request may wait in line
    hashes: bytes = b""  # of HASH_BYTES each: content of full pages, from the beginning of a text on
    num_tokens: int = 0  # computed for the inferlet, ever
    num_more: int = 0  # pages that it will want soon: given with the others, as far as there are any just then


@register(29)
@dataclass(frozen=True, slots=True)
class OpenLease(Message):
    """An inferlet has begun: what its rank depends on, see `pieray.leases.rank`.  To be sent ahead of its requests."""

    inferlet: int
    tenant: str
    priority: int
    deadline: float  # seconds since the epoch; 0: none
    born: float  # the same: when the first of its family was launched
    family: str = ""  # whose service is counted together; "": it has none but itself


@register(28)
@dataclass(frozen=True, slots=True)
class IndexPages(Message):
    """Leased pages are full and written, and never will be again: their content is known by its hashes from now on."""

    inferlet: int
    pages: bytes  # u32
    hashes: bytes  # of HASH_BYTES each
    before: bytes  # of each, the hash of the page before it
    depths: bytes  # u32: of each, how many pages are before it


@register(21)
@dataclass(frozen=True, slots=True)
class ReleasePages(Message):
    """Give leased pages back; nothing in flight touches them."""

    inferlet: int
    pages: bytes  # u32


@register(22)
@dataclass(frozen=True, slots=True)
class CloseLease(Message):
    """The inferlet has ended: all its pages come back."""

    inferlet: int


@register(23)
@dataclass(frozen=True, slots=True)
class ReclaimSpare(Message):
    """Pages are short: hand back leased pages that no handle uses.  Answered with Reclaimed."""

    count: int


@register(33)
@dataclass(frozen=True, slots=True)
class Reclaimed(Message):
    """Spare pages were handed back, by ReleasePages ahead of this."""

    idle: bytes  # u32: inferlets with pages that have nothing to compute, and have had nothing for a while


@register(32)
@dataclass(frozen=True, slots=True)
class Preempt(Message):
    """Pages are short for others: the inferlet is to give up its own, and to keep elsewhere what they hold.  Answered
    with Preempted."""

    inferlet: int
    kept: bytes  # u32: pages that it may as well keep, for exports have them too
    shared: bytes = b""  # u32: pages that others have, who do not give up theirs: what they hold need not be kept


@register(37)
@dataclass(frozen=True, slots=True)
class Preempted(Message):
    """The inferlet has given up pages, by ReleasePages ahead of this, and goes on when it gets others."""

    inferlet: int
    num_pages: int
    is_whole: bool  # whether it has none left but those it may keep


@register(24)
@dataclass(frozen=True, slots=True)
class ExportPages(Message):
    """Keep leased pages under a name; nothing in flight writes to them.  Answered with Completed(None)."""

    ticket: int
    inferlet: int
    tenant: str
    user: str
    name: str
    access: str  # "owner", "tenant" or "public"
    pages: bytes  # u32
    written: bytes  # u64 per page: bit i set, slot i holds KV
    num_tokens: int
    meta: str
    ttl_s: float  # 0: for as long as the batcher lives
    pin_s: float  # how long it is kept although memory is short; 0: it is not pinned
    is_replacing: bool
    quota: list[int]  # of the owner: exports, pages in them, bytes of meta in them


@register(25)
@dataclass(frozen=True, slots=True)
class ImportPages(Message):
    """Lease an export's pages too.  Answered with Completed([pages u32, written u64, num_tokens, meta, access, user])
    or Failed(not-found or evicted)."""

    ticket: int
    inferlet: int
    tenant: str
    user: str
    name: str


@register(26)
@dataclass(frozen=True, slots=True)
class Unexport(Message):
    """Take an export's name away, or say whether that may be.  Answered with Completed(None)."""

    ticket: int
    inferlet: int
    tenant: str
    user: str
    name: str
    access: str
    is_checking: bool = False


@register(27)
@dataclass(frozen=True, slots=True)
class ListExports(Message):
    """Answered with Completed(JSON of `kv.list-exports`)."""

    ticket: int
    inferlet: int
    tenant: str
    user: str
    prefix: str


@register(30)
@dataclass(frozen=True, slots=True)
class PeerFenced(Message):
    """No step touches pages for that (dead) peer any more: its pages may be leased again."""

    peer_id: str


@register(31)
@dataclass(frozen=True, slots=True)
class FencePeer(Message):
    """ResourceManager -> Batcher: that peer is lost here: drop it, and answer PeerFenced behind its last step."""

    peer_id: str


@register(38)
@dataclass(frozen=True, slots=True)
class GroupNews(Message):
    """ResourceManager -> InferletActor, where there are several groups: what has changed since the last one."""

    added: bytes  # u32: fingerprints of pages that can be found by their content, and of exports' names
    removed: bytes  # u32: of those that cannot any more
    num_programs: int  # that compute on this group, of all actors
    is_whole: bool = False  # `added` is all that there is
