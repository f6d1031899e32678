"""The adapters that a batcher has loaded, the engine's and inferlets' own: found by number, bounded, let go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from pieray.errors import DeviceLost, Evicted, InvalidRequest, ModelError, PierayError
from pieray.messages import PRIVATE, Completed, LoadAdapter, Message, UnloadAdapter
from pieray.models.adapter_file import AdapterFacts, AdapterFile
from pieray.sched.failures import failed, known
from pieray.sched.lanes import LaneKey

if TYPE_CHECKING:
    from pieray.models.lora import LoraAdapter

log = logging.getLogger(__name__)

Answers: TypeAlias = list[tuple[str, Message]]


class AdapterReader(Protocol):
    """What is needed of `pieray.models.runner.ModelRunner`; called from several threads, one at a time.

    Raises DeviceLost on a dead device.
    """

    def read_adapter(self, file: AdapterFile, max_bytes: int) -> LoraAdapter: ...


class LoadedAdapters:
    """Thread-safe.  Adapters are read one at a time, those of inferlets on a thread of their own.

    What is let go stays in memory, and counts, for as long as a command holds it: nothing is unloaded under a step.
    `send` takes the answers that come later; `on_lost` is told, on any thread, when an adapter meets a dead device.
    """

    def __init__(self, reader: AdapterReader, max_bytes: int) -> None:
        self.send: Callable[[Answers], None] = lambda _: None
        self.on_lost: Callable[[DeviceLost], None] = lambda _: None
        self._reader = reader
        self._max_bytes = max_bytes
        self._common: dict[int, LoraAdapter] = {}
        self._own: dict[LaneKey, dict[int, LoraAdapter]] = {}
        self._coming: dict[LaneKey, set[int]] = {}  # tickets of loads that are not done
        self._owner: WeakKeyDictionary[LoraAdapter, LaneKey | None] = WeakKeyDictionary()  # of all in memory
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "pieray-adapters")

    def find(self, lane: LaneKey, number: int) -> LoraAdapter:
        """The adapter that an inferlet means by `number`; raises Evicted."""
        with self._lock:
            found = (self._own.get(lane, {}) if number >= PRIVATE else self._common).get(number)
        if found is None:
            raise Evicted("the adapter is not loaded any more")
        return found

    @property
    def num_bytes(self) -> int:
        """Of all adapters in memory."""
        with self._lock:
            return sum(adapter.num_bytes for adapter in self._owner)

    # --- the engine's ---------------------------------------------------------------------------

    def add(self, number: int, file: AdapterFile, owner: str = "") -> AdapterFacts:
        """Load an adapter of the engine's; raises ModelError naming file and tensor, QuotaExceeded."""
        with self._reading:
            adapter = self._admitted(file, None, self._max_bytes)
            with self._lock:
                self._common[number] = adapter
        return AdapterFacts(
            file.name, number, adapter.rank, adapter.alpha, adapter.targets, adapter.num_bytes, owner, file.digest()
        )

    def remove(self, number: int) -> None:
        """Commands that come later fail with `evicted`."""
        with self._lock:
            self._common.pop(number, None)

    # --- inferlets' own -------------------------------------------------------------------------

    def submit(self, peer_id: str, message: LoadAdapter | UnloadAdapter) -> Answers:
        """Take an inferlet's message; what can be answered at once."""
        lane = (peer_id, message.inferlet)
        if isinstance(message, UnloadAdapter):
            with self._lock:
                self._own.get(lane, {}).pop(message.adapter, None)
            return [(peer_id, Completed(message.ticket, None))]
        with self._lock:
            self._coming.setdefault(lane, set()).add(message.ticket)
        self._thread.submit(self._load, lane, message)
        return []

    def drop(self, peer_id: str, inferlet: int | None = None) -> None:
        """An inferlet, or all of a peer, has ended: let go what it has loaded."""
        with self._lock:
            lanes = {*self._own, *self._coming}
            for lane in [key for key in lanes if key[0] == peer_id and inferlet in (None, key[1])]:
                self._own.pop(lane, None)
                self._coming.pop(lane, None)

    def close(self) -> None:
        """Load no more; idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _load(self, lane: LaneKey, message: LoadAdapter) -> None:
        answer: Message
        try:
            with self._reading:
                if message.ticket not in self._coming.get(lane, ()):
                    return
                answer = Completed(message.ticket, self._load_own(lane, message))
        except PierayError as error:
            answer = failed(message.ticket, InvalidRequest(error.message) if isinstance(error, ModelError) else error)
        except BaseException as error:  # also a panic of native code: it is the answer
            log.exception("an adapter could not be loaded")
            answer = failed(message.ticket, known(error))
        with self._lock:
            self._coming.get(lane, set()).discard(message.ticket)
        self.send([(lane[0], answer)])

    def _load_own(self, lane: LaneKey, message: LoadAdapter) -> str:
        """The digest of what is loaded."""
        if message.adapter < PRIVATE:
            raise InvalidRequest(f"numbers of an inferlet's own adapters are from {PRIVATE}; given {message.adapter}")
        file = AdapterFile(message.name, message.data, message.alpha, message.is_rank_stabilized)
        adapter = self._admitted(file, lane, message.max_bytes)
        with self._lock:
            if message.ticket in self._coming.get(lane, ()):  # else the inferlet has ended meanwhile
                self._own.setdefault(lane, {})[message.adapter] = adapter
        return file.digest()

    def _admitted(self, file: AdapterFile, lane: LaneKey | None, max_bytes: int) -> LoraAdapter:
        """Read it, within what is left to its owner and to all."""
        with self._lock:
            sizes = [(adapter.num_bytes, owner) for adapter, owner in self._owner.items()]
        room = self._max_bytes - sum(size for size, _ in sizes)
        left = max_bytes - sum(size for size, owner in sizes if owner == lane)
        try:
            adapter = self._reader.read_adapter(file, min(room, left))
        except DeviceLost as error:
            self.on_lost(error)
            raise
        with self._lock:
            self._owner[adapter] = lane
        return adapter
