"""Ray's side of supervision: actors are created, asked, watched and killed here alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray

from pieray.actors.batcher import Batcher
from pieray.actors.broker import Broker
from pieray.actors.common import create_actor
from pieray.actors.inferlet_actor import InferletActor
from pieray.actors.members import BATCHER, BROKER, INFERLETS, RESOURCE_MANAGER, Answer, Member
from pieray.actors.resource_manager import ResourceManager
from pieray.cluster.facts import await_free, head_node, num_gpus
from pieray.cluster.ray_calls import asker
from pieray.cluster.ray_cluster import actor_name
from pieray.config import Config

log = logging.getLogger(__name__)

CLASSES: Mapping[str, type] = {
    BATCHER: Batcher,
    RESOURCE_MANAGER: ResourceManager,
    BROKER: Broker,
    INFERLETS: InferletActor,
}


class RayFleet:
    """A `pieray.actors.members.Fleet`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._watched: dict[Any, Member] = {}  # by the call that ends with the actor
        self._lock = threading.Lock()

    def create(
        self, role: str, number: int | None, incarnation: int, near: Member | None = None, model: str = ""
    ) -> Member:
        """See Fleet.  The Broker's place is the head node, where the file of its store is; Ray chooses for others."""
        name = actor_name(role, number)
        await_free([name], self._config.namespace)
        node = near.facts.get("node_id") if near is not None else head_node() if role == BROKER else None
        config = self._config.serving(model)
        gpus = num_gpus(config.model) if role == BATCHER else 0.0
        handle = create_actor(CLASSES[role], config, name, name, incarnation, num_gpus=gpus, node=node)
        member = Member(role, name, handle, incarnation)
        with self._lock:
            self._watched[handle.watch.remote()] = member
        return member

    def begin(self, member: Member, method: str, *args: Any) -> Answer:
        """See Fleet."""
        return asker(member.handle)(method, *args)

    def keep(self, data: bytes) -> Any:
        """See Fleet: it is in Ray's object store."""
        return ray.put(data)

    def has_died(self, member: Member) -> bool:
        """See Fleet.  Of a process on this node the kernel says so, of others Ray, some time later."""
        with self._lock:
            watched = [ref for ref, other in self._watched.items() if other is member]
        if not watched:
            return True
        if member.facts.get("node_id") == ray.get_runtime_context().get_node_id():
            return _is_dead(member.facts["pid"])
        return bool(ray.wait(watched, timeout=0)[0])

    def deaths(self, timeout_s: float) -> list[Member]:
        """See Fleet."""
        with self._lock:
            refs = list(self._watched)
        if not refs:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        with self._lock:
            return [member for ref in ready if (member := self._watched.pop(ref, None)) is not None]

    def kill(self, member: Member) -> None:
        """See Fleet.  Ray ends a process that does not react within seconds by SIGKILL."""
        with self._lock:
            for ref in [ref for ref, watched in self._watched.items() if watched is member]:
                del self._watched[ref]
        ray.kill(member.handle)


def _is_dead(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
