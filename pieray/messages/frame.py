"""The one frame format, and the registry of messages.

A frame is msgpack `[SCHEMA, [message, ...]]`; a message is `[kind, field, ...]` in the order of its
dataclass.  One within another travels as an extension of msgpack that holds just that.  Messages carry diffs, never
state; arrays travel as little-endian bytes (`u32`, `f32`).
Nothing here is ever pickled.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

import msgpack

from pieray.errors import InvalidRequest, ProtocolError

SCHEMA = 1
NESTED = 1
"""The extension of msgpack."""
MAX_FRAME_BYTES = 64 << 20

M = TypeVar("M", bound="Message")


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all messages; subclasses are registered by their `KIND`."""

    KIND: ClassVar[int] = 0


_KINDS: dict[int, type[Message]] = {}
_FIELDS: dict[type[Message], Callable[[Any], tuple[Any, ...]]] = {}
_BULKY: dict[type[Message], Callable[[Any], tuple[Any, ...]]] = {}  # of those, the ones that may be large
_NUM_FIELDS: dict[int, int] = {}
_TYPES: dict[type[Message], list[tuple[str, str]]] = {}  # name and type of each field, type arguments left out


def register(kind: int) -> Callable[[type[M]], type[M]]:
    def add(cls: type[M]) -> type[M]:
        if kind in _KINDS:
            raise AssertionError(f"message kind {kind} is {_KINDS[kind].__name__} already")
        cls.KIND = kind
        names = [f.name for f in dataclasses.fields(cls)]
        _KINDS[kind], _NUM_FIELDS[kind] = cls, len(names)
        _FIELDS[cls] = _getter(names)
        _TYPES[cls] = [(f.name, str(f.type).partition("[")[0]) for f in dataclasses.fields(cls)]
        _BULKY[cls] = _getter([f.name for f in dataclasses.fields(cls) if f.type not in ("int", "float", "bool")])
        return cls

    return add


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Gives those fields of a message."""
    if not names:
        return lambda _message: ()
    getter: Any = attrgetter(*names)
    return getter if len(names) > 1 else (lambda message: (getter(message),))


def encode(messages: Sequence[Message]) -> bytes:
    """One frame of the messages, without any length prefix (that is the transport's)."""
    body = [[m.KIND, *_FIELDS[type(m)](m)] for m in messages]
    return typing.cast(bytes, msgpack.packb([SCHEMA, body], default=_nested))


def _nested(message: Any) -> msgpack.ExtType:
    """A message within another."""
    fields = _FIELDS.get(type(message))
    if fields is None:
        raise TypeError(f"a message carries numbers, texts, bytes, lists and messages; given {type(message).__name__}")
    return msgpack.ExtType(NESTED, msgpack.packb([message.KIND, *fields(message)], default=_nested))


def _unnested(code: int, data: bytes) -> Message:
    if code != NESTED:
        raise ProtocolError(f"msgpack extension {code} is unknown; known: {NESTED}")
    return _message(msgpack.unpackb(data, strict_map_key=True, ext_hook=_unnested))


def size_of(message: Message) -> int:
    """About how many bytes the message takes in a frame: its texts and arrays, those within lists too."""
    return _size_of(_BULKY[type(message)](message))


def _size_of(fields: Sequence[Any]) -> int:
    total = 0
    for field in fields:
        kind = type(field)  # not isinstance: this is done for each message of each token
        if kind is bytes or kind is str:
            total += len(field)
        elif kind is list or kind is tuple:
            total += _size_of(field)
        elif kind in _BULKY:
            total += _size_of(_BULKY[kind](field))
    return total


def decode(frame: bytes | memoryview) -> list[Message]:
    """The messages of a frame.  Raises ProtocolError for anything but a well-formed frame of this schema."""
    try:
        schema, body = msgpack.unpackb(frame, strict_map_key=True, ext_hook=_unnested)
    except (ValueError, TypeError, LookupError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a frame of {len(frame)} bytes is not msgpack [schema, messages]: {error}") from error
    if schema != SCHEMA:
        raise ProtocolError(f"schema {SCHEMA} is spoken here; the peer sent {schema!r}")
    try:
        return [_message(item) for item in body]
    except (TypeError, IndexError, KeyError) as error:
        raise ProtocolError(f"malformed message in a frame: {error!r}") from error


def decode_one(frame: bytes, cls: type[M]) -> M:
    """The one message of a frame, with fields of their types; raises ProtocolError, InvalidRequest."""
    messages = decode(frame)
    kind = cls.__name__.lower()
    if len(messages) != 1 or not isinstance(message := messages[0], cls):
        raise InvalidRequest(f"here comes one {cls.__name__} message; {[type(m).__name__ for m in messages]} came")
    for name, wanted in _TYPES[cls]:
        if (given := type(getattr(message, name)).__name__) != wanted:
            raise InvalidRequest(f"{name} of a {kind} is {wanted}; given {given}")
    return message


def _message(item: Any) -> Message:
    kind, *fields = item
    cls = _KINDS.get(kind)
    if cls is None:
        from pieray import messages

        messages.load_all()
        cls = _KINDS.get(kind)
    if cls is None:
        raise ProtocolError(f"message kind {kind!r} is unknown; known: {sorted(_KINDS)}")
    if len(fields) != _NUM_FIELDS[kind]:
        raise ProtocolError(f"{cls.__name__} has {_NUM_FIELDS[kind]} fields; the peer sent {len(fields)}")
    return cls(*fields)
