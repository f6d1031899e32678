"""InferletActor: the Ray actor that hosts wasmtime stores, one per inferlet.  It never imports torch.

What it runs is imported when it opens: the Controller imports this module too, and has no use for a wasm host.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pieray.actors.common import control
from pieray.actors.serving import ServingActor
from pieray.errors import PierayError
from pieray.json_log import RunOfThread
from pieray.messages import Launch, decode_one
from pieray.models.adapter_file import AdapterFacts
from pieray.transport import Endpoint

if TYPE_CHECKING:
    from pieray.host.core import InferletHost

Wire = tuple[Any, ...]


class InferletActor(ServingActor):
    """Shell around `InferletHost`."""

    _host: InferletHost | None = None

    def open(
        self, token: str, models: list[dict[str, Any]], groups: list[Wire], broker: Wire, registry_revision: int
    ) -> Wire:
        """Connect to the device groups, each as `connect_group` has it and one at least, and to the broker (`()`: it is
        not up yet), warm up, and listen for clients.

        Returns the endpoint.
        """
        from pieray.actors.launcher import ControllerLauncher
        from pieray.host.broker.client import BrokerClient
        from pieray.host.children.service import ChildService
        from pieray.host.clients import ClientService
        from pieray.host.core import InferletHost
        from pieray.host.device.groups import DeviceGroups
        from pieray.host.device.model_devices import ModelDevices
        from pieray.host.models import ModelDirectory, ServedModel
        from pieray.host.services import Services
        from pieray.models.tokenizer import TokenizerSpec
        from pieray.wasm.guest import running_id

        for handler in logging.getLogger().handlers:
            handler.addFilter(RunOfThread(running_id))
        self._groups_of = {
            name: DeviceGroups(
                peer_id=self.peer_id, token=token, policy=self.config.group_policy, is_one=settings.replicas == 1
            )
            for name, settings in self.config.all_models().items()
        }
        others = dict(self._groups_of)
        self._devices = ModelDevices(others.pop(""), others)
        failures = []
        for group in groups:
            try:
                self.connect_group(*group)
            except PierayError as error:  # it is dialled again
                failures.append(error)
        if len(failures) == len(groups):
            raise failures[0]
        self._services = Services.of(self.config)
        self._services.broker = BrokerClient(peer_id=self.peer_id, token=token)
        self._services.children = ChildService(
            ControllerLauncher(self.config, token),
            self.config.limits,
            peer_id=self.peer_id,
            token=token,
            timers=self._services.timers,
        )
        self.set_adapters(models[0]["adapters"])
        if broker:
            self.reconnect_broker(broker)
        directory = ModelDirectory([ServedModel.from_wire(m["info"], TokenizerSpec(**m["tokenizer"])) for m in models])
        self._host = InferletHost(self.config, self._devices, directory, self._services, self.stalls)
        self.set_registry(registry_revision)
        self._host.warm_up()
        return self.listen(ClientService(self._host), token)

    def connect_group(self, number: int, model: str, batcher: Wire, resource_manager: Wire, is_draining: bool) -> None:
        """There is a device group of that model ("" is the default one), or it was replaced: later inferlets use it,
        unless it is draining."""
        endpoints = Endpoint.from_wire(batcher), Endpoint.from_wire(resource_manager)
        self._groups_of[model].open(number, *endpoints, is_draining=is_draining)

    def end_group(self, number: int) -> None:
        """There will be no such device group any more."""
        for groups in self._groups_of.values():
            groups.end(number)

    def reconnect_broker(self, broker: Wire) -> None:
        """The broker has come up, or another one in its place."""
        assert self._services.broker is not None
        self._services.broker.open(Endpoint.from_wire(broker))

    def set_adapters(self, facts: list[dict[str, Any]]) -> None:
        """The engine's adapters, from now on."""
        self._services.adapters.replace([AdapterFacts.from_wire(one) for one in facts])

    def set_registry(self, revision: int) -> None:
        """Installed programs have changed: what clients know of them from before is refused."""
        self._running.registry_revision = revision

    @property
    def _running(self) -> InferletHost:
        assert self._host is not None
        return self._host

    def launch(self, frame: bytes, sent_at: float, deadline: float) -> None:
        """Start an inferlet; raises the PierayError that refuses it.

        For the times see `InferletHost.check_due`.
        """
        host = self._running
        host.launch(decode_one(frame, Launch), partial(host.check_due, sent_at, deadline))

    @control
    def grant(self, grant_id: str, num_places: int, lifetime_s: float) -> float:
        """A client may launch at so many places, for so long; this process's time.monotonic."""
        self._running.grants.open(grant_id, num_places, lifetime_s)
        return time.monotonic()

    @control
    def kill(self, instance_id: str, reason: str) -> None:
        self._running.kill(instance_id, reason)

    @property
    def busy_s(self) -> float:
        return self._host.busy_s if self._host is not None else 0.0

    @property
    def num_returned(self) -> int:
        return self._host.num_returned if self._host is not None else 0

    def take_launched(self) -> list[tuple[str, str]]:
        return self._host.take_launched() if self._host is not None else []

    def take_tallies(self) -> dict[str, Any]:
        return self._host.take_tallies() if self._host is not None else {}

    @control
    def counted(self) -> list[str]:
        """Ids of its inferlets that count against a quota of their tenant."""
        return self._running.counted()

    @control
    def recall_places(self) -> int:
        """End all grants: their free places are wanted by others; see `num_returned`."""
        self._running.grants.recall()
        return self.num_returned

    @control
    def inferlets(self) -> list[dict[str, Any]]:
        return self._running.status()

    @control
    def trace(self, instance_id: str) -> dict[str, Any]:
        """What a traced inferlet has done; raises NotFound."""
        return self._running.find(instance_id).trace()

    @control
    def status(self) -> dict[str, Any]:
        links = {"device": self._devices.status(), "broker": self._services.broker_status()}
        host = self._running
        facts = {"executor": host.executor, "num_live": host.num_live, "totals": host.totals()}
        return {**self.describe(), **facts, "links": links}

    def close(self) -> None:
        """End all inferlets; their clients are told."""
        self._running.close()
