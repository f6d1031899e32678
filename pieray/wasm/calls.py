"""One call of a program's export, the same for both executors: the store, the arguments, the outcome."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import wasmtime

from pieray.config import Limits
from pieray.errors import PierayError, QuotaExceeded
from pieray.wasm import codecs, native
from pieray.wasm.guest import Guest
from pieray.wasm.traps import failure_error, trap_error

if TYPE_CHECKING:
    from pieray.wasm.program import Program

#: what componentize-py needs
_MAX_TABLES, _MAX_TABLE_ELEMENTS, _MAX_INSTANCES = 50, 30_000, 100


class WasmFailed(Exception):
    """wasmtime's error text for an instantiation or a call that did not return."""


def new_store(program: Program, limits: Limits) -> Any:
    """A store for one guest of `program`.  Close it after its futures."""
    store = wasmtime.Store(program.engine)
    store.set_limits(
        memory_size=limits.memory_bytes // program.num_memories,  # it bounds each memory
        memories=program.num_memories,
        tables=_MAX_TABLES,
        table_elements=_MAX_TABLE_ELEMENTS,
        instances=_MAX_INSTANCES,
    )
    store.set_epoch_deadline(1)
    return store


class Call:
    """The memory of one call.  It must live until the call is over; `close` frees it."""

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self.num_args = len(inputs)
        self.args = ctypes.create_string_buffer(b"".join(codecs.encode_string(s) for s in inputs))
        self.result = ctypes.create_string_buffer(native.VAL_SIZE)
        self.function = ctypes.create_string_buffer(ctypes.sizeof(wasmtime._ffi.wasmtime_component_func_t))
        self.instance = ctypes.create_string_buffer(ctypes.sizeof(wasmtime._ffi.wasmtime_component_instance_t))

    def find_export(self, store: Any, index: Any) -> None:
        """Look the function up in the new instance; the component's type was checked when it was loaded."""
        found = native.instance_get_func(self.instance, store._context(), index.ptr(), self.function)
        assert found, "a checked export is missing"

    def take_result(self, limits: Limits) -> str:
        """The string returned; PierayError for a failure returned, or a string beyond `output_bytes`."""
        is_ok, payload = codecs.lift_result(self.result.raw)
        if not is_ok:
            raise failure_error(*codecs.lift_failure(payload), limits)
        size = int.from_bytes(payload[8:16], "little")
        if size > limits.output_bytes:
            raise QuotaExceeded(f"output_bytes is {limits.output_bytes}; the result has {size} bytes")
        return codecs.lift_string(size, int.from_bytes(payload[16:24], "little"), size)

    def close(self) -> None:
        for i in range(self.num_args):
            native.val_delete(ctypes.byref(self.args, i * native.VAL_SIZE))
        native.val_delete(self.result)
        self.num_args = 0


def error_of(guest: Guest, failed: BaseException) -> PierayError:
    """What ended the guest, as the error to report."""
    if isinstance(failed, PierayError):
        return failed
    if isinstance(failed, WasmFailed):
        return trap_error(str(failed), guest.task.limits, guest.stderr_tail)
    return PierayError(f"the wasm host failed: {failed!r}")
