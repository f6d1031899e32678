"""Controller: the one Ray actor of an engine that others find by name.  It brings the others up and keeps them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import ray

from pieray.actors.common import control, set_up_process
from pieray.actors.door import open_door
from pieray.actors.fleet import RayFleet
from pieray.actors.supervisor import Supervisor
from pieray.cluster.facts import num_actors, num_groups
from pieray.config import Config
from pieray.mapping import from_mapping
from pieray.messages import Install, decode_one, encode
from pieray.transport import Listener


class Controller:
    """Shell around `Supervisor`.  Nothing here is on a token's path."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = from_mapping(Config, config)
        stalls = set_up_process(self._config)
        self._supervisor = Supervisor(
            self._config, RayFleet(self._config), stalls, num_actors(self._config), num_groups(self._config)
        )
        self._listener: Listener | None = None

    def start(self) -> None:
        """Bring the engine up; raises ModelError, EngineError."""
        self._supervisor.start()
        if self._config.ray_metrics_s:
            from pieray.actors.ray_metrics import tell_ray

            tell_ray(self._config.ray_metrics_s, self._supervisor.status)
        if self._config.transport != "ray":  # with "ray" no port is opened
            self._listener = open_door(
                self, self._supervisor.token, ray.util.get_node_ip_address(), self._config.max_waiting_launches
            )

    @control
    def door(self) -> tuple[Any, ...]:
        """Endpoint of the socket that clients may ask through; () if there is none."""
        return self._listener.endpoint.to_wire() if self._listener is not None else ()

    @control
    def config(self) -> dict[str, Any]:
        return self._supervisor.config_mapping()

    @control
    def token(self) -> str:
        """The engine's secret; who may call Ray actors of this cluster may have it."""
        return self._supervisor.token

    @control
    def models(self) -> list[dict[str, Any]]:
        return self._supervisor.devices.models()

    def scale(self, replicas: int, drain_s: float, model: str = "") -> list[dict[str, Any]]:
        """Have so many device groups of a model, see `ModelGroups.scale`; facts of the models."""
        self._supervisor.devices.scale(replicas, drain_s, model)
        return self._supervisor.devices.models()

    @control
    def adapters(self) -> list[dict[str, Any]]:
        return self._supervisor.devices.adapters.facts()

    def load_adapter(self, file: dict[str, Any], data: bytes, owner: str) -> dict[str, Any]:
        """Load a LoRA adapter that `owner`'s inferlets may open; its facts."""
        return self._supervisor.devices.load_adapter(file, data, owner)

    def unload_adapter(self, name: str, owner: str) -> None:
        self._supervisor.devices.unload_adapter(name, owner)

    def launch(self, frame: bytes, sent_at: float | None = None, deadline: float | None = None) -> tuple[Any, ...]:
        """Place and start an inferlet; returns the endpoint of its actor.  See `Placement.launch`."""
        return self._supervisor.placement.launch(frame, sent_at, deadline)

    @control
    def grant(self, num_places: int) -> list[tuple[Any, ...]]:
        """Places for a client to launch at, without asking for each.  See `Placement.grant`."""
        return self._supervisor.placement.grant(num_places)

    @control
    def ping(self) -> float:
        """This process's time.monotonic: it lives."""
        return time.monotonic()

    def install(self, frame: bytes) -> dict[str, Any]:
        """Keep a program under its name and version; returns its facts."""
        return self._supervisor.install(decode_one(frame, Install))

    def uninstall(self, spec: str, tenant: str, user: str) -> list[str]:
        return self._supervisor.uninstall(spec, tenant, user)

    @control
    def programs(self) -> list[dict[str, Any]]:
        """Facts of the installed programs."""
        return self._supervisor.registry.programs()

    def program(self, spec: str, with_content: bool) -> bytes:
        """An installed program, as the Install message that brought it; raises NotFound."""
        found = self._supervisor.registry.find(spec)
        return encode([found if with_content else dataclasses.replace(found, source="", component=b"")])

    @control
    def resolve(self, spec: str) -> tuple[int, bytes]:
        """Revision of the registry, and the program as of it, as `program` gives it; raises NotFound."""
        revision, found = self._supervisor.registry.resolve(spec)
        return revision, encode([found])

    @control
    def locate(self, instance_id: str) -> tuple[str, tuple[Any, ...]]:
        """Name and actor endpoint of an inferlet; raises NotFound."""
        return self._supervisor.placement.locate(instance_id)

    @control
    def kill(self, instance_id: str, reason: str) -> None:
        self._supervisor.placement.kill(instance_id, reason)

    @control
    def ps(self) -> list[dict[str, Any]]:
        return self._supervisor.placement.ps()

    @control
    def trace(self, instance_id: str) -> dict[str, Any]:
        """What a traced inferlet has done, and the steps that it took part in; raises NotFound."""
        found = self._supervisor.placement.trace(instance_id)
        return {**found, "steps": self._supervisor.devices.steps(instance_id)}

    @control
    def exports(self) -> list[dict[str, Any]]:
        """Facts of the exports of KV pages."""
        return self._supervisor.devices.exports()

    @control
    def drop_export(self, name: str, access: str, tenant: str, user: str) -> dict[str, Any]:
        """Take an export away; raises NotFound, InvalidRequest."""
        return self._supervisor.devices.drop_export(name, access, tenant, user)

    @control
    def status(self) -> dict[str, Any]:
        return self._supervisor.status()

    @control
    def admission(self) -> dict[str, Any]:
        """Launches that wait and that were refused, by tenant.  See `Placement.admission`."""
        return self._supervisor.placement.admission()

    @control
    def pid(self) -> int:
        return os.getpid()

    @control
    def node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def shutdown(self) -> None:
        """Stop all actors of the engine; this one ends a moment later."""
        self._supervisor.shutdown()
