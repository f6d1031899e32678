"""Images that are to be seen: one at a time, on a thread of its own beside the steps."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pieray.errors import DeviceLost, InvalidRequest, PierayError
from pieray.messages import Completed, EmbedImage, Message
from pieray.sched.failures import failed, known
from pieray.sched.lanes import LaneKey

if TYPE_CHECKING:
    from pieray.models.images import SeenImage

log = logging.getLogger(__name__)

Answers: TypeAlias = list[tuple[str, Message]]
NICENESS = 10
"""Of the thread: where cores are few, steps come first."""


class Eye(Protocol):
    """What is needed of `pieray.models.runner.ModelRunner`; called on one thread.

    Raises DeviceLost on a dead device.
    """

    def see(self, data: bytes, max_pixels: int, max_bytes: int) -> SeenImage: ...


class ImageQueue:
    """Thread-safe.  Tenants take turns, and the inferlets of each; of an inferlet one comes behind the other.

    `send` takes the answers; `on_seen` is told, on the thread, what an image of an inferlet and tenant has taken in
    seconds, and `on_lost` when one meets a dead device.
    """

    def __init__(self, eye: Eye, max_pixels: int) -> None:
        self.send: Callable[[Answers], None] = lambda _: None
        self.on_seen: Callable[[LaneKey, str, float], None] = lambda _lane, _tenant, _seconds: None
        self.on_lost: Callable[[DeviceLost], None] = lambda _: None
        self._eye = eye
        self._max_pixels = max_pixels
        self._waiting: OrderedDict[str, OrderedDict[LaneKey, deque[EmbedImage]]] = OrderedDict()  # none is empty
        self._running: EmbedImage | None = None
        self._running_of: LaneKey | None = None  # None too once its inferlet has ended
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "pieray-images", initializer=_step_back)

    @property
    def num_waiting(self) -> int:
        """Images that nobody has looked at yet."""
        with self._lock:
            return sum(len(images) for lanes in self._waiting.values() for images in lanes.values())

    def submit(self, peer_id: str, message: EmbedImage) -> None:
        """Take an inferlet's image."""
        lane = peer_id, message.inferlet
        with self._lock:
            self._waiting.setdefault(message.tenant, OrderedDict()).setdefault(lane, deque()).append(message)
        with contextlib.suppress(RuntimeError):  # closed: the process ends, and nobody is answered any more
            self._thread.submit(self._see_next)

    def drop(self, peer_id: str, inferlet: int | None = None) -> None:
        """An inferlet, or all of a peer, has ended: nobody waits for its images."""
        with self._lock:
            for tenant, lanes in list(self._waiting.items()):
                for lane in [key for key in lanes if key[0] == peer_id and inferlet in (None, key[1])]:
                    del lanes[lane]
                if not lanes:
                    del self._waiting[tenant]
            running = self._running_of
            if running is not None and running[0] == peer_id and inferlet in (None, running[1]):
                self._running_of = None

    def fail_all(self, error: PierayError) -> Answers:
        """Answer all that wait, and the one that is looked at, with an error."""
        with self._lock:
            answers: Answers = [
                (lane[0], failed(message.ticket, error))
                for lanes in self._waiting.values()
                for lane, images in lanes.items()
                for message in images
            ]
            self._waiting.clear()
            if self._running_of is not None and self._running is not None:
                answers.append((self._running_of[0], failed(self._running.ticket, error)))
                self._running_of = None
        return answers

    def close(self) -> None:
        """See no more; idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _see_next(self) -> None:
        with self._lock:
            if not self._waiting:  # whose turn it was has ended
                return
            tenant, lanes = next(iter(self._waiting.items()))
            lane, images = next(iter(lanes.items()))
            message = images.popleft()
            lanes.move_to_end(lane)
            if not images:
                del lanes[lane]
            self._waiting.move_to_end(tenant)
            if not lanes:
                del self._waiting[tenant]
            self._running, self._running_of = message, lane
        began = time.monotonic()
        answer = self._answer(message)
        self.on_seen(lane, tenant, time.monotonic() - began)
        with self._lock:
            is_wanted, self._running, self._running_of = self._running_of is not None, None, None
        if is_wanted:
            self.send([(lane[0], answer)])

    def _answer(self, message: EmbedImage) -> Message:
        try:
            seen = self._eye.see(message.data, self._max_pixels, message.max_bytes)
            places = b"" if seen.places is None else seen.places.astype("<i4", copy=False).tobytes()
            return Completed(message.ticket, [seen.values.astype("<f4", copy=False).tobytes(), places, seen.digest])
        except DeviceLost as error:
            self.on_lost(error)
            return failed(message.ticket, error)
        except PierayError as error:
            return failed(message.ticket, error)
        except (ValueError, TypeError) as error:
            return failed(message.ticket, InvalidRequest(f"malformed request: {error}"))
        except BaseException as error:  # noqa: BLE001 - whatever a decoder throws, the others are seen
            log.warning("an image could not be seen: %r", error)
            return failed(message.ticket, known(error))


def _step_back() -> None:
    """Be less urgent than the other threads of the process, where the system lets one thread be so."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
