"""Sizes and contents of texts that come from outside."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from pieray.errors import InvalidRequest, QuotaExceeded


def byte_size(text: str | bytes) -> int:
    """Bytes of the text in UTF-8, or of the bytes."""
    return len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_size(name: str, limit: int, size: int, what: str = "") -> None:
    """Raise QuotaExceeded, with the limit's name and what was given, for more than `limit` bytes."""
    if size > limit:
        told = f"{what} has {size}" if what else f"given {size}"
        raise QuotaExceeded(f"{name}: the limit is {limit}; {told}")


def parse_json(text: str) -> Any:
    """Strictly, as RFC 8259 has it: raises ValueError for NaN and infinities too, and for what nests too deep."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def check_unicode(what: str, text: str, value: Any) -> None:
    """Raise InvalidRequest if `value`, which the JSON `text` says, has a lone surrogate: UTF-8 cannot hold it."""
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{what}: a lone surrogate is no Unicode text: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def from_base64(text: str) -> bytes:
    """The bytes of strict base64 (RFC 4648, section 4); raises InvalidRequest."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # binascii.Error, or a character beyond ASCII
        raise InvalidRequest(f"bytes travel as base64 (RFC 4648, section 4): {error}") from None


def to_base64(data: bytes | bytearray | memoryview) -> str:
    """Base64 (RFC 4648, section 4), without line breaks."""
    return base64.b64encode(data).decode("ascii")
