"""WIT interface `adapters`: LoRA."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pieray.errors import InvalidRequest, ModelError, PierayError, QuotaExceeded
from pieray.host.device.adapter_commands import AdapterDirectory, Load, OpenAdapter, Unload
from pieray.host.device.commands import Queue
from pieray.host.device.outbox import Outbox
from pieray.host.identity import Identity
from pieray.host.open_handles import OpenHandles
from pieray.host.session.scratch import ScratchFolder
from pieray.host.tickets import Kind, TicketTable
from pieray.messages import PRIVATE
from pieray.models.adapter_file import CONFIG, WEIGHTS, AdapterFile, check_alpha, scaling_of

MAX_FILE = 32 << 20
"""Bytes of an adapter that an inferlet loads: it travels to the batcher in one frame."""


class AdapterHandlers:
    """The engine's adapters by name, and the inferlet's own from its scratch folder."""

    def __init__(
        self,
        identity: Identity,
        known: AdapterDirectory,
        adapters: OpenHandles[OpenAdapter],
        scratch: ScratchFolder,
        tickets: TicketTable,
        outbox: Outbox,
    ) -> None:
        self._tenant = identity.tenant
        self._max_bytes = identity.limits.adapter_bytes
        self._known = known
        self._adapters = adapters
        self._scratch = scratch
        self._tickets = tickets
        self._outbox = outbox
        self._queue = Queue(0)
        self._next = PRIVATE
        self._bytes_coming = 0

    def names(self) -> Sequence[str]:
        return self._known.names(self._tenant)

    def info(self, name: str) -> str:
        return json.dumps(self._known.get(name, self._tenant).public())

    def open(self, name: str) -> int:
        facts = self._known.get(name, self._tenant)
        with self._tickets.lock:
            return self._adapters.put(OpenAdapter(facts.number, facts.digest))

    def load(self, path: str, alpha: float) -> int:
        check_alpha(alpha)
        path, scale, is_rank_stabilized = locate(self._scratch, path)
        size, most = self._scratch.size(path), self._max_bytes
        if size > MAX_FILE:
            raise QuotaExceeded(
                f"an adapter loaded from the scratch folder has at most {MAX_FILE} bytes; {path!r} has {size}"
            )
        with self._tickets.lock:
            if self._bytes_coming + size > most:
                raise QuotaExceeded(
                    f"adapter_bytes: the limit is {most}; {self._bytes_coming} are being "
                    f"loaded, {path!r} has {size} more"
                )
            self._adapters.check_room()
            self._outbox.check_room()
            ticket = self._tickets.issue(Kind.TOKENS)
            number, self._next = self._next, self._next + 1
            file = AdapterFile(path, self._scratch.read(path), alpha or scale, is_rank_stabilized)
            self._bytes_coming += len(file.data)
            self._outbox.stage(Load(ticket, self._queue, number, file, most, self._loaded))
        return ticket

    def digest(self, adapter: int) -> str:
        return self._adapters.get(adapter).digest

    def close(self, adapter: int) -> None:
        with self._tickets.lock:
            if (number := self._adapters.get(adapter).number) >= PRIVATE:
                self._outbox.check_room()
                self._unload(number)
            self._adapters.pop(adapter)

    def _loaded(self, load: Load, result: object) -> object:
        """What the ticket of a load yields: a handle, unless it failed, or nobody wants it any more."""
        self._bytes_coming -= load.num_bytes
        if isinstance(result, PierayError):
            return result
        try:
            if self._tickets.is_open(load.ticket):
                return self._adapters.put(OpenAdapter(load.number, str(result))).to_bytes(4, "little")
        except QuotaExceeded as error:
            result = error
        self._unload(load.number)
        return result

    def _unload(self, number: int) -> None:
        """Behind the passes that are enqueued: they still run through it."""
        self._outbox.stage(Unload(self._tickets.number(), self._queue, number))


def locate(scratch: ScratchFolder, path: str) -> tuple[str, float, bool]:
    """The weights that `path` means, a file or a folder as PEFT saves it: their path, alpha (0: the rank), and whether
    they are rank-stabilized.

    Raises NotFound, InvalidRequest for settings that are not computed here.
    """
    folder, slash, name = path.rpartition("/")
    is_folder = not scratch.has(path) and scratch.has(f"{path}/{WEIGHTS}")
    config = f"{path}/{CONFIG}" if is_folder else f"{folder}{slash}{CONFIG}"
    if not is_folder and (name != WEIGHTS or not scratch.has(config)):
        return path, 0.0, False
    try:
        return f"{path}/{WEIGHTS}" if is_folder else path, *scaling_of(scratch.read(config), config)
    except ModelError as error:
        raise InvalidRequest(error.message) from None
