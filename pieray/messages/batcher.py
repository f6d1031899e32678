"""InferletActor -> Batcher."""

from __future__ import annotations

from dataclasses import dataclass, field

from pieray.messages.frame import Message, register
from pieray.messages.outputs import Output, Sampler


@register(19)
@dataclass(frozen=True, slots=True)
class OpenInferlet(Message):
    """An inferlet has begun, and belongs to that tenant: to be sent ahead of its commands, until CancelInferlet."""

    inferlet: int
    tenant: str
    traced_as: str = ""  # its instance id, if its steps are to be noted; else ""


@register(10)
@dataclass(frozen=True, slots=True)
class Forward(Message):
    """Run tokens on top of `kv_len` tokens of KV, and write their KV behind those."""

    ticket: int
    inferlet: int  # the sender's number for the inferlet: order and priority are kept per (inferlet, queue)
    queue: int
    priority: int
    pages: bytes  # u32: physical pages, in order
    kv_len: int
    tokens: bytes  # u32
    positions: bytes  # u32, or b"": kv_len, kv_len + 1, ...
    mask: bytes  # packed bits [tokens, kv_len + tokens], or b"": causal
    outputs: list[Output]  # each answered with a Completed of its ticket
    adapter: int = 0  # the batcher's number for a LoRA adapter; 0: none
    embeds: list[bytes] = field(default_factory=list)
    """[rows u32, values f32]: rows that are embeddings, not tokens; a third one, places i32[rows, 4], says where those
    of images stand, see `Embeddings` of pieray/models/batch.py."""
    programs: list[int] = field(default_factory=list)  # the inferlet's numbers of tensor programs that run in it


@register(18)
@dataclass(frozen=True, slots=True)
class DecodePasses(Message):
    """Passes of one token, each with one sample behind it, as columns, a row for each; what a Forward of one token
    with a Sample asks, and answered the same, or by Sampled.

    Rows of one inferlet are in the order enqueued.  The sender sees to it that none overtakes, or is overtaken by,
    another command of its inferlet: such a pass travels as a Forward.
    """

    tickets: bytes  # u64 [R], of the passes; the upper half is the sender's number for the inferlet
    sample_tickets: bytes  # u64 [R]
    queues: bytes  # u32 [R]
    priorities: bytes  # i32 [R]
    kv_lens: bytes  # u32 [R]
    tokens: bytes  # u32 [R]
    positions: bytes  # u32 [R]
    adapters: bytes  # u32 [R]: 0 for none
    num_pages: bytes  # u32 [R]
    pages: bytes  # u32: physical pages of all rows in a line
    samplers: list[Sampler]  # each once
    sampler_of: bytes  # u32 [R]: indices of samplers


@register(35)
@dataclass(frozen=True, slots=True)
class Sampled(Message):
    """Passes that have run, each with its one sample: what a Completed of each ticket would say, as columns."""

    tickets: bytes  # u64 [R], of the passes
    sample_tickets: bytes  # u64 [R]
    tokens: bytes  # u32 [R]


@register(11)
@dataclass(frozen=True, slots=True)
class CopyTokens(Message):
    """Copy KV of token ranges between pages, in all layers."""

    ticket: int
    inferlet: int
    queue: int
    priority: int
    copies: list[list[int]]  # [source page, offset, destination page, offset, count]


@register(5)
@dataclass(frozen=True, slots=True)
class SwapOut(Message):
    """Copy the KV of whole pages, of all layers, to slots of host memory: behind all that the inferlet has sent before
    and that writes to them, a run of a plan included.  The pages stay as they are; what was sent before and only reads
    them may still be under way when this is answered.

    -> u32[n]: the slots of the first n pages, as many as found room, perhaps none.  They are the inferlet's until a
    SwapIn has read them, a DropSwapped names them, or it ends.  Parts that a failed command was to write are copied
    as they are: the inferlet knows them, and reads none of them when the pages are back.
    """

    ticket: int
    inferlet: int
    queue: int
    priority: int
    pages: bytes  # u32


@register(6)
@dataclass(frozen=True, slots=True)
class SwapIn(Message):
    """Write what slots of host memory hold into pages, slot i into page i, ahead of all that the inferlet sends later
    and that touches these pages.

    Answered with Completed(None): the slots are free then.  Failed(invalid) if one is not the inferlet's, is given
    twice, or waits for an earlier SwapIn already; a SwapIn that fails leaves the inferlet its slots.
    """

    ticket: int
    inferlet: int
    queue: int
    priority: int
    slots: bytes  # u32, as SwapOut has answered
    pages: bytes  # u32, as many, each once


@register(8)
@dataclass(frozen=True, slots=True)
class ReadPages(Message):
    """Give what whole pages hold, of all layers; the inferlet has them, and nothing in flight writes to them.

    -> [bytes, their CRC-32]: page after page, each [layers, 2, KV heads, page size, head size] of the pool's dtype.
    """

    ticket: int
    inferlet: int
    queue: int
    priority: int
    pages: bytes  # u32


@register(9)
@dataclass(frozen=True, slots=True)
class WritePages(Message):
    """Write into pages of the inferlet what ReadPages has given, of this batcher or another one of the same model,
    ahead of all that the inferlet sends later and that touches them.

    Answered with Completed(None); Failed(invalid) if data and checksum do not belong together, or the size is another.
    """

    ticket: int
    inferlet: int
    queue: int
    priority: int
    pages: bytes  # u32
    data: bytes
    checksum: int


@register(7)
@dataclass(frozen=True, slots=True)
class DropSwapped(Message):
    """Nobody wants what these slots hold any more: they are free, those of a SwapIn that was sent earlier when it has
    run.  Not answered; those that are not the inferlet's are left alone."""

    inferlet: int
    slots: bytes  # u32


@register(13)
@dataclass(frozen=True, slots=True)
class EmbedTokens(Message):
    """Look up the embeddings of tokens -> f32[n * hidden size]."""

    ticket: int
    inferlet: int
    tokens: bytes  # u32


@register(39)
@dataclass(frozen=True, slots=True)
class EmbedImage(Message):
    """See an image -> [values f32[rows, hidden size], places i32[rows, 4] or b"", digest of 16 bytes], see
    `SeenImage`."""

    ticket: int
    inferlet: int
    tenant: str  # images of tenants take turns, and of a tenant those of its inferlets
    data: bytes  # a file: JPEG, PNG, WebP, GIF or BMP
    max_bytes: int  # of the values


@register(14)
@dataclass(frozen=True, slots=True)
class Verify(Message):
    """Run tokens and drafts on top of `kv_len` tokens of KV, and keep the drafts that sampling would have given.

    -> u32[accepted + 1], the sampled tokens; the KV of tokens and accepted drafts lies behind kv_len, in order.
    """

    ticket: int
    inferlet: int
    queue: int
    priority: int
    pages: bytes  # u32
    kv_len: int
    tokens: bytes  # u32, at least one
    drafts: bytes  # u32
    parents: bytes  # u32, one per draft: 0 for the last of tokens, else 1 + an earlier draft; b"": a chain
    sampler: Sampler
    adapter: int = 0
    visible: bytes = b""  # packed bits [kv_len], or b"": all


@register(12)
@dataclass(frozen=True, slots=True)
class CancelInferlet(Message):
    """Drop what the inferlet has queued; answered (Completed, None) when no step touches its pages any more."""

    ticket: int
    inferlet: int
