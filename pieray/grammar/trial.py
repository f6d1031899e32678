"""Trying a grammar where it can do no harm.

llguidance bounds what a matcher does per step, but not all of compiling: some texts take minutes (pattern
intersections), some overflow the stack (long chains of references), and neither can be interrupted.  So each
grammar is first compiled in a child process with a deadline, a memory limit and a small stack.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from typing import Any, BinaryIO

from pieray.errors import InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.models.tokenizer import TokenizerSpec

START_S = 60.0
"""For the child to be ready: a large tokenizer takes it some seconds."""


def frame(value: Any) -> bytes:
    """What travels both ways: 4 bytes of length, then JSON."""
    body = json.dumps(value).encode()
    return struct.pack("<I", len(body)) + body


def read_frame(file: BinaryIO) -> Any:
    """The next value, None at the end."""
    head = file.read(4)
    return json.loads(file.read(struct.unpack("<I", head)[0])) if len(head) == 4 else None


class Trial:
    """A child process that tries grammars of one tokenizer, one at a time.  Started when first needed, again after it
    died.  Thread-safe."""

    def __init__(self, spec: TokenizerSpec, vocab_size: int) -> None:
        self._opening = {"tokenizer": spec.json.decode(), "vocab_size": vocab_size, "eos_ids": list(spec.eos_ids)}
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def check(self, kind: str, text: str, time_s: float) -> None:
        """Return if the grammar compiles.  Raises InvalidRequest with what is wrong and where, QuotaExceeded if it
        takes more than `time_s` seconds, the memory or the stack that there is."""
        with self._lock:
            child = self._started()
            found = self._ask(child, {"kind": kind, "text": text}, time_s)
        if isinstance(found, str):
            if found:
                raise InvalidRequest(f"{kind} grammar{' ' if found.startswith('at ') else ': '}{found}")
            return
        if found is None:
            raise QuotaExceeded(f"grammar_time_s: compiling this {kind} grammar took more than {time_s:g} s")
        raise QuotaExceeded(f"compiling this {kind} grammar takes more stack or memory than there is (status {found})")

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise PierayError("the grammar compiler is closed")
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        environment = {**os.environ, "RAYON_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pieray.grammar.child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0,
        )  # fmt: skip
        found = self._ask(self._child, self._opening, START_S)
        if found != "":
            raise Unsupported(f"grammars cannot be compiled for this model: {found or 'no process to try them in'}")
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], value: Any, time_s: float) -> str | int | None:
        """The answer; the exit status of a child that died of it; None, and no child, after the deadline."""
        assert child.stdin is not None
        assert child.stdout is not None
        end = time.monotonic() + time_s
        try:
            child.stdin.write(frame(value))
            head = _read(child.stdout.fileno(), 4, end)
            answer: str = json.loads(_read(child.stdout.fileno(), struct.unpack("<I", head)[0], end))
        except (EOFError, BrokenPipeError):
            child.wait(5)
            status = child.returncode
            self._end()
            return status
        except TimeoutError:
            self._end()
            return None
        return answer

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait(5)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def close(self) -> None:
        """End the child; idempotent.  A check in progress fails."""
        self._is_closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end()


class TrialPool:
    """Up to `size` trials at a time.  Thread-safe."""

    def __init__(self, spec: TokenizerSpec, vocab_size: int, size: int) -> None:
        self._idle = [Trial(spec, vocab_size) for _ in range(size)]
        self._all = list(self._idle)
        self._is_free = threading.Condition()

    def check(self, kind: str, text: str, time_s: float) -> None:
        """As `Trial.check`, in the trial that was used last of those that are free: it has a process already."""
        with self._is_free:
            while not self._idle:
                self._is_free.wait()
            trial = self._idle.pop()
        try:
            trial.check(kind, text, time_s)
        finally:
            with self._is_free:
                self._idle.append(trial)
                self._is_free.notify()

    def close(self) -> None:
        for trial in self._all:
            trial.close()


def _read(fd: int, size: int, end: float) -> bytes:
    """`size` bytes.  Raises TimeoutError after `end`, EOFError."""
    data = b""
    while len(data) < size:
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(fd, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
