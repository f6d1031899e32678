"""Values survive the way through the library's memory; the table of types is that of real components."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest
import wasmtime.component as wc
from hypothesis import given
from hypothesis import strategies as st
from wasm_fakes import GUESTS_C

from pieray.errors import WIT_CODES, BadHandle, ModelError, QuotaExceeded
from pieray.wasm import codecs, native
from pieray.wasm.engine import new_engine
from pieray.wasm.signatures import HANDLERS, Signature, describe_func

U32 = st.integers(0, 2**32 - 1)
CAP = 1 << 20


def lifted(kind: str, image: bytes, cap: int = CAP):
    """What a guest that passed `image` as its only argument would hand over."""
    memory = ctypes.create_string_buffer(image)
    try:
        return codecs.lifter([kind])(ctypes.addressof(memory), cap)[0]
    finally:
        native.val_delete(memory)


@given(st.lists(U32, max_size=40))
def test_u32_lists_survive(values):
    assert lifted("list<u32>", codecs.encode_u32s(values)).tolist() == values
    assert lifted("list<u32>", codecs.encode_u32s(np.array(values, np.uint32))).tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
def test_f32_lists_survive(values):
    assert lifted("list<f32>", codecs.encode_f32s(values)).tolist() == values


@given(st.text(max_size=50))
def test_strings_survive(text):
    encoded = text.encode("utf-8", "replace").decode()
    assert lifted("string", codecs.encode_string(text)) == encoded


@given(st.binary(max_size=100))
def test_bytes_survive(data):
    assert lifted("list<u8>", codecs.encode_u8s(data)) == data


def test_lifted_arrays_are_copies_that_the_callee_owns():
    array = lifted("list<u32>", codecs.encode_u32s([1, 2, 3, 4, 5]))
    assert array.flags.owndata
    assert array.flags.writeable
    assert array.flags.c_contiguous


def test_arguments_are_read_by_position():
    images = struct.pack("<B7xi20x", native.S32, -5) + codecs.encode_string("é") + codecs.encode_bool(True)
    memory = ctypes.create_string_buffer(images + codecs.encode_u64(2**64 - 1))
    lift = codecs.lifter(["s32", "string", "bool", "u64"])
    assert list(lift(ctypes.addressof(memory), CAP)) == [-5, "é", True, 2**64 - 1]


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("string", lambda: codecs.encode_string("x" * 101)),
        ("list<u32>", lambda: codecs.encode_u32s([0] * 26)),
        ("list<u8>", lambda: codecs.encode_u8s(b"x" * 101)),
    ],
)
def test_what_is_over_the_cap_is_refused(kind, image):
    with pytest.raises(QuotaExceeded, match="message_bytes is 100"):
        lifted(kind, image(), cap=100)


def test_an_error_has_its_wit_code_and_others_are_internal():
    def code(error):
        _, record = codecs.lift_result(codecs.error_result(error))
        _, entries = struct.unpack_from("<QQ", record, 8)
        size, data = struct.unpack_from("<QQ", ctypes.string_at(entries, 48), 24)
        return ctypes.string_at(data, size).decode()

    assert code(BadHandle("x")) == "bad-handle"
    assert code(ModelError("x")) == "internal"
    assert "bad-handle" in WIT_CODES
    assert "model" not in WIT_CODES


def test_encoding_gives_all_memory_back():
    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def churn(rounds):
        for _ in range(rounds):
            image = codecs.ok_image(codecs.ENCODERS["tuple<list<u32>, list<f32>>"]((range(500), [0.5] * 500)))
            native.val_delete(ctypes.create_string_buffer(image))
            native.val_delete(ctypes.create_string_buffer(codecs.error_result(BadHandle("x" * 1000))))

    churn(50)
    before = rss()
    churn(1000)  # 36 MB if it leaked
    assert rss() - before < 8 << 20


def test_the_table_has_the_types_of_the_imports_of_a_real_component():
    engine = new_engine()
    component = wc.Component.from_file(engine, GUESTS_C / "misbehave.wasm")
    num_found = 0
    for name, extern in component.type.imports(engine).items():
        items = extern.ty.exports(engine).items()
        table = HANDLERS.get(name.removeprefix("pieray:inferlet/").removesuffix("@0.2.0"), {})
        found = {item: describe_func(e.ty) for item, e in items if isinstance(e.ty, wc.FuncType)}
        assert found == {item: str(table[item]) for item in found}
        num_found += len(found)
    assert num_found >= 40


def test_signatures_print_as_wit():
    assert str(Signature(("u32",), None, is_fallible=False)) == "func(u32)"
    assert str(Signature((), "u64", is_fallible=False)) == "func() -> u64"
    assert str(HANDLERS["kv"]["free"]).startswith("func(list<u32>) -> result<_, record{code: enum{invalid, bad-handle,")
