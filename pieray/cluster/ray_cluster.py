"""Ray underneath: join or start a cluster, find and end the actors of an engine.  Imports Ray only when called."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from pieray.cluster import up_state
from pieray.errors import EngineError

Progress = Callable[[str], None]

LOCAL_RAY: dict[str, Any] = {
    "address": "local",
    "include_dashboard": False,
    "log_to_driver": False,
    "configure_logging": True,
    "logging_level": logging.ERROR,
    "object_store_memory": 100 << 20,
}


def prepare_environment() -> None:
    """Settings that Ray reads from the environment; what the user has set stays."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: batch work; ours answers people


def is_local(address: str | None) -> bool:
    """True if `join` would start a Ray of this process: what is on this machine is then all there is."""
    if (address or os.environ.get("RAY_ADDRESS") or "local") != "local":
        return False
    return "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def join(address: str | None, progress: Progress | None) -> bool:
    """Connect this process to Ray; True if it was this call that did, so that closing should undo it.

    `address`: None is RAY_ADDRESS if that is set, else a local Ray of this process; "local" is always that;
    "auto" is RAY_ADDRESS, else the cluster of `pieray up` on this machine, else what Ray finds.
    Raises EngineError naming the address if there is no cluster.
    """
    prepare_environment()
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _start_local(progress)
        return True
    try:
        address = _checked(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        raise EngineError(f"no Ray cluster can be joined at {address!r}: {error}{_auth_hint()}") from error
    return True


def leave() -> None:
    """Leave the cluster; a local Ray ends."""
    import ray

    ray.shutdown()


def _start_local(progress: Progress | None) -> None:
    """Ray gives its own processes 30 s, which a machine that is busy with other things may need: it is tried twice."""
    import ray

    for is_last in (False, True):
        say(progress, "starting a local Ray" + ", once more: the first one took too long" * is_last)
        try:
            ray.init(**LOCAL_RAY)
        except Exception as error:  # that of a node that takes too long is a plain one
            if "timed out during startup" not in str(error):
                raise
            if is_last:
                raise EngineError(f"no local Ray comes up, tried twice: {error}") from error
        else:
            return


def _checked(address: str) -> str:
    """The address to give to Ray, known to answer: Ray itself would wait for minutes for one that is gone.

    Raises ConnectionError, ValueError.
    """
    known = up_state.all_alive()
    if address == "auto" and not os.environ.get("RAY_ADDRESS") and known:
        address = known[0].address
    for state in known:
        if state.address == address:
            state.export()
            _reread_environment()
    target = address
    if address == "auto":
        from ray._private import services

        target = services.canonicalize_bootstrap_address("auto") or address
    if "://" not in target and not up_state.answers(target):
        raise ConnectionError(f"nothing answers at {target}")
    return address


def _reread_environment() -> None:
    """Ray reads RAY_AUTH_MODE when it is imported, which has happened by now."""
    import ray

    settings = getattr(ray._raylet, "Config", None)
    if settings is not None:
        settings.initialize("")


def _auth_hint() -> str:
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return ""
    return "; if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"


def actor_name(role: str, number: int | None = None) -> str:
    """Name of an engine's actor in its namespace."""
    return f"pieray.{role}" if number is None else f"pieray.{role}.{number}"


def find_controller(namespace: str) -> Any | None:
    """Handle of the engine's Controller, or None."""
    import ray

    try:
        return ray.get_actor(actor_name("controller"), namespace=namespace)
    except ValueError:
        return None


def end_engine_of(controller: Any, namespace: str) -> None:
    """Kill what is left of a Controller's engine, itself included, unless another engine has its namespace by now."""
    found = find_controller(namespace)
    if found is None or found._actor_id == controller._actor_id:
        end_engine(namespace)


def end_engine(namespace: str, timeout_s: float = 20.0) -> int:
    """Kill all actors of a namespace's engine, the Controller first; returns how many there were.

    For an engine whose Controller cannot do it: one that is half started, stuck or gone.
    """
    import ray

    killed: set[str] = set()
    deadline = time.monotonic() + timeout_s
    while (names := _actors_of(namespace)) and time.monotonic() < deadline:
        for name in names:
            try:
                ray.kill(ray.get_actor(name, namespace=namespace))
                killed.add(name)
            except ValueError:
                continue  # it has ended meanwhile
        time.sleep(0.05)
    return len(killed)


def _actors_of(namespace: str) -> list[str]:
    import ray
    from ray.util import list_named_actors

    if not ray.is_initialized():
        return []
    found = [a["name"] for a in list_named_actors(all_namespaces=True) if a["namespace"] == namespace]
    return sorted((n for n in found if n.startswith("pieray.")), key=lambda n: n != "pieray.controller")


def say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
