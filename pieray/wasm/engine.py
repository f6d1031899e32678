"""The settings of wasmtime, for the process that compiles and the one that runs."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from typing import Any

import wasmtime

from pieray.wasm import native, pooling

#: `wasmtime.Config` attributes.  Off is what no toolchain of ours needs: less to compile, less to trust.
#: NaNs are canonical and there is no relaxed SIMD, so that a replay computes the same bits.
SETTINGS: dict[str, bool | int] = {
    "epoch_interruption": True,
    "cranelift_nan_canonicalization": True,
    "wasm_relaxed_simd": False,
    "wasm_threads": False,
    "wasm_memory64": False,
    "wasm_gc": False,
    "wasm_stack_switching": False,
    "wasm_component_model": True,
    "max_wasm_stack": native.WASM_STACK_BYTES,
}


def new_engine(num_guests: int = 0) -> wasmtime.Engine:
    """An engine with SETTINGS.  Code compiled by one process of a version and platform runs in all.

    `num_guests`: at one time, each in a slot that is reserved for it, see `pooling.can_pool`; 0: in memory of its own.
    """
    enable_faulthandler()
    config = wasmtime.Config()
    for name, value in SETTINGS.items():
        setattr(config, name, value)
    if not native.missing_async_symbols():
        native.async_stack_size_set(config.ptr(), native.STACK_BYTES)
    if num_guests:
        pooling.use_pool(config.ptr(), num_guests)
    engine = wasmtime.Engine(config)
    hold_trap_signals()
    return engine


TRAP_SIGNALS = (signal.SIGILL, signal.SIGSEGV, signal.SIGFPE, signal.SIGBUS)
SIGACTION_BYTES = 256
"""More than a struct sigaction has on any platform."""
_trap_actions: dict[signal.Signals, Any] = {}


def hold_trap_signals() -> None:
    """wasmtime takes the signals of traps once in a process, with its first engine.  Who takes them later has them for
    good (Ray does in `init`, and sets them to their defaults in `shutdown`), so that the next trap of a guest would end
    the process: each engine puts back what the first has set."""
    library = ctypes.CDLL(None)
    for number in TRAP_SIGNALS:
        if number in _trap_actions:
            library.sigaction(int(number), _trap_actions[number], None)
        else:
            action = ctypes.create_string_buffer(SIGACTION_BYTES)
            library.sigaction(int(number), None, action)
            _trap_actions[number] = action


def enable_faulthandler() -> None:
    """wasmtime's traps are signals.  Were faulthandler enabled after the engine, it would take the signals
    and the next trap of a guest would end the process; enabled before, it stays behind wasmtime."""
    if faulthandler.is_enabled():
        return
    try:
        faulthandler.enable(sys.stderr)
    except (AttributeError, OSError, ValueError):  # no stderr, or one without a file
        faulthandler.enable(os.open(os.devnull, os.O_WRONLY))
