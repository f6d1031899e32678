"""ResourceManager: the Ray actor that decides who holds which KV page of one device group."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pieray.actors.common import EXIT_FAILED, control
from pieray.actors.serving import ServingActor

if TYPE_CHECKING:
    from pieray.leases.service import LeaseService

NEWS_S = 0.02
"""InferletActors are told so often of what a group holds, where there are several."""


class ResourceManager(ServingActor):
    """Shell around `LeaseService`."""

    _leases: LeaseService | None = None

    def open(self, token: str, num_pages: int, has_siblings: bool) -> tuple[Any, ...]:
        """Begin to lease out pages `[0, num_pages)`; returns the endpoint.  `has_siblings`: there are other groups.

        The process ends when its Batcher stays away for good: neither is of use alone, and the pair is replaced.
        """
        from pieray.leases.exports import PinShares
        from pieray.leases.service import LeaseService  # numpy: the Controller imports this module too

        pins = PinShares(self.config.tenant_pin_share, self.config.pin_share)
        tenant = self.config.tenant
        self._leases = LeaseService(
            num_pages,
            pins=pins,
            on_failure=lambda: os._exit(EXIT_FAILED),
            weight_of=lambda name: tenant(name).weight,
            quota_of=lambda name: tenant(name).pages,
            news_s=NEWS_S if has_siblings else 0.0,
        )
        return self.listen(self._leases, token)

    @property
    def busy_s(self) -> float:
        """How long its lock, under which all work is done, has been held."""
        return self._leases.busy_s if self._leases is not None else 0.0

    @control
    def status(self) -> dict[str, Any]:
        """Pages by state; raises `internal` if the ledger does not balance."""
        assert self._leases is not None
        return {**self.describe(), **self._leases.status()}

    @control
    def tell_news(self) -> None:
        """There are other groups from now on."""
        assert self._leases is not None
        self._leases.tell_news(NEWS_S)

    @control
    def exports(self) -> list[dict[str, Any]]:
        """Facts of every export of KV pages."""
        assert self._leases is not None
        return self._leases.exports()

    @control
    def drop_export(self, name: str, access: str, tenant: str, user: str) -> dict[str, Any]:
        """Take an export away from outside; raises NotFound, InvalidRequest."""
        assert self._leases is not None
        return self._leases.drop_export(name, access, tenant, user)
