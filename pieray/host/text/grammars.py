"""Compiling grammars for the inferlets of one actor, off the thread that runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from pieray.concurrency.fair_pool import FairPool
from pieray.errors import PierayError
from pieray.host.models import ServedModel

if TYPE_CHECKING:
    from pieray.grammar import Grammar, GrammarCompiler

NUM_THREADS = 2
"""Grammars that are compiled at one time; of one tenant, one less."""
MAX_WAITING = 4096
"""Grammars of one tenant that wait to be compiled."""
WAIT_S = 120.0
"""For a thread to come free."""
Done = Callable[["Grammar | PierayError"], None]


class GrammarService:
    """A few threads and a compiler for each model; the cache is shared by the tenant's inferlets on this actor.

    Tenants take turns, and none has all threads: one that compiles bombs delays no other.
    """

    def __init__(self) -> None:
        self._compilers: dict[str, GrammarCompiler] = {}
        self._pool = FairPool("compiling grammars", NUM_THREADS, max_waiting=MAX_WAITING)
        self._lock = threading.Lock()

    def compile(
        self, model: ServedModel, kind: str, text: str, time_s: float, done: Done, *, tenant: str, owner: str
    ) -> Callable[[], bool]:
        """`done` is called once, now or on another thread, with the grammar or why there is none.

        What is returned takes the job back: True if it had not begun, and `done` will not be called.
        """
        compiler = self._compiler(model)
        if (found := compiler.find(kind, text, tenant)) is not None:
            done(found)
            return lambda: False

        def work() -> Grammar:
            return compiler.compile(kind, text, tenant, time_s=time_s)

        try:
            compiling = self._pool.submit(work, tenant=tenant, owner=owner, wait_s=WAIT_S)
        except PierayError as error:  # too many wait, or the engine is shutting down
            done(error)
            return lambda: False
        compiling.add_done_callback(lambda compiled: _tell(compiled, done))
        return compiling.cancel

    def _compiler(self, model: ServedModel) -> GrammarCompiler:
        from pieray.grammar import GrammarCompiler, TrialPool  # most actors never see a grammar

        with self._lock:
            name = model.info.name
            if name not in self._compilers:
                spec, vocab_size = model.tokenizer.spec, model.info.vocab_size
                self._compilers[name] = GrammarCompiler(
                    spec, vocab_size, trial=TrialPool(spec, vocab_size, NUM_THREADS)
                )
            return self._compilers[name]

    def close(self) -> None:
        """Fail what waits, end the processes; idempotent."""
        self._pool.close()
        for compiler in list(self._compilers.values()):
            compiler.close()


def _tell(compiled: Future[Grammar], done: Done) -> None:
    if compiled.cancelled():
        return
    error = compiled.exception()
    if error is None:
        done(compiled.result())
    else:
        done(error if isinstance(error, PierayError) else PierayError(f"compiling a grammar failed: {error!r}"))
