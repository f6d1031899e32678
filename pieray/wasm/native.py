"""The calls into libwasmtime that the hot path needs, with addresses as plain integers.

`wasmtime._bindings` declares the same functions with typed pointers; building those objects costs more
than the calls.  A *value image* is the 32 bytes of one `wasmtime_component_val_t`: the kind in byte 0,
the payload in bytes [8, 32).  Images are moved into the library by copying them; whoever receives an
image owns the memory behind it.

This is private API of wasmtime-py: the wheel is pinned, and `missing_async_symbols` is the feature test.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

import wasmtime.component
from wasmtime import _ffi

#: kinds of `wasmtime_component_val_t`
BOOL, U8, S32, U32, U64, F32, STRING, LIST = 0, 2, 5, 6, 8, 9, 12, 13
RECORD, TUPLE, VARIANT, ENUM, OPTION, RESULT, RESOURCE = 14, 15, 16, 17, 18, 19, 21

VAL_SIZE = 32
ENTRY_SIZE = 48  # of a record: a name (size, data), then a value
TESTED_VERSION = "50."

#: of a fiber, and of a guest's thread: WASM_STACK_BYTES for wasm, the rest for host functions, which so have as
#: much as on any thread.  With too little, a deep recursion in guest or handler ends the process.  It is address
#: space; pages come as they are touched.
STACK_BYTES = 8 << 20
WASM_STACK_BYTES = 512 << 10

_ASYNC_SYMBOLS = (
    "wasmtime_component_func_call_async",
    "wasmtime_component_linker_instantiate_async",
    "wasmtime_component_linker_instance_add_func_async",
    "wasmtime_call_future_poll",
    "wasmtime_call_future_delete",
    "wasmtime_context_epoch_deadline_async_yield_and_update",
    "wasmtime_config_async_stack_size_set",
)

_lib = ctypes.CDLL(str(_ffi.filename))  # a handle of its own: argtypes are kept per handle


def _declare(name: str, result: Any, *args: Any) -> Callable[..., Any]:
    function = getattr(_lib, name)
    function.restype, function.argtypes = result, list(args)
    return function  # type: ignore[no-any-return]  # a ctypes function


def pooling_setter(name: str, kind: Any) -> Callable[[int, int], None]:
    """Of a setting of the pool's configuration, which is a number of that C type."""
    return _declare(f"wasmtime_pooling_allocation_config_{name}_set", None, c_void_p, kind)


def wasmtime_version() -> str:
    return importlib.metadata.version("wasmtime")


def missing_async_symbols() -> list[str]:
    """What of the asynchronous C API this build of wasmtime lacks; empty: fibers can be used."""
    missing = [name for name in _ASYNC_SYMBOLS if not hasattr(_lib, name)]
    if not wasmtime_version().startswith(TESTED_VERSION):
        missing.append(f"wasmtime {TESTED_VERSION}x (this is {wasmtime_version()})")
    return missing


val_new = _declare("wasmtime_component_val_new", c_void_p, c_char_p)
val_delete = _declare("wasmtime_component_val_delete", None, c_void_p)
byte_vec_new = _declare("wasm_byte_vec_new", None, c_void_p, c_size_t, c_char_p)
byte_vec_delete = _declare("wasm_byte_vec_delete", None, c_void_p)
list_new = _declare("wasmtime_component_vallist_new", None, c_void_p, c_size_t, c_char_p)
tuple_new = _declare("wasmtime_component_valtuple_new", None, c_void_p, c_size_t, c_char_p)
record_new = _declare("wasmtime_component_valrecord_new", None, c_void_p, c_size_t, c_char_p)
error_new = _declare("wasmtime_error_new", c_void_p, c_char_p)
error_message = _declare("wasmtime_error_message", None, c_void_p, c_void_p)
error_delete = _declare("wasmtime_error_delete", None, c_void_p)
resource_host_new = _declare("wasmtime_component_resource_host_new", c_void_p, c_bool, c_uint32, c_uint32)
resource_host_rep = _declare("wasmtime_component_resource_host_rep", c_uint32, c_void_p)
resource_host_delete = _declare("wasmtime_component_resource_host_delete", None, c_void_p)
resource_any_to_host = _declare("wasmtime_component_resource_any_to_host", c_void_p, c_void_p, c_void_p, c_void_p)
resource_host_to_any = _declare("wasmtime_component_resource_host_to_any", c_void_p, c_void_p, c_void_p, c_void_p)
increment_epoch = _declare("wasmtime_engine_increment_epoch", None, c_void_p)
set_epoch_deadline = _declare("wasmtime_context_set_epoch_deadline", None, c_void_p, c_uint64)
store_epoch_callback = _declare("wasmtime_store_epoch_deadline_callback", None, c_void_p, c_void_p, c_void_p, c_void_p)
linker_instantiate = _declare("wasmtime_component_linker_instantiate", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
func_call = _declare(
    "wasmtime_component_func_call", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t
)
instance_get_func = _declare("wasmtime_component_instance_get_func", c_bool, c_void_p, c_void_p, c_void_p, c_void_p)
_add_resource = _declare(
    "wasmtime_component_linker_instance_add_resource",
    c_void_p,
    c_void_p,
    c_char_p,
    c_size_t,
    c_void_p,
    c_void_p,
    c_void_p,
    c_void_p,
)
_add_func_args = (c_void_p, c_char_p, c_size_t, c_void_p, c_void_p, c_void_p)
_add_func = _declare("wasmtime_component_linker_instance_add_func", c_void_p, *_add_func_args)

pooling_config_new = _declare("wasmtime_pooling_allocation_config_new", c_void_p)
pooling_config_delete = _declare("wasmtime_pooling_allocation_config_delete", None, c_void_p)
pooling_strategy_set = _declare("wasmtime_pooling_allocation_strategy_set", None, c_void_p, c_void_p)

if not missing_async_symbols():
    _add_func_async = _declare("wasmtime_component_linker_instance_add_func_async", c_void_p, *_add_func_args)
    instantiate_async = _declare(
        "wasmtime_component_linker_instantiate_async", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p
    )
    call_async = _declare(
        "wasmtime_component_func_call_async",
        c_void_p,
        c_void_p,
        c_void_p,
        c_void_p,
        c_size_t,
        c_void_p,
        c_size_t,
        c_void_p,
    )
    future_poll = _declare("wasmtime_call_future_poll", c_bool, c_void_p)
    future_delete = _declare("wasmtime_call_future_delete", None, c_void_p)
    async_stack_size_set = _declare("wasmtime_config_async_stack_size_set", None, c_void_p, c_size_t)
    # its declared result is garbage in version 50 (dereferencing it crashed): declare none
    yield_on_epoch = _declare("wasmtime_context_epoch_deadline_async_yield_and_update", None, c_void_p, c_uint64)

#: (env, context, func type, args, nargs, results, nresults) -> error or 0
SyncCallback = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)
#: the same, then (error out, continuation out)
AsyncCallback = CFUNCTYPE(
    None, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p
)
#: (env, context, rep) -> error or 0
ResourceDestructor = CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_uint32)
#: (context, env, deadline delta out, update kind out) -> error or 0
EpochCallback = CFUNCTYPE(c_size_t, c_void_p, c_void_p, POINTER(c_uint64), c_void_p)

#: one value; `from_address(a).raw` reads and writes it in half the time of string_at and memmove
Image = ctypes.c_char * VAL_SIZE
#: room for the (size, data) of a vector that the library fills in
Pair = c_size_t * 2


def take_error(address: int) -> str:
    """The text of an error given out by the library; the error is freed."""
    text = Pair()
    error_message(address, text)
    message = ctypes.string_at(text[1], text[0]).decode(errors="replace")
    byte_vec_delete(text)
    error_delete(address)
    return message


def add_func(linker: wasmtime.component.LinkerInstance, name: str, callback: Any) -> None:
    """Define a host function; `callback` (a SyncCallback or an AsyncCallback) must outlive the linker."""
    encoded = name.encode()
    is_async = isinstance(callback, AsyncCallback)
    add = _add_func_async if is_async else _add_func
    error = add(linker.ptr(), encoded, len(encoded), ctypes.cast(callback, c_void_p), None, None)
    if error:
        raise ValueError(take_error(error))


def add_resource(linker: wasmtime.component.LinkerInstance, name: str, number: int, destructor: Any) -> None:
    """Define a host resource type, the `number`th; `destructor` (a ResourceDestructor) must outlive the linker."""
    kind = wasmtime.component.ResourceType.host(number)
    encoded = name.encode()
    error = _add_resource(
        linker.ptr(), encoded, len(encoded), kind.ptr(), ctypes.cast(destructor, c_void_p), None, None
    )
    if error:
        raise ValueError(take_error(error))
