"""Frames on a byte stream: `u32` little-endian length, then the msgpack frame.  An empty frame is a heartbeat."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence

from pieray.errors import InvalidRequest, ProtocolError
from pieray.messages import MAX_FRAME_BYTES, Message, encode

PREFIX = struct.Struct("<I")
HEARTBEAT = PREFIX.pack(0)


def frames_of(messages: Sequence[Message]) -> tuple[list[bytes], InvalidRequest | None]:
    """The frames that carry the messages: one, or more if it would exceed MAX_FRAME_BYTES.

    A message that cannot be sent at all is left out, so that it fails alone; the error tells of the last such.
    """
    if not messages:
        return [], None
    try:
        frame = encode(messages)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        problem = InvalidRequest(f"{type(messages[0]).__name__} cannot be encoded: {error!r}")
    else:
        if len(frame) <= MAX_FRAME_BYTES:
            return [frame], None
        problem = InvalidRequest(
            f"{type(messages[0]).__name__} takes {len(frame)} bytes; a frame holds at most {MAX_FRAME_BYTES}"
        )
    if len(messages) == 1:
        return [], problem
    half = len(messages) // 2
    first, problem_1 = frames_of(messages[:half])
    second, problem_2 = frames_of(messages[half:])
    return first + second, problem_2 or problem_1


def check_length(length: int) -> None:
    """Raises ProtocolError for a length over MAX_FRAME_BYTES: before anything of that size is allocated."""
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"the peer announced a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")


def joined(frames: Sequence[bytes]) -> bytes:
    """The frames as a byte stream; `split` undoes it."""
    return b"".join(part for frame in frames for part in (PREFIX.pack(len(frame)), frame))


def split(stream: bytes) -> Iterator[memoryview]:
    """The frames of a byte stream.  Raises ProtocolError if it ends within one."""
    view, at = memoryview(stream), 0
    while at < len(view):
        if at + PREFIX.size > len(view):
            raise ProtocolError(f"{len(view) - at} bytes follow the last frame")
        (length,) = PREFIX.unpack_from(view, at)
        check_length(length)
        end = at + PREFIX.size + length
        if end > len(view):
            raise ProtocolError(f"a frame of {length} bytes ends {end - len(view)} bytes early")
        yield view[at + PREFIX.size : end]
        at = end


class FrameQueue:
    """Frames on their way from one thread to another, at most `limit` bytes of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[bytes] = deque()
        self._num_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition(threading.Lock())

    @property
    def num_bytes(self) -> int:
        """Bytes in line."""
        return self._num_bytes

    @property
    def is_closed(self) -> bool:
        """True after `close`; frames may still be in line."""
        return self._is_closed

    def put(self, frame: bytes) -> bool:
        """Append a frame.  False, and nothing is appended, if the limit would be passed or the queue is closed.

        An empty queue takes a frame of any size.
        """
        with self._changed:
            if self._is_closed or (self._frames and self._num_bytes + len(frame) > self._limit):
                return False
            self._frames.append(frame)
            self._num_bytes += len(frame)
            self._changed.notify_all()
            return True

    def take(self, *, max_bytes: int, timeout_s: float | None) -> list[bytes]:
        """All frames in line, up to max_bytes but at least one; [] after timeout_s, or when closed and drained."""
        with self._changed:
            if not self._frames and not self._is_closed:
                self._changed.wait_for(lambda: self._frames or self._is_closed, timeout_s)
            taken: list[bytes] = []
            num_bytes = 0
            while self._frames and (not taken or num_bytes + len(self._frames[0]) <= max_bytes):
                taken.append(self._frames.popleft())
                num_bytes += len(taken[-1])
            self._num_bytes -= num_bytes
            if taken:
                self._changed.notify_all()  # there is room again
            return taken

    def wait_below(self, num_bytes: int, timeout_s: float) -> None:
        """Wait until at most num_bytes are in line, the queue is closed, or timeout_s have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_bytes <= num_bytes or self._is_closed, timeout_s)

    def close(self, *, drop: bool = False) -> None:
        """Take no more frames; `drop` those in line.  Whoever waits in `take` returns.  Idempotent."""
        with self._changed:
            self._is_closed = True
            if drop:
                self._frames.clear()
                self._num_bytes = 0
            self._changed.notify_all()
