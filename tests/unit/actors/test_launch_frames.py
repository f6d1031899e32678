"""What clients send to be launched is checked before anybody uses it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pieray.errors import InvalidRequest, ProtocolError
from pieray.messages import CloseLease, Launch, decode_one, encode

LAUNCH = Launch("it-1", "it", "it.py", "def main(): ...", b"", "{}", {"pages": 3})


def test_a_launch_comes_through() -> None:
    assert decode_one(encode([LAUNCH]), Launch) == LAUNCH


@pytest.mark.parametrize("frame", [encode([]), encode([LAUNCH, LAUNCH]), encode([CloseLease(1)])])
def test_anything_else_is_an_invalid_request(frame: bytes) -> None:
    with pytest.raises(InvalidRequest, match="one Launch message"):
        decode_one(frame, Launch)


@pytest.mark.parametrize(
    "change", [{"source": None}, {"component": "text"}, {"limits": [1]}, {"instance_id": 7}, {"input": b"{}"}]
)
def test_fields_have_their_types(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"{next(iter(change))} of a launch is"):
        decode_one(encode([dataclasses.replace(LAUNCH, **change)]), Launch)


def test_no_frame_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode_one(b"nonsense", Launch)
