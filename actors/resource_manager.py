"""ResourceManager: the Ray actor that decides who holds which KV page of one device group."""

from __future__ import annotations

from typing import Any

from pieray.actors.serving import ServingActor


class ResourceManager(ServingActor):
    """Shell around `LeaseService`."""

    def open(self, token: str, num_pages: int) -> tuple[Any, ...]:
        """Begin to lease out pages `[0, num_pages)`; returns the endpoint."""
        from pieray.pages.service import LeaseService  # numpy: the Controller imports this module too

        self._leases = LeaseService(num_pages)
        return self.listen(self._leases, token)

    def status(self) -> dict[str, Any]:
        """Pages by state; raises `internal` if the ledger does not balance."""
        return {**self.describe(), **self._leases.status()}
