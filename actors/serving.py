"""What Batcher, ResourceManager and InferletActor share: identity, a door for peers, and a life to watch."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from pieray.actors.common import TRANSPORT_GROUP, control, keep_heap, set_up_process
from pieray.config import Config
from pieray.mapping import from_mapping
from pieray.transport import Service, SocketOptions, serve
from pieray.transport.ray_server import RayEndpointMixin, RayListener


class ServingActor(RayEndpointMixin):
    """Base of the actors that peers connect to."""

    def __init__(self, config: Mapping[str, Any], name: str, incarnation: int) -> None:
        self.config = from_mapping(Config, config)
        self.name = name
        self.incarnation = incarnation
        self.peer_id = f"{name}#{incarnation}"
        self.stalls = set_up_process(self.config)

    @property
    def busy_s(self) -> float:
        """How long the work loop that has been longest at one turn has been at it; 0: all wait for work."""
        return 0.0

    @property
    def num_returned(self) -> int:
        """Of an InferletActor: places given back in all: by launches refused, inferlets that left, grants ended."""
        return 0

    def take_launched(self) -> list[tuple[str, str]]:
        """Of an InferletActor: ids and names of what clients have launched by grants, since this was called last."""
        return []

    def take_tallies(self) -> dict[str, Any]:
        """Of an InferletActor: what it has to say of tenants that have quotas, see `InferletHost.take_tallies`."""
        return {}

    @control
    def pulse(self) -> dict[str, Any]:
        """A sign of life, for `pieray.actors.health`; one is asked for at a time."""
        return {
            "clock": time.monotonic(),
            "busy_s": self.busy_s,
            "num_returned": self.num_returned,
            "launched": self.take_launched(),
            "tallies": self.take_tallies(),
            **self.describe(),
        }

    def describe(self) -> dict[str, Any]:
        """Facts for `pieray ps` and for tests that kill processes."""
        return {
            "name": self.name,
            "incarnation": self.incarnation,
            "pid": os.getpid(),
            "node_id": ray.get_runtime_context().get_node_id(),
        }

    def listen(self, service: Service, token: str) -> tuple[Any, ...]:
        """Open the door, by socket or by Ray calls as the engine is configured; returns the endpoint."""
        keep_heap()
        identity: dict[str, Any] = {"peer_id": self.peer_id, "incarnation": self.incarnation, "token": token}
        if self.config.transport == "ray":
            self.transport_listener = RayListener(service, **identity, concurrency_group=TRANSPORT_GROUP)
            return self.transport_listener.endpoint.to_wire()
        options = SocketOptions(heartbeat_s=self.config.heartbeat_s, lost_after_s=self.config.lost_after_s)
        endpoint = serve(service, **identity, host=ray.util.get_node_ip_address(), options=options).endpoint
        if self.config.transport == "tcp":
            endpoint = dataclasses.replace(endpoint, unix_path="")  # nobody is told of it
        return endpoint.to_wire()

    def watch(self) -> None:
        """Never returns: its failure tells the Supervisor at once that this process is gone."""
        threading.Event().wait()
