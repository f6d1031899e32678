"""Long texts are tokenized, rendered and parsed in child processes: the libraries hold the interpreter's lock for it,
a third of a second for 256 KiB, and all guests of an actor would wait."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from pieray.concurrency.child_process import Child, ChildDied
from pieray.concurrency.fair_pool import FairPool
from pieray.errors import QuotaExceeded, error_from
from pieray.host.models import ServedModel
from pieray.wasm.parks import Answer

NUM_WORKERS = 2
"""Child processes; of one tenant at one time, one less."""
WAIT_S = 60.0
"""For one to come free."""
WORK_S = 30.0
"""For one text."""


class TextWorkers:
    """A fair pool of children, each with the tokenizers of all models; they start with the first long text.
    Thread-safe."""

    def __init__(self) -> None:
        self._pool = FairPool("working on long texts", NUM_WORKERS)
        self._idle: list[Child] = []
        self._all: list[Child] = []
        self._lock = threading.Lock()

    def submit(
        self,
        models: Iterable[ServedModel],
        operation: str,
        model: ServedModel,
        *arguments: object,
        tenant: str,
        owner: str,
        read: Callable[[Any], Any] = lambda value: value,
    ) -> Future[Answer]:
        """One of `text_child.OPERATIONS`, in turn.  The future has `read` of its value and the CPU time that it took;
        or the operation's error, QuotaExceeded if it takes more than WORK_S or the memory there is, DeadlineExceeded.

        Raises QuotaExceeded if too much of the tenant's waits already.
        """
        request = [operation, model.info.name, *arguments]

        def work() -> Answer:
            value, code, text, cpu_time_s = self._ask(models, request, operation)
            error = error_from(code, text) if code else None
            return Answer(None if error else read(value), cpu_time_s, error)

        return self._pool.submit(work, tenant=tenant, owner=owner, wait_s=WAIT_S)

    def _ask(self, models: Iterable[ServedModel], request: list[object], operation: str) -> Any:
        with self._lock:
            if not self._idle:
                opening = {one.info.name: dataclasses.asdict(one.tokenizer.spec) for one in models}
                self._idle.append(Child("pieray.host.text.text_child", opening))
                self._all.append(self._idle[-1])
            child = self._idle.pop()
        try:
            return child.ask(request, WORK_S)
        except TimeoutError:
            raise QuotaExceeded(f"{operation}: one text may take {WORK_S:g} s; this one takes more") from None
        except ChildDied as died:
            raise QuotaExceeded(
                f"{operation}: this text takes more memory than there is (status {died.status})"
            ) from None
        finally:
            with self._lock:
                self._idle.append(child)

    def close(self) -> None:
        """Fail what waits, end the children; idempotent."""
        self._pool.close()
        with self._lock:
            children = list(self._all)
        for child in children:
            child.close()
