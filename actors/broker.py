"""Broker: the Ray actor that keeps what inferlets share across actors: queues, topics, the key-value store."""

from __future__ import annotations

from typing import Any

from pieray.actors.serving import ServingActor


class Broker(ServingActor):
    """Shell around `BrokerService`.  Queues and topics end with it; the store outlives it in `Config.store_path`."""

    def open(self, token: str) -> tuple[Any, ...]:
        """Open the store and the door; returns the endpoint for InferletActors.  Raises ConfigError."""
        from pieray.broker.buffer import Bounds  # the Controller imports this module too
        from pieray.broker.service import BrokerService
        from pieray.broker.store import Store

        limits = self.config.limits
        bounds = Bounds(num_bytes=limits.queue_bytes, tenant_bytes=limits.broker_bytes)
        self._service = BrokerService(bounds, Store(self.config.store_path))
        return self.listen(self._service, token)

    def status(self) -> dict[str, Any]:
        """Numbers of queues, topics, requests and bytes; raises `internal` if the books do not balance."""
        return {**self.describe(), **self._service.status()}
