"""The programs of one actor: the Python runtime, and components that clients bring, compiled off the launch path."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future

from pieray.concurrency.fair_pool import FairPool
from pieray.wasm import python_runtime
from pieray.wasm.compiler import check_magic, is_compiled
from pieray.wasm.host import Program, WasmHost

NUM_COMPILERS = 2
"""Compilations of one actor at one time; of one tenant, one less."""
MAX_WAITING = 64
"""Components of one tenant that wait to be compiled."""
MAX_WAIT_S = 600.0
"""For a compiler to come free, if the inferlet's `wall_time_s` is no shorter."""
NICE = 5
"""Of compilers: behind the processes that compute tokens."""
KEEP_LOADED = 16


class Components:
    """Loads programs into a wasm host.  Thread-safe.

    Compiling takes seconds of CPU time, or the two minutes of `CompileLimits`: it happens in child processes
    (`pieray/wasm/compiler.py`), and tenants take turns at these.  One component is compiled once, however often it is
    launched: the second launch finds it loaded, or in the cache of files, or waits for the process that compiles it.
    """

    def __init__(self, wasm: WasmHost) -> None:
        self._wasm = wasm
        self._pool = FairPool("compiling components", NUM_COMPILERS, max_waiting=MAX_WAITING)
        self._loaded: OrderedDict[bytes, Program] = OrderedDict()
        self._python: Program | None = None
        self._lock = threading.Lock()
        self._python_lock = threading.Lock()

    def python(self) -> Program:
        """The Python runtime; loaded by the first call, which may take half a minute where no cache has it."""
        with self._python_lock:
            if self._python is None:
                self._python = self._wasm.load(python_runtime.component_path(), "python-runtime")
            return self._python

    def find(self, component: bytes, name: str) -> Program | None:
        """The program, if nobody has to compile it first.

        Raises InvalidRequest for what is no component, or asks for what the engine does not have.
        """
        check_magic(component, name)
        key = hashlib.sha256(component).digest()
        with self._lock:
            if key in self._loaded:
                self._loaded.move_to_end(key)
                return self._loaded[key]
        return self._load(component, name) if is_compiled(component) else None

    def compile(self, component: bytes, name: str, *, tenant: str, owner: str, wait_s: float) -> Future[Program]:
        """Compile and load it on a thread of the pool, when it is the tenant's turn.

        The future fails with what `WasmHost.load` raises, or DeadlineExceeded.  Raises QuotaExceeded if MAX_WAITING
        components of the tenant wait already.
        """

        def load() -> Program:
            return self.find(component, name) or self._load(component, name)

        return self._pool.submit(load, tenant=tenant, owner=owner, wait_s=min(wait_s, MAX_WAIT_S))

    def _load(self, component: bytes, name: str) -> Program:
        program = self._wasm.load(component, name, nice=NICE)
        with self._lock:
            self._loaded[hashlib.sha256(component).digest()] = program
            while len(self._loaded) > KEEP_LOADED:
                self._loaded.popitem(last=False)
        return program

    def close(self) -> None:
        """Fail what waits; idempotent."""
        self._pool.close()
