"""How many linear memories a component defines: a guest's limit is divided among them.

Binary format: https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md
"""

from __future__ import annotations

import time

from pieray.errors import InvalidRequest

_COMPONENT_HEADER = 8
_CORE_MODULE, _COMPONENT = 1, 4
_CORE_MEMORY_SECTION = 5
MAX_MEMORIES = 4
SECTIONS_AT_ONCE = 1024


def checked_memories(wasm: bytes, name: str) -> int:
    """The memories of a valid component, at least 1; raises InvalidRequest for more than MAX_MEMORIES."""
    found = count_memories(wasm)
    if found > MAX_MEMORIES:
        raise InvalidRequest(f"{name} defines {found} linear memories; {MAX_MEMORIES} are the most")
    return max(found, 1)


def count_memories(wasm: bytes) -> int:
    """Memories that the core modules of a valid component define, nested components included."""
    view = memoryview(wasm)
    found, num_sections, pending = 0, 0, [(view, True)]
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
                found += _leb128(section, 0)[0]
    return found


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
