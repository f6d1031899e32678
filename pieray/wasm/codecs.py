"""Between value images and Python: one lifter and one encoder per type, made once per function.

A lifter reads the arguments of a call from memory that the library owns and copies what it keeps.
An encoder makes an image (32 bytes) and the memory behind it, which belongs to whoever receives the image.
Lists of numbers are numpy arrays; strings are str; an enum is its name.  `cap` bounds, in bytes, each
string and each list that comes from a guest; it is checked before anything is copied.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from ctypes import string_at
from typing import Any

import numpy as np

from pieray.errors import WIT_CODES, PierayError, QuotaExceeded
from pieray.wasm import native as n
from pieray.wasm.signatures import ENUMS

Lifter = Callable[[int, int], Sequence[Any]]  # (address of the arguments, cap) -> Python values
Encoder = Callable[[Any], bytes]

_FIELDS = {
    "bool": "8x?23x",
    "s32": "8xi20x",
    "u32": "8xI20x",
    "u64": "8xQ16x",
    "f32": "8xf20x",
    "borrow": "8xQ16x",  # WASI only: the address of a resource
    "result<_, _>": "8x?23x",
}
_VECTOR = "8xQQ8x"  # (size, data): lists, strings, enums

_pack_vector = struct.Struct("<B7xQQ8x").pack
_pack_result = struct.Struct("<B7xB7xQ8x").pack
_pack_name = struct.Struct("<QQ").pack


def _too_big(what: str, size: int, cap: int) -> QuotaExceeded:
    return QuotaExceeded(f"message_bytes is {cap}; a {what} of {size} bytes was handed to a handler")


def lift_string(size: int, data: int, cap: int) -> str:
    if size > cap:
        raise _too_big("string", size, cap)
    return string_at(data, size).decode() if size else ""


def lift_u8s(size: int, data: int, cap: int) -> bytes:
    if size > cap:
        raise _too_big("list", size, cap)
    return bytes(string_at(data, size * n.VAL_SIZE)[8 :: n.VAL_SIZE]) if size else b""


def _list_lifter(dtype: str) -> Callable[[int, int, int], np.ndarray[Any, Any]]:
    def lift(size: int, data: int, cap: int) -> np.ndarray[Any, Any]:
        _checked_count(size, cap)
        if not size:
            return np.empty(0, dtype)
        words = np.frombuffer(string_at(data, size * n.VAL_SIZE), dtype)
        return words[2::8].copy()  # the payload is word 2 of the 8 in an image

    return lift


def _lift_borrows(size: int, data: int, cap: int) -> list[int]:
    _checked_count(size, cap)
    return [] if not size else np.frombuffer(string_at(data, size * n.VAL_SIZE), "<u8")[1::4].tolist()


def _lift_strings(size: int, data: int, cap: int) -> list[str]:
    """The cap bounds all of the strings together."""
    images = string_at(data, _checked_count(size, cap) * n.VAL_SIZE) if size else b""
    texts = []
    for i in range(size):
        length, at = struct.unpack_from("<QQ", images, i * n.VAL_SIZE + 8)
        texts.append(lift_string(length, at, cap))
        cap -= length
    return texts


def _checked_count(size: int, cap: int) -> int:
    if size * 4 > cap:
        raise _too_big("list", size * 4, cap)
    return size


_VECTOR_LIFTERS: dict[str, Callable[[int, int, int], Any]] = {
    "string": lift_string,
    "list<string>": _lift_strings,
    "enum{ipv4, ipv6}": lift_string,
    "list<u8>": lift_u8s,
    "list<borrow>": _lift_borrows,
    "list<u32>": _list_lifter("<u4"),
    "list<f32>": _list_lifter("<f4"),
}


def lifter(params: Sequence[str]) -> Lifter:
    """Reads all arguments of a function with one copy; QuotaExceeded for a string or list beyond the cap."""
    layout = struct.Struct("<" + "".join(_FIELDS.get(p, _VECTOR) for p in params))
    if not params:
        return lambda _args, _cap: ()
    unpack, images_at = layout.unpack, (n.Image * len(params)).from_address
    if all(p in _FIELDS for p in params):
        return lambda args, _cap: unpack(images_at(args))
    steps: list[tuple[int, Callable[[int, int, int], Any] | None]] = []
    at = 0
    for p in params:
        steps.append((at, None if p in _FIELDS else lift_string if p in ENUMS else _VECTOR_LIFTERS[p]))
        at += 1 if p in _FIELDS else 2

    def lift(args: int, cap: int) -> Sequence[Any]:
        flat = unpack(images_at(args))
        return [flat[i] if one is None else one(flat[i], flat[i + 1], cap) for i, one in steps]

    return lift


def lift_failure(image: bytes) -> tuple[str, str, str]:
    """(kind, message, trace) of the image of a `failure` record."""
    _, data = struct.unpack_from("<QQ", image, 8)
    record = string_at(data, 3 * n.ENTRY_SIZE)
    values = (struct.unpack_from("<QQ", record, i * n.ENTRY_SIZE + 24) for i in range(3))
    kind, message, trace = (string_at(at, size).decode() if size else "" for size, at in values)
    return kind, message, trace


def lift_result(image: bytes) -> tuple[bool, bytes]:
    """(is_ok, image of the payload) of a result whose arms both carry a value."""
    return bool(image[8]), string_at(int.from_bytes(image[16:24], "little"), n.VAL_SIZE)


def _name(encoded: bytes) -> tuple[int, int]:
    out = n.Pair()
    n.byte_vec_new(out, len(encoded), encoded)
    return out[0], out[1]


def encode_string(text: str) -> bytes:
    return _pack_vector(n.STRING, *_name(text.encode("utf-8", "replace")))


def encode_enum(name: str) -> bytes:
    return _pack_vector(n.ENUM, *_name(name.encode()))


def _scalar_encoder(kind: int, field: str) -> Encoder:
    pack = struct.Struct("<B7x" + field[2:]).pack
    return lambda value: pack(kind, value)


encode_bool = _scalar_encoder(n.BOOL, _FIELDS["bool"])
encode_u32 = _scalar_encoder(n.U32, _FIELDS["u32"])
encode_u64 = _scalar_encoder(n.U64, _FIELDS["u64"])
encode_f32 = _scalar_encoder(n.F32, _FIELDS["f32"])


def vector_image(kind: int, count: int, images: bytes, make: Callable[..., None] = n.list_new) -> bytes:
    """A list (or, with `make`, a tuple or record) of the `count` images or entries joined in `images`."""
    out = n.Pair()
    make(out, count, images)
    return _pack_vector(kind, out[0], out[1])


def _list_encoder(kind: int, dtype: str, one: Encoder) -> Encoder:
    def encode(values: Sequence[Any]) -> bytes:
        count = len(values)
        if count <= 4:
            return vector_image(n.LIST, count, b"".join([one(v) for v in values]))
        words = np.zeros((count, 8), dtype)
        words[:, 2] = values
        words.view("<u4")[:, 0] = kind
        return vector_image(n.LIST, count, words.tobytes())

    return encode


encode_u32s = _list_encoder(n.U32, "<u4", encode_u32)
encode_f32s = _list_encoder(n.F32, "<f4", encode_f32)


def encode_u8s(data: bytes) -> bytes:
    words = np.zeros((len(data), n.VAL_SIZE), "u1")
    words[:, 0], words[:, 8] = n.U8, np.frombuffer(data, "u1")
    return vector_image(n.LIST, len(data), words.tobytes())


def encode_strings(texts: Sequence[str]) -> bytes:
    return vector_image(n.LIST, len(texts), b"".join([encode_string(t) for t in texts]))


def _encode_distribution(pair: tuple[Sequence[int], Sequence[float]]) -> bytes:
    tokens, floats = pair
    return vector_image(n.TUPLE, 2, encode_u32s(tokens) + encode_f32s(floats), n.tuple_new)


def _encode_drawn(columns: tuple[Sequence[int], Sequence[str], Sequence[float]]) -> bytes:
    tokens, texts, floats = columns
    return vector_image(n.TUPLE, 3, encode_u32s(tokens) + encode_strings(texts) + encode_f32s(floats), n.tuple_new)


ENCODERS: dict[str, Encoder] = {
    "bool": encode_bool,
    "u32": encode_u32,
    "u64": encode_u64,
    "f32": encode_f32,
    "string": encode_string,
    "list<u32>": encode_u32s,
    "list<f32>": encode_f32s,
    "list<string>": encode_strings,
    "tuple<list<u32>, list<f32>>": _encode_distribution,
    "tuple<list<u32>, list<string>, list<f32>>": _encode_drawn,
}

OK_NONE = _pack_result(n.RESULT, 1, 0)
ERR_NONE = _pack_result(n.RESULT, 0, 0)


def ok_image(payload: bytes) -> bytes:
    return _pack_result(n.RESULT, 1, n.val_new(payload))


def err_image(payload: bytes) -> bytes:
    return _pack_result(n.RESULT, 0, n.val_new(payload))


def error_result(error: PierayError) -> bytes:
    """The err arm for `error`; a code that is not in the WIT enum is `internal`."""
    code = error.code if error.code in WIT_CODES else "internal"
    entries = record_entry("code", encode_enum(code)) + record_entry("message", encode_string(str(error)))
    return err_image(vector_image(n.RECORD, 2, entries, n.record_new))


def record_entry(name: str, image: bytes) -> bytes:
    return _pack_name(*_name(name.encode())) + image


def result_encoder(ok: str | None, *, is_fallible: bool) -> Encoder:
    """Encodes what a handler returned; nothing to return is an empty image (the caller writes none)."""
    if ok is None:
        return (lambda _: OK_NONE) if is_fallible else (lambda _: b"")
    encode = ENCODERS[ok]
    if not is_fallible:
        return encode
    pack, kind, allocate = _pack_result, n.RESULT, n.val_new
    return lambda value: pack(kind, 1, allocate(encode(value)))
