"""WASI's subset, used by components written by hand; `tests/unit/hostile` has CPython use it."""

from __future__ import annotations

import pytest
import wasmtime
from interfaces import ByInterface
from wasm_fakes import FakeHandlers, Watched

from pieray.errors import GuestTrapped, QuotaExceeded
from pieray.wasm import wasi
from pieray.wasm.wasi import random_bytes

EXPORT = """
  (type $f' (record (field "kind" string) (field "message" string) (field "trace" string)))
  (export $f "failure" (type $f'))
  (func (export "run") (param "input" string) (result (result string (error $f)))
    (canon lift (core func $i "run") (memory (core memory $lib "m")) (realloc (core func $i "realloc"))))
"""
LIBRARY = """
  (core module $lib' (memory (export "m") 1))
  (core instance $lib (instantiate $lib'))
"""


def component(imports: str, lowered: str, core_imports: str, run: str) -> bytes:
    """A component whose `run` is the core code `run`, and gives "" if that comes to its end."""
    return bytes(
        wasmtime.wat2wasm(f"""(component {LIBRARY} {imports}
      (core module $m {core_imports}
        (func (export "run") (param i32 i32) (result i32) {run} (i32.const 0))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 64)))
      (core instance $i (instantiate $m (with "w" (instance {lowered})))) {EXPORT})""")
    )


POLLABLES = """
  (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
  (alias export $poll "pollable" (type $p))
  (import "wasi:clocks/monotonic-clock@0.2.6" (instance $clock
    (export "subscribe-duration" (func (param "when" u64) (result (own $p))))))
  (core func $subscribe (canon lower (func $clock "subscribe-duration")))
  (core func $drop (canon resource.drop $p))
"""
LOWERED = '(export "subscribe" (func $subscribe)) (export "drop" (func $drop))'
CORE = '(import "w" "subscribe" (func $s (param i64) (result i32))) (import "w" "drop" (func $d (param i32)))'


def test_a_guest_cannot_hoard_resources(host):
    program = host.load(component(POLLABLES, LOWERED, CORE, "(loop (drop (call $s (i64.const 1))) (br 0))"), "hoarder")
    error = Watched(host, program, "").error
    assert isinstance(error, QuotaExceeded)
    assert error.message == f"a guest holds at most {wasi.MAX_RESOURCES} WASI resources"


def test_dropped_resources_do_not_count(host):
    loop = """(local $n i32) (local.set $n (i32.const 10000))
      (loop (call $d (call $s (i64.const 1))) (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"""
    program = host.load(component(POLLABLES, LOWERED, CORE, loop), "tidy")
    watched = Watched(host, program, "")
    assert watched.value == ""
    assert watched.guest.wasi.num_live == 0
    assert watched.guest.wasi.pollables == {}


def test_what_is_not_there_traps(host):
    imports = """(import "wasi:clocks/timezone@0.2.0" (instance $z (export "secret" (func))))
      (core func $f (canon lower (func $z "secret")))"""
    core = '(import "w" "f" (func $f))'
    program = host.load(component(imports, '(export "f" (func $f))', core, "(call $f)"), "curious")
    error = Watched(host, program, "").error
    assert isinstance(error, GuestTrapped)
    assert "secret" in error.message


@pytest.mark.parametrize(("count", "num_words"), [(1, 1), (8, 1), (9, 2), (32, 4), (2500, 4)])
def test_random_bytes_take_few_random_numbers(count, num_words):
    class Counting(FakeHandlers):
        num_asked = 0

        def runtime_random_u64(self):
            self.num_asked += 1
            return self.num_asked

    counting = Counting()

    class Stub:
        handlers = ByInterface(counting)

    assert len(random_bytes(Stub(), count)) == count
    assert counting.num_asked == num_words
