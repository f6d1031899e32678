"""LoRA adapters in an InferletActor: which there are, and the commands by which an inferlet loads its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pieray.errors import NotFound
from pieray.host.device.commands import Command, Queue, wire_ticket
from pieray.messages import LoadAdapter, Message, UnloadAdapter
from pieray.models.adapter_file import AdapterFacts, AdapterFile
from pieray.pages.prepared import Prepared


class AdapterDirectory:
    """The adapters that the engine's owner has loaded, as this actor has been told."""

    def __init__(self, facts: Iterable[AdapterFacts] = ()) -> None:
        self._facts = list(facts)

    def replace(self, facts: Iterable[AdapterFacts]) -> None:
        self._facts = list(facts)

    def names(self, tenant: str) -> list[str]:
        """Those that the tenant's inferlets may open."""
        return sorted({one.name for one in self._facts if one.owner in ("", tenant)})

    def get(self, name: str, tenant: str) -> AdapterFacts:
        """By name, the tenant's own first; raises NotFound."""
        found = [one for one in self._facts if one.name == name and one.owner in ("", tenant)]
        if not found:
            names = ", ".join(self.names(tenant)) or "none"
            raise NotFound(f"no adapter is named {name[:200]!r}; there are: {names}")
        return max(found, key=lambda one: one.owner)


@dataclass(frozen=True, slots=True)
class OpenAdapter:
    """What a handle stands for."""

    number: int
    """The batcher's number for it."""
    digest: str
    """`AdapterFile.digest`."""


class Load(Command):
    """The batcher is to load an adapter for this inferlet.  `loaded` turns its answer into what the ticket yields."""

    __slots__ = ("_file", "_loaded", "_max_bytes", "number")

    def __init__(
        self,
        ticket: int,
        queue: Queue,
        number: int,
        file: AdapterFile,
        max_bytes: int,
        loaded: Callable[[Load, object], object],
    ) -> None:
        super().__init__(ticket, queue, _no_pages())
        self.number = number
        self._file = file
        self._max_bytes = max_bytes
        self._loaded = loaded

    @property
    def num_bytes(self) -> int:
        return len(self._file.data)

    def message(self, inferlet: int) -> Message:
        file = self._file
        return LoadAdapter(
            wire_ticket(inferlet, self.ticket),
            inferlet,
            self.number,
            file.name,
            file.data,
            file.alpha,
            file.is_rank_stabilized,
            self._max_bytes,
        )

    def settled(self, result: object) -> object:
        return self._loaded(self, result)


class Unload(Command):
    """The batcher may forget an adapter of this inferlet, behind the passes enqueued so far."""

    __slots__ = ("number",)

    def __init__(self, ticket: int, queue: Queue, number: int) -> None:
        super().__init__(ticket, queue, _no_pages())
        self.number = number

    def message(self, inferlet: int) -> Message:
        return UnloadAdapter(wire_ticket(inferlet, self.ticket), inferlet, self.number)


def _no_pages() -> Prepared:
    none = np.zeros(0, np.int64)
    return Prepared(
        rows=none, num_pages=0, reads=[], num_full=0, writes=[], row_copies=[], frames=none, frame_copies=[], moved=[]
    )
