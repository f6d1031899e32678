"""WIT interface `adapters`: LoRA."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pieray.errors import PierayError, QuotaExceeded
from pieray.host.device.adapters import AdapterDirectory, Load, OpenAdapter, Unload, locate
from pieray.host.device.commands import Queue
from pieray.host.device.tickets import Kind
from pieray.host.handlers.base import HandlerGroup
from pieray.host.state import InstanceState
from pieray.messages import PRIVATE
from pieray.models.adapter_file import AdapterFile, check_alpha

MAX_FILE = 32 << 20
"""Bytes of an adapter that an inferlet loads: it travels to the batcher in one frame."""


class AdapterHandlers(HandlerGroup):
    """The engine's adapters by name, and the inferlet's own from its scratch folder."""

    def __init__(self, state: InstanceState) -> None:
        super().__init__(state)
        self._queue = Queue(0)
        self._next = PRIVATE
        self._bytes_coming = 0

    @property
    def _known(self) -> AdapterDirectory:
        return self._state.services.adapters

    def names(self) -> Sequence[str]:
        return self._known.names(self._state.launch.tenant)

    def info(self, name: str) -> str:
        return json.dumps(self._known.get(name, self._state.launch.tenant).public())

    def open(self, name: str) -> int:
        state = self._state
        facts = self._known.get(name, state.launch.tenant)
        with state.lock:
            return state.adapters.put(OpenAdapter(facts.number, facts.digest))

    def load(self, path: str, alpha: float) -> int:
        state = self._state
        check_alpha(alpha)
        path, scale, is_rank_stabilized = locate(state.scratch, path)
        size, most = state.scratch.size(path), state.limits.adapter_bytes
        if size > MAX_FILE:
            raise QuotaExceeded(
                f"an adapter loaded from the scratch folder has at most {MAX_FILE} bytes; {path!r} has {size}"
            )
        with state.lock:
            if self._bytes_coming + size > most:
                raise QuotaExceeded(
                    f"adapter_bytes: the limit is {most}; {self._bytes_coming} are being "
                    f"loaded, {path!r} has {size} more"
                )
            state.adapters.check_room()
            state.outbox.check_room()
            ticket = state.tickets.issue(Kind.TOKENS)
            number, self._next = self._next, self._next + 1
            file = AdapterFile(path, state.scratch.read(path), alpha or scale, is_rank_stabilized)
            self._bytes_coming += len(file.data)
            state.outbox.stage(Load(ticket, self._queue, number, file, most, self._loaded))
        return ticket

    def digest(self, adapter: int) -> str:
        return self._state.adapters.get(adapter).digest

    def close(self, adapter: int) -> None:
        state = self._state
        with state.lock:
            if (number := state.adapters.get(adapter).number) >= PRIVATE:
                state.outbox.check_room()
                self._unload(number)
            state.adapters.pop(adapter)

    def _loaded(self, load: Load, result: object) -> object:
        """What the ticket of a load yields: a handle, unless it failed, or nobody wants it any more."""
        state = self._state
        self._bytes_coming -= load.num_bytes
        if isinstance(result, PierayError):
            return result
        try:
            if state.tickets.is_open(load.ticket):
                return state.adapters.put(OpenAdapter(load.number, str(result))).to_bytes(4, "little")
        except QuotaExceeded as error:
            result = error
        self._unload(load.number)
        return result

    def _unload(self, number: int) -> None:
        """Behind the passes that are enqueued: they still run through it."""
        state = self._state
        state.outbox.stage(Unload(state.tickets.number(), self._queue, number))
