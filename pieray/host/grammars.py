"""Compiling grammars for the inferlets of one actor, off the thread that runs them."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pieray.errors import Cancelled, PierayError
from pieray.host.models import ServedModel

if TYPE_CHECKING:
    from pieray.grammar import Grammar, GrammarCompiler

NUM_THREADS = 2
Done = Callable[["Grammar | PierayError"], None]


@dataclass(slots=True, eq=False)
class _Job:
    compiler: GrammarCompiler
    kind: str
    text: str
    tenant: str
    time_s: float
    done: Done


class GrammarService:
    """A few threads and a compiler for each model; the cache is shared by the tenant's inferlets on this actor.

    Tenants take turns, so that one which compiles bombs delays another by one deadline at most.
    """

    def __init__(self) -> None:
        self._compilers: dict[str, GrammarCompiler] = {}
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._num_idle = 0
        self._is_closed = False

    def compile(
        self, model: ServedModel, kind: str, text: str, tenant: str, time_s: float, done: Done
    ) -> Callable[[], bool]:
        """`done` is called once, now or on another thread, with the grammar or why there is none.

        What is returned takes the job back: True if it had not begun, and `done` will not be called.
        """
        compiler = self._compiler(model)
        if (found := compiler.find(kind, text, tenant)) is not None:
            done(found)
            return lambda: False
        job = _Job(compiler, kind, text, tenant, time_s, done)
        with self._changed:
            if not self._is_closed:
                self._waiting.setdefault(tenant, deque()).append(job)
                self._start_thread()
                self._changed.notify()
                return lambda: self._take_back(job)
        done(Cancelled("the engine is shutting down"))
        return lambda: False

    def _compiler(self, model: ServedModel) -> GrammarCompiler:
        from pieray.grammar import GrammarCompiler, TrialPool  # most actors never see a grammar

        with self._changed:
            name = model.info.name
            if name not in self._compilers:
                spec, vocab_size = model.tokenizer.spec, model.info.vocab_size
                self._compilers[name] = GrammarCompiler(
                    spec, vocab_size, trial=TrialPool(spec, vocab_size, NUM_THREADS)
                )
            return self._compilers[name]

    def _start_thread(self) -> None:
        if self._num_idle == 0 and len(self._threads) < NUM_THREADS:
            thread = threading.Thread(target=self._work, name="pieray-grammars", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _take_back(self, job: _Job) -> bool:
        with self._changed:
            jobs = self._waiting.get(job.tenant, ())
            is_waiting = job in jobs
            if is_waiting:
                self._waiting[job.tenant].remove(job)
            return is_waiting

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                result: Grammar | PierayError = job.compiler.compile(job.kind, job.text, job.tenant, time_s=job.time_s)
            except PierayError as error:
                result = error
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                result = PierayError(f"compiling a grammar failed: {error!r}")
            job.done(result)

    def _next(self) -> _Job | None:
        """The next tenant's next job; None when closed."""
        with self._changed:
            while not self._is_closed:
                while self._waiting:
                    tenant, jobs = self._waiting.popitem(last=False)
                    if not jobs:
                        continue
                    job = jobs.popleft()
                    if jobs:
                        self._waiting[tenant] = jobs  # behind the others
                    return job
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
            return None

    def close(self) -> None:
        """Fail what waits, end the processes; idempotent."""
        with self._changed:
            self._is_closed = True
            jobs = [job for waiting in self._waiting.values() for job in waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for job in jobs:
            job.done(Cancelled("the engine is shutting down"))
        for compiler in list(self._compilers.values()):
            compiler.close()
