"""What a supervisor asks Ray's cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import ray

from pieray.config import Config
from pieray.errors import EngineError
from pieray.model_settings import MAX_REPLICAS, ModelSettings

log = logging.getLogger(__name__)

NAMES_FREE_S = 60.0
CORES_PER_ACTOR = 2
"""An actor runs its guests' host calls under one interpreter lock; the device's pair and clients want cores too."""
MOST_ACTORS = 8


def num_gpus(model: ModelSettings) -> float:
    """What a replica takes of a GPU, where the cluster has one and the model may use it: a hard request elsewhere would
    wait for ever."""
    wants = model.device == "auto" or model.device.startswith("cuda")
    return model.gpu_share if wants and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def num_groups(config: Config) -> dict[str, int]:
    """Device groups to keep, by model: as the settings say, or one for each GPU of the cluster that is left, and one
    where there is none."""
    return groups_on(int(ray.cluster_resources().get("GPU", 0)), config, num_gpus)


def groups_on(gpus: int, config: Config, share: Callable[[ModelSettings], float]) -> dict[str, int]:
    """The same for so many GPUs; `share`: what a replica takes of one."""
    models = config.all_models()
    taken = sum(share(one) * (one.replicas or 1) for one in models.values())
    if gpus and taken > gpus + 1e-6:
        log.warning(
            "the models take %g GPUs together, of which the cluster has %d by now: unless more nodes join, let them "
            "share with gpu_share, have fewer replicas, or put some on the CPU with device",
            taken,
            gpus,
        )
    found = {}
    for name, one in models.items():
        more = max(0, int((gpus - taken) / share(one) + 1e-6)) if not one.replicas and share(one) else 0
        found[name] = min(MAX_REPLICAS, (one.replicas or 1) + more)
        taken += share(one) * (found[name] - (one.replicas or 1))
    return found


def num_actors(config: Config) -> int:
    """InferletActors to keep: as the settings say, or by the cluster's cores."""
    cores = int(ray.cluster_resources().get("CPU", 1))
    return config.actor_pool or max(1, min(MOST_ACTORS, config.max_actors, cores // CORES_PER_ACTOR))


def head_node() -> str:
    """Id of the head node: what lives there adds no node whose loss ends the engine.  Raises EngineError."""
    for node in ray.nodes():
        if node["Alive"] and "node:__internal_head__" in node["Resources"]:
            return str(node["NodeID"])
    raise EngineError("Ray names no head node that is alive: an engine has nowhere to put its Controller")


def await_free(names: list[str], namespace: str) -> None:
    """Wait until names of killed actors can be taken again."""
    deadline = time.monotonic() + NAMES_FREE_S
    while time.monotonic() < deadline:
        taken = {a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == namespace}
        if not taken.intersection(names):
            return
        time.sleep(0.02)
    raise EngineError(f"the names {names} did not come free within {NAMES_FREE_S} s")
