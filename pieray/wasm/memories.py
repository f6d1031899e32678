"""The linear memories that a component defines: a guest's limit is divided among them.

Binary format: https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from pieray.errors import InvalidRequest

_COMPONENT_HEADER = 8
_CORE_MODULE, _COMPONENT = 1, 4
_CORE_MEMORY_SECTION = 5
MAX_MEMORIES = 4
SECTIONS_AT_ONCE = 1024
WASM_PAGE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Memories:
    """Of one component."""

    number: int
    initial_bytes: int
    """Of the largest, before anything has run."""


def checked_memories(wasm: bytes, name: str) -> Memories:
    """The memories of a valid component; raises InvalidRequest for more than MAX_MEMORIES."""
    found = memories_of(wasm)
    if found.number > MAX_MEMORIES:
        raise InvalidRequest(f"{name} defines {found.number} linear memories; {MAX_MEMORIES} are the most")
    return found


def memories_of(wasm: bytes) -> Memories:
    """Memories that the core modules of a valid component define, nested components included."""
    view = memoryview(wasm)
    sizes: list[int] = []
    num_sections, pending = 0, [(view, True)]
    while pending:
        body, is_component = pending.pop()
        at = _COMPONENT_HEADER
        while at < len(body):
            num_sections += 1
            if num_sections % SECTIONS_AT_ONCE == 0:
                time.sleep(0)  # there may be a million: let others have the interpreter's lock
            kind = body[at]
            size, at = _leb128(body, at + 1)
            section = body[at : at + size]
            at += size
            if is_component and kind in (_CORE_MODULE, _COMPONENT):
                pending.append((section, kind == _COMPONENT))
            elif not is_component and kind == _CORE_MEMORY_SECTION:
                sizes += _initial_pages(section)
    return Memories(len(sizes), max(sizes, default=0) * WASM_PAGE_BYTES)


def _initial_pages(section: memoryview) -> list[int]:
    """Of each memory of a core module's memory section."""
    number, at = _leb128(section, 0)
    found: list[int] = []
    for _ in range(min(number, MAX_MEMORIES + 1)):
        has_most = section[at] & 1
        least, at = _leb128(section, at + 1)
        if has_most:
            _, at = _leb128(section, at)
        found.append(least)
    return found + [0] * (number - len(found))


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
