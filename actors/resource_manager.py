"""ResourceManager: the Ray actor that decides who holds which KV page of one device group."""

from __future__ import annotations

import os
from typing import Any

from pieray.actors.serving import ServingActor


class ResourceManager(ServingActor):
    """Shell around `LeaseService`."""

    def open(self, token: str, num_pages: int) -> tuple[Any, ...]:
        """Begin to lease out pages `[0, num_pages)`; returns the endpoint.

        The process ends when its Batcher stays away for good: neither is of use alone, and the pair is replaced.
        """
        from pieray.pages.service import LeaseService  # numpy: the Controller imports this module too

        self._leases = LeaseService(num_pages, on_batcher_lost=lambda: os._exit(70))
        return self.listen(self._leases, token)

    def status(self) -> dict[str, Any]:
        """Pages by state; raises `internal` if the ledger does not balance."""
        return {**self.describe(), **self._leases.status()}
