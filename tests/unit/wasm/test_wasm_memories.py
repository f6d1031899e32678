"""Counting the memories of components: the limit of a guest is divided among them."""

from __future__ import annotations

import pytest
import wasmtime
from wasm_fakes import GUESTS_C

from pieray.errors import InvalidRequest
from pieray.wasm.memories import Memories, checked_memories, memories_of

MODULE = "(core module (memory 1))"


@pytest.mark.parametrize(
    ("text", "number", "pages"),
    [
        ("(component)", 0, 0),
        (f"(component {MODULE})", 1, 1),
        (f"(component {MODULE * 2} (component {MODULE} (component {MODULE})))", 4, 1),
        ('(component (core module (import "a" "b" (memory 1))))', 0, 0),
        ("(component (core module (memory 3 300)) (core module (memory 300)))", 2, 300),
    ],
)
def test_memories_are_counted_and_measured_wherever_they_are_defined(text, number, pages):
    assert memories_of(bytes(wasmtime.wat2wasm(text))) == Memories(number, pages << 16)


def test_one_is_usual_and_many_are_refused():
    assert checked_memories((GUESTS_C / "completion.wasm").read_bytes(), "completion").number == 1
    with pytest.raises(InvalidRequest, match="greedy defines 5 linear memories; 4 are the most"):
        checked_memories(bytes(wasmtime.wat2wasm(f"(component {MODULE * 5})")), "greedy")
