"""Handles of engines that run already: over Ray, or through the socket of their Controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pieray.client.controller_calls import ControllerCalls
from pieray.client.controller_link import ControllerLink
from pieray.client.engine import Engine
from pieray.cluster import ray_cluster
from pieray.cluster.ray_calls import asker
from pieray.config import Config
from pieray.errors import NotFound
from pieray.mapping import from_mapping
from pieray.transport import Endpoint


def connect(address: str = "auto", namespace: str = "pieray") -> Engine:
    """The handle of an engine that runs already; closing it leaves the engine running.

    Raises NotFound if no engine has that namespace on the cluster, EngineError if there is no cluster.
    """
    owns_ray = ray_cluster.join(address, None)
    try:
        controller = _controller_of(ray_cluster.find_controller(namespace), namespace, address)
        values = ControllerCalls(asker(controller)).ask("config", timeout_s=30.0)
        return Engine(from_mapping(Config, values), controller, owns_engine=False, owns_ray=owns_ray)
    except BaseException:
        if owns_ray:
            ray_cluster.leave()
        raise


def connect_door(
    endpoint: Sequence[Any], token: str, timeout_s: float = 10.0, *, on_close: Callable[[], None] | None = None
) -> Engine:
    """The handle of an engine through the socket of its Controller: this process needs no Ray.

    `endpoint` as the Controller's `door` gives it; `token` is the engine's.  Raises PeerLost (it is gone), Denied,
    DeadlineExceeded, ProtocolError.
    """
    controller = ControllerLink(Endpoint.from_wire(endpoint), token, timeout_s)
    try:
        values = controller.begin("config")(30.0)
        engine = Engine(from_mapping(Config, values), controller, owns_engine=False, owns_ray=False)
    except BaseException:
        controller.close()
        raise
    if on_close is not None:
        engine.on_close = on_close
    return engine


def _controller_of(found: Any | None, namespace: str, address: str) -> Any:
    if found is None:
        raise NotFound(f"no engine runs in namespace {namespace!r} on {address}; start one with `pieray up`")
    return found
