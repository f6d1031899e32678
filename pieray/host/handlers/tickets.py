"""WIT interface `tickets`."""

from __future__ import annotations

from typing import Any

import numpy as np

from pieray.arrays import F32, U32
from pieray.errors import QuotaExceeded
from pieray.host.device.model_side import ModelSides
from pieray.host.tickets import Kind, TicketTable


class TicketHandlers:
    """The results of enqueued commands."""

    def __init__(self, tickets: TicketTable, sides: ModelSides) -> None:
        self._tickets = tickets
        self._sides = sides

    def flush(self) -> None:
        """Send all that is staged; called by the wasm host at every wait."""
        with self._tickets.lock:
            self._sides.flush()

    def ready(self, tickets: U32) -> list[int]:
        most = 2 * self._tickets.limit  # each pass that does not count has an output that does
        if len(tickets) > most:
            raise QuotaExceeded(f"tickets: {most} at most are asked about at one time; given {len(tickets)}")
        return self._tickets.ready(tickets.tolist())

    def take_none(self, ticket: int) -> None:
        self._take(ticket, Kind.NONE)

    def take_tokens(self, ticket: int) -> U32:
        return np.frombuffer(self._take(ticket, Kind.TOKENS), "<u4")

    def take_floats(self, ticket: int) -> F32:
        return np.frombuffer(self._take(ticket, Kind.FLOATS), "<f4")

    def take_text(self, ticket: int) -> str:
        text: str = self._take(ticket, Kind.TEXT)
        return text

    def take_distribution(self, ticket: int) -> tuple[U32, F32]:
        ids, probabilities = self._take(ticket, Kind.DISTRIBUTION)
        return np.frombuffer(ids, "<u4"), np.frombuffer(probabilities, "<f4")

    def cancel(self, tickets: U32) -> None:
        table = self._tickets
        asked = np.unique(tickets).tolist()  # a list may name one a million times
        for ticket in asked:
            table.find(ticket)
        table.drop(asked)

    def _take(self, ticket: int, kind: Kind) -> Any:
        return self._tickets.take(ticket, kind)
