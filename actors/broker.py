"""Broker: the Ray actor that keeps what inferlets share across actors: queues, topics, the key-value store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pieray.actors.common import control
from pieray.actors.serving import ServingActor

if TYPE_CHECKING:
    from pieray.broker.service import BrokerService


class Broker(ServingActor):
    """Shell around `BrokerService`.  Queues and topics end with it; the store outlives it in `Config.store_path`."""

    _service: BrokerService | None = None

    def open(self, token: str) -> tuple[Any, ...]:
        """Open the store and the door; returns the endpoint for InferletActors.  Raises ConfigError."""
        from pieray.broker.buffer import Bounds  # the Controller imports this module too
        from pieray.broker.service import BrokerService
        from pieray.broker.store import Store

        limits = self.config.limits
        bounds = Bounds(
            num_bytes=limits.queue_bytes,
            tenant_bytes=limits.broker_bytes,
            bytes_of=lambda tenant: self.config.tenant(tenant).broker_bytes or limits.broker_bytes,
        )
        self._service = BrokerService(bounds, Store(self.config.store_path))
        return self.listen(self._service, token)

    @property
    def busy_s(self) -> float:
        """How long its lock, under which all work is done, has been held."""
        return self._service.busy_s if self._service is not None else 0.0

    @control
    def status(self) -> dict[str, Any]:
        """Numbers of queues, topics, requests and bytes; raises `internal` if the books do not balance."""
        assert self._service is not None
        return {**self.describe(), **self._service.status()}
