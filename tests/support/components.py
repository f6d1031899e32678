"""WebAssembly components written by hand: a small one that runs, and those that take long to compile."""

from __future__ import annotations

import wasmtime

MODULE_MAGIC = b"\0asm\x01\0\0\0"

RUN = """
  (core module $m (memory (export "m") 1) (func (export "run") (param i32 i32) (result i32) (i32.const 0))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64)))
  (core instance $i (instantiate $m))
  (type $f' (record (field "kind" string) (field "message" string) (field "trace" string)))
  (export $f "failure" (type $f'))
  (func (export "run") (param "input" string) (result (result string (error $f)))
    (canon lift (core func $i "run") (memory (core memory $i "m")) (realloc (core func $i "realloc"))))
"""


def component(imports: str = "", body: str = RUN) -> bytes:
    """One that returns "", unless another body says otherwise."""
    return bytes(wasmtime.wat2wasm(f"(component {imports} {body})"))


def bomb(num_functions: int, num_statements: int = 40, salt: int = 0) -> bytes:
    """A component with functions of 188 bytes a statement; 40 of them take 20 ms to compile.  `salt` makes it unlike
    any other, for caches."""
    get, add, mul, load, set_ = b"\x20\0", b"\x6a", b"\x6c", b"\x28\x02\0", b"\x21\0"
    statement = get * 60 + get + add * 60 + get + load + mul + set_
    body = _sized(b"\0" + statement * num_statements + get + b"\x0b")
    sections = (
        (0, _sized(b"salt") + str(salt).encode()),
        (1, b"\x01\x60\x01\x7f\x01\x7f"),  # one type: i32 -> i32
        (3, _leb(num_functions) + b"\0" * num_functions),
        (5, b"\x01\0\x01"),  # one memory
        (10, _leb(num_functions) + body * num_functions),
    )
    module = MODULE_MAGIC + b"".join(bytes([number]) + _sized(content) for number, content in sections)
    return component() + b"\x01" + _sized(module)


def _leb(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _sized(content: bytes) -> bytes:
    return _leb(len(content)) + content
