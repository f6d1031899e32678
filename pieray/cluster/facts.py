"""What a supervisor asks Ray's cluster."""

from __future__ import annotations

import time

import ray

from pieray.config import MAX_REPLICAS, Config
from pieray.errors import EngineError

NAMES_FREE_S = 60.0
CORES_PER_ACTOR = 2
"""An actor runs its guests' host calls under one interpreter lock; the device's pair and clients want cores too."""
MOST_ACTORS = 8


def num_gpus(config: Config) -> float:
    """One GPU where the cluster has one and the model may use it: a hard request elsewhere would wait for ever."""
    wants = config.model.device == "auto" or config.model.device.startswith("cuda")
    return 1.0 if wants and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0


def num_groups(config: Config) -> int:
    """Device groups to keep: as the settings say, or one for each GPU of the cluster, and one where there is none."""
    gpus = int(ray.cluster_resources().get("GPU", 0)) if num_gpus(config) else 0
    return config.model.replicas or max(1, min(MAX_REPLICAS, gpus))


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
