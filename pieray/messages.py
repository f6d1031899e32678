"""Every message that crosses a process, and the one frame format.

A frame is msgpack `[SCHEMA, [message, ...]]`; a message is `[kind, field, ...]` in the order of its
dataclass.  Messages carry diffs, never state; arrays travel as little-endian bytes (`u32`, `f32`).
Nothing here is ever pickled.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeAlias, TypeVar

import msgpack

from pieray.errors import ProtocolError

SCHEMA = 1
MAX_FRAME_BYTES = 64 << 20

M = TypeVar("M", bound="Message")


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages; subclasses are registered by their `KIND`."""

    KIND: ClassVar[int] = 0


_KINDS: dict[int, type[Message]] = {}
_FIELDS: dict[type[Message], Callable[[Any], tuple[Any, ...]]] = {}
_NUM_FIELDS: dict[int, int] = {}


def _register(kind: int) -> Callable[[type[M]], type[M]]:
    def add(cls: type[M]) -> type[M]:
        if kind in _KINDS:
            raise AssertionError(f"message kind {kind} is {_KINDS[kind].__name__} already")
        cls.KIND = kind
        names = [f.name for f in dataclasses.fields(cls)]
        _KINDS[kind], _NUM_FIELDS[kind] = cls, len(names)
        getter: Any = attrgetter(*names)
        _FIELDS[cls] = getter if len(names) > 1 else (lambda m: (getter(m),))
        return cls

    return add


# --- opening a connection ----------------------------------------------------------------------


@_register(1)
@dataclass(frozen=True, slots=True)
class Hello(Message):
    """First message of the side that connects; the handshake around it proves that it knows the engine's token."""

    role: str  # "inferlets", "batcher", "resource-manager", "client", "controller"
    peer_id: str  # unique for the life of the process: what a dead peer's resources are found by


@_register(2)
@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Answer to a good Hello."""

    peer_id: str
    incarnation: int  # grows with every restart of the actor: a stale endpoint is told from a new one


# --- generic answers ---------------------------------------------------------------------------


@_register(3)
@dataclass(frozen=True, slots=True)
class Completed(Message):
    """A command or request has its result."""

    ticket: int  # the sender's number for it
    value: Any  # None, bytes (u32 or f32 array), str, or [bytes, bytes]: as the command documents


@_register(4)
@dataclass(frozen=True, slots=True)
class Failed(Message):
    """A command or request has failed."""

    ticket: int
    code: str  # of pieray.errors
    message: str


# --- InferletActor -> Batcher ------------------------------------------------------------------

#: Outputs of a pass, each `[ticket, tag, row, ...]`; the value of its Completed is given here.
SAMPLE = 0  # [ticket, 0, row, temperature, top_k, top_p, min_p, seed] -> u32[1]
DISTRIBUTION = 1  # [ticket, 1, row, k] -> [u32[k], f32[k]]
LOGPROBS = 2  # [ticket, 2, row, u32 bytes] -> f32[n]
LOGITS = 3  # [ticket, 3, row] -> f32[vocab]

Output: TypeAlias = list[Any]


@_register(10)
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
    outputs: list[Output]


@_register(11)
@dataclass(frozen=True, slots=True)
class CopyTokens(Message):
    """Copy KV of token ranges between pages, in all layers."""

    ticket: int
    inferlet: int
    queue: int
    priority: int
    copies: list[list[int]]  # [source page, offset, destination page, offset, count]


@_register(12)
@dataclass(frozen=True, slots=True)
class CancelInferlet(Message):
    """Drop what the inferlet has queued; answered (Completed, None) when no step touches its pages any more."""

    ticket: int
    inferlet: int


# --- InferletActor -> ResourceManager ----------------------------------------------------------


@_register(20)
@dataclass(frozen=True, slots=True)
class LeasePages(Message):
    """Ask for pages; answered with Completed(u32 bytes) or Failed(out-of-pages)."""

    ticket: int
    inferlet: int
    count: int
    deadline_s: float  # how long the request may wait in line


@_register(21)
@dataclass(frozen=True, slots=True)
class ReleasePages(Message):
    """Give leased pages back; nothing in flight touches them."""

    inferlet: int
    pages: bytes  # u32


@_register(22)
@dataclass(frozen=True, slots=True)
class CloseLease(Message):
    """The inferlet has ended: all its pages come back."""

    inferlet: int


# --- ResourceManager -> InferletActor ----------------------------------------------------------


@_register(23)
@dataclass(frozen=True, slots=True)
class ReclaimSpare(Message):
    """Pages are short: hand back leased pages that no handle uses."""

    count: int


# --- Batcher -> ResourceManager ----------------------------------------------------------------


@_register(30)
@dataclass(frozen=True, slots=True)
class PeerFenced(Message):
    """No step touches pages for that (dead) peer any more: its pages may be leased again."""

    peer_id: str


# --- client <-> InferletActor ------------------------------------------------------------------


@_register(40)
@dataclass(frozen=True, slots=True)
class Attach(Message):
    """Stream the inferlet's events to this connection, from number `cursor` on."""

    ticket: int
    instance_id: str
    cursor: int


@_register(41)
@dataclass(frozen=True, slots=True)
class SendText(Message):
    """A message of the client to the inferlet."""

    ticket: int
    instance_id: str
    text: str


@_register(42)
@dataclass(frozen=True, slots=True)
class Kill(Message):
    """End the inferlet now; its result becomes `cancelled`."""

    ticket: int
    instance_id: str
    reason: str


@_register(43)
@dataclass(frozen=True, slots=True)
class Event(Message):
    """One thing an inferlet did, numbered from 0."""

    instance_id: str
    number: int
    kind: str  # "text", "log", "result", "error"; the last two end the stream
    payload: str  # text; "log": "level: text"; "result": JSON; "error": JSON {code, message}


# --- Controller -> InferletActor ----------------------------------------------------------------


@_register(50)
@dataclass(frozen=True, slots=True)
class Launch(Message):
    """Start an inferlet; travels in a Ray call."""

    instance_id: str
    name: str  # of the program, for people
    filename: str  # shown in tracebacks
    source: str  # Python source, or "" when `component` is given
    component: bytes  # a wasm component, or b""
    input: str  # JSON
    limits: dict[str, float]  # fields of Limits that differ from the engine's defaults


# --- the frame ---------------------------------------------------------------------------------


def encode(messages: Sequence[Message]) -> bytes:
    """One frame of the messages, without any length prefix (that is the transport's)."""
    body = [[m.KIND, *_FIELDS[type(m)](m)] for m in messages]
    return typing.cast(bytes, msgpack.packb([SCHEMA, body]))


def decode(frame: bytes | memoryview) -> list[Message]:
    """The messages of a frame.  Raises ProtocolError for anything but a well-formed frame of this schema."""
    try:
        schema, body = msgpack.unpackb(frame, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a frame of {len(frame)} bytes is not msgpack [schema, messages]: {error}") from error
    if schema != SCHEMA:
        raise ProtocolError(f"schema {SCHEMA} is spoken here; the peer sent {schema!r}")
    try:
        return [_message(item) for item in body]
    except (TypeError, IndexError, KeyError) as error:
        raise ProtocolError(f"malformed message in a frame: {error!r}") from error


def _message(item: Any) -> Message:
    kind, *fields = item
    cls = _KINDS.get(kind)
    if cls is None:
        raise ProtocolError(f"message kind {kind!r} is unknown; known: {sorted(_KINDS)}")
    if len(fields) != _NUM_FIELDS[kind]:
        raise ProtocolError(f"{cls.__name__} has {_NUM_FIELDS[kind]} fields; the peer sent {len(fields)}")
    return cls(*fields)
