"""Trying a grammar where it can do no harm.

llguidance bounds what a matcher does per step, but not all of compiling: some texts take minutes (pattern
intersections), some overflow the stack (long chains of references), and neither can be interrupted.  So each
grammar is first compiled in a child process with a deadline, a memory limit and a small stack.
"""

from __future__ import annotations

import contextlib
import threading

from pieray.concurrency.child_process import Child, ChildDied
from pieray.errors import EngineError, InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.models.tokenizer import TokenizerSpec


class Trial:
    """A child process that tries grammars of one tokenizer, one at a time.  Thread-safe."""

    def __init__(self, spec: TokenizerSpec, vocab_size: int) -> None:
        opening = {"tokenizer": spec.json.decode(), "vocab_size": vocab_size, "eos_ids": list(spec.eos_ids)}
        self._child = Child("pieray.grammar.child", opening)

    def check(self, kind: str, text: str, time_s: float) -> None:
        """Return if the grammar compiles.  Raises InvalidRequest with what is wrong and where, QuotaExceeded if it
        takes more than `time_s` seconds, the memory or the stack that there is, Unsupported for this model's
        tokenizer."""
        try:
            found: str = self._child.ask({"kind": kind, "text": text}, time_s)
        except TimeoutError:
            raise QuotaExceeded(f"grammar_time_s: compiling this {kind} grammar took more than {time_s:g} s") from None
        except ChildDied as died:
            raise QuotaExceeded(
                f"compiling this {kind} grammar takes more stack or memory than there is (status {died.status})"
            ) from None
        except EngineError as error:
            raise Unsupported(f"grammars cannot be compiled for this model: {error.message}") from None
        if found:
            raise InvalidRequest(f"{kind} grammar{' ' if found.startswith('at ') else ': '}{found}")

    @property
    def is_ready(self) -> bool:
        """Whether a check would find a process."""
        return self._child.is_running

    def start(self) -> None:
        """Have a process ready, so that the next check need not wait for it.  What is wrong, that check says."""
        with contextlib.suppress(PierayError):
            self._child.start()

    def close(self) -> None:
        """End the child; idempotent.  A check in progress fails."""
        self._child.close()


class TrialPool:
    """Up to `size` trials at a time.  Thread-safe.

    Nobody waits for the start of a process but the first of all: the others start beside it, and one that a grammar has
    killed is replaced before that check ends.
    """

    def __init__(self, spec: TokenizerSpec, vocab_size: int, size: int) -> None:
        self._idle = [Trial(spec, vocab_size) for _ in range(size)]
        self._all = list(self._idle)
        self._is_free = threading.Condition()
        self._is_used = False

    def check(self, kind: str, text: str, time_s: float) -> None:
        """As `Trial.check`, in the trial that was used last of those that are free."""
        with self._is_free:
            while not self._idle:
                self._is_free.wait()
            trial = self._idle.pop()
            is_first, self._is_used = not self._is_used, True
        if is_first:
            threading.Thread(target=self._start_all, name="pieray-trials", daemon=True).start()
        try:
            trial.check(kind, text, time_s)
        finally:
            trial.start()
            with self._is_free:
                self._idle.append(trial)
                self._is_free.notify()

    def _start_all(self) -> None:
        for trial in self._all:
            trial.start()

    def close(self) -> None:
        for trial in self._all:
            trial.close()
