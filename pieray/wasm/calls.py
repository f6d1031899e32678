"""Calls of a program's exports, the same for both executors: the store, the arguments, the outcome."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import wasmtime

from pieray.config import Limits
from pieray.errors import PierayError, QuotaExceeded
from pieray.wasm import codecs, native, pooling
from pieray.wasm.guest import Guest
from pieray.wasm.traps import failure_error, trap_error

if TYPE_CHECKING:
    from pieray.wasm.program import Program
    from pieray.wasm.wasi import WasiState


class WasmFailed(Exception):
    """wasmtime's error text for an instantiation or a call that did not return."""


class Instance:
    """A store with one instance of a program, for one guest.  Close it after its futures."""

    def __init__(self, program: Program, memory_bytes: int) -> None:
        """`memory_bytes`: of all its memories together, see `limit`."""
        self.program = program
        self.wasi: WasiState | None = None
        self._is_open = True
        if program.slots is not None:
            program.slots.taken()
        self._store = wasmtime.Store(program.engine)
        self.limit(memory_bytes)
        self._store.set_epoch_deadline(1)
        self.context = self._store._context()
        self.store_address = self._store.ptr()
        self.address = ctypes.create_string_buffer(ctypes.sizeof(wasmtime._ffi.wasmtime_component_instance_t))
        """Where wasmtime puts the instance."""

    def limit(self, memory_bytes: int) -> None:
        """Bound what its memories may grow to from now on."""
        number = max(self.program.memories.number, 1)
        self._store.set_limits(
            memory_size=memory_bytes // number,  # it bounds each memory
            memories=number,
            tables=pooling.TABLES_PER_GUEST,
            table_elements=pooling.TABLE_ELEMENTS,
            instances=pooling.INSTANCES_PER_GUEST,
        )

    def close(self) -> None:
        """Idempotent."""
        if self._is_open and self.program.slots is not None:
            self.program.slots.given_back()
        self._is_open = False
        self._store.close()


class Call:
    """The memory of one call of an export.  It must live until the call is over; `close` frees it."""

    def __init__(self, instance: Instance, export: str, inputs: tuple[str | int, ...] = ()) -> None:
        """Look the export up; its type was checked when the program was loaded.  An int is a u64."""
        self.num_args = len(inputs)
        self.num_results = 1 if inputs else 0
        self.args = ctypes.create_string_buffer(b"".join(map(_encoded, inputs)))
        self.result = ctypes.create_string_buffer(native.VAL_SIZE)
        self.function = ctypes.create_string_buffer(ctypes.sizeof(wasmtime._ffi.wasmtime_component_func_t))
        index = instance.program.exports[export]
        found = native.instance_get_func(instance.address, instance.context, index.ptr(), self.function)
        assert found, "a checked export is missing"

    def take_result(self, limits: Limits, cap: int) -> str:
        """The string returned; PierayError for a failure returned, or a string of more than `cap` bytes."""
        is_ok, payload = codecs.lift_result(self.result.raw)
        if not is_ok:
            raise failure_error(*codecs.lift_failure(payload), limits)
        size = int.from_bytes(payload[8:16], "little")
        if size > cap:
            raise QuotaExceeded(f"output_bytes is {cap}; the result has {size} bytes")
        return codecs.lift_string(size, int.from_bytes(payload[16:24], "little"), size)

    def close(self) -> None:
        for i in range(self.num_args):
            native.val_delete(ctypes.byref(self.args, i * native.VAL_SIZE))
        native.val_delete(self.result)
        self.num_args = 0


def _encoded(value: str | int) -> bytes:
    return codecs.encode_u64(value) if isinstance(value, int) else codecs.encode_string(value)


def error_of(guest: Guest, failed: BaseException) -> PierayError:
    """What ended the guest, as the error to report."""
    if isinstance(failed, PierayError):
        return failed
    if isinstance(failed, WasmFailed):
        return trap_error(str(failed), guest.task.limits, guest.stderr_tail)
    return PierayError(f"the wasm host failed: {failed!r}")
