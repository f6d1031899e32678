"""Child processes that answer one request at a time: for work that may take too long, take too much, or crash.

The parent has a `Child`; the child's module calls `serve`.  Requests and answers are msgpack values behind four bytes
of length, over the child's standard input and output.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from pieray.errors import Cancelled, EngineError, PierayError

START_S = 60.0
"""For a child to be ready: a large tokenizer takes it some seconds."""
_length = struct.Struct("<I")


class ChildDied(Exception):
    """The child ended instead of answering; `status` is its exit status, below 0 the signal that ended it."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Child:
    """A process that runs `python -m MODULE`.  Started when first needed, again after it died.  Thread-safe."""

    def __init__(self, module: str, opening: object, environment: Mapping[str, str] | None = None) -> None:
        """`opening` is the child's first request; it answers with "", or with what is wrong."""
        self._module = module
        self._opening = opening
        self._environment = {"MALLOC_ARENA_MAX": "2", "RAYON_NUM_THREADS": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: object, time_s: float) -> Any:
        """The child's answer.  Raises TimeoutError after `time_s`, and ChildDied; either way the next request finds
        a new process.  EngineError: no child is to be had; Cancelled: this is closed."""
        with self._lock:
            return self._ask(self._started(), request, time_s)

    @property
    def is_running(self) -> bool:
        """Whether a request would find a process."""
        process = self._process
        return process is not None and process.poll() is None

    def start(self) -> None:
        """Start the process ahead of the first request, or after it died.  Raises as `ask` without one."""
        with self._lock:
            self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise Cancelled(f"{self._module} is closed")
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._environment},
            bufsize=0,
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        try:
            complaint = self._ask(self._process, self._opening, START_S)
        except (ChildDied, TimeoutError) as error:
            complaint = f"{self._module} did not start: {error or f'nothing said within {START_S:g} s'}"
        if complaint:
            raise EngineError(complaint)
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], request: object, time_s: float) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + time_s
        try:
            _write(process.stdin.fileno(), _framed(request), deadline)
            (size,) = _length.unpack(_read(process.stdout.fileno(), _length.size, deadline))
            return msgpack.unpackb(_read(process.stdout.fileno(), size, deadline), strict_map_key=False)
        except (EOFError, BrokenPipeError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            self._end()
            if self._is_closed:
                raise Cancelled(f"{self._module} is closed") from None
            raise ChildDied(process.returncode) from None
        except BaseException:  # a late answer must not be taken for the next one
            self._end()
            raise

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def close(self) -> None:
        """End the process; a request under way fails.  Idempotent."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._end()


def serve(open_with: Callable[[Any], Callable[[Any], Any]], *, stack_bytes: int = 0, memory_bytes: int = 0) -> None:
    """In the child: answer requests until the parent is gone, then exit.  Never returns.

    Args:
        open_with: takes the opening, returns what answers requests; a PierayError or ValueError says what is wrong.
        stack_bytes: of the thread that answers; 0: as usual.
        memory_bytes: address space beyond what the process has once it is open; 0: no limit.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers goes there
    threading.stack_size(stack_bytes)
    thread = threading.Thread(
        target=_answer_all, args=(open_with, sys.stdin.buffer, answers, memory_bytes), daemon=True
    )
    thread.start()
    parent = os.getppid()
    while thread.is_alive() and os.getppid() == parent:  # an orphan must not go on with what takes for ever
        thread.join(1.0)
    os._exit(0)


def _answer_all(
    open_with: Callable[[Any], Callable[[Any], Any]], requests: BinaryIO, answers: BinaryIO, memory_bytes: int
) -> None:
    try:
        answer = open_with(_next_request(requests))
    except (PierayError, ValueError) as error:
        _send(answers, str(error) or repr(error))
        return
    _send(answers, "")
    if memory_bytes:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
    with contextlib.suppress(EOFError):
        while True:
            _send(answers, answer(_next_request(requests)))


def _next_request(requests: BinaryIO) -> Any:
    """Raises EOFError at the end."""
    head = requests.read(_length.size)
    if len(head) < _length.size:
        raise EOFError
    return msgpack.unpackb(requests.read(_length.unpack(head)[0]), strict_map_key=False)


def _send(answers: BinaryIO, value: object) -> None:
    answers.write(_framed(value))
    answers.flush()


def _framed(value: object) -> bytes:
    body: bytes = msgpack.packb(value)
    return _length.pack(len(body)) + body


def _write(fd: int, data: bytes, deadline: float) -> None:
    """Raises TimeoutError: the child reads no more; BrokenPipeError."""
    view = memoryview(data)
    while view:
        if not select.select([], [fd], [], max(0.0, deadline - time.monotonic()))[1]:
            raise TimeoutError
        with contextlib.suppress(BlockingIOError):
            view = view[os.write(fd, view) :]


def _read(fd: int, size: int, deadline: float) -> bytes:
    """`size` bytes.  Raises TimeoutError after the deadline, EOFError."""
    data = bytearray()
    while len(data) < size:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(fd, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
