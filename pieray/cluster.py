"""Ray underneath: join or start a cluster, create and find the Controller.  Imports Ray only when called."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pieray import upstate
from pieray.assets import embedded_models, model_folder
from pieray.config import Config
from pieray.controllercalls import ControllerCalls
from pieray.errors import ActorGone, EngineError, NoAnswer
from pieray.raycalls import asker

Progress = Callable[[str], None]

NAME_FREE_S = 5.0
"""How long the name of a dead Controller may take to come free."""
LAUNCH_THREADS = 64
"""Launches that the Controller works on at one time, those that wait for an actor to start included."""

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


def _start_local(progress: Progress | None) -> None:
    """Ray gives its own processes 30 s, which a machine that is busy with other things may need: it is tried twice."""
    import ray

    for is_last in (False, True):
        _say(progress, "starting a local Ray" + ", once more: the first one took too long" * is_last)
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
    known = upstate.all_alive()
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
    if "://" not in target and not upstate.answers(target):
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


def find_controller(namespace: str) -> Any | None:
    """Handle of the engine's Controller, or None."""
    import ray

    from pieray.actors.common import actor_name

    try:
        return ray.get_actor(actor_name("controller"), namespace=namespace)
    except ValueError:
        return None


def start_engine(config: Config, progress: Progress | None) -> Any:
    """Create the Controller, have it bring up the others, and return its handle.

    It is put on the head node, whose loss ends the cluster in any case: the loss of any other ends no engine.
    Raises EngineError if the namespace has an engine already or it does not come up in time, ModelError if
    the model cannot be served.
    """
    from ray.exceptions import ActorAlreadyExistsError

    from pieray.actors.cluster_facts import head_node
    from pieray.actors.common import actor_name, create_actor
    from pieray.actors.controller import Controller
    from pieray.raycalls import ask_actor
    from pieray.wasm.prepare import prepare_python_runtime

    folder = model_folder(config.model.path)
    if config.model.path not in embedded_models():  # an embedded one is found by name on every node
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(folder)))
    prepare_python_runtime(progress)
    _say(progress, f"loading {folder.name}")
    if not (is_served := _is_served(config.namespace)):
        end_engine(config.namespace)  # what a Controller that died has left, its name included
    create = partial(create_actor, Controller, config, actor_name("controller"), node=head_node(),
                     max_concurrency=LAUNCH_THREADS)  # fmt: skip
    deadline = time.monotonic() + (0.0 if is_served else NAME_FREE_S)
    while True:
        try:
            controller = create()
            break
        except ActorAlreadyExistsError as error:
            if time.monotonic() >= deadline:
                raise EngineError(f"an engine runs in namespace {config.namespace!r} already; "
                                  "connect to it, stop it, or choose another namespace") from error  # fmt: skip
            time.sleep(0.02)
    try:
        ask_actor(controller, "start", timeout_s=config.start_timeout_s)
    except BaseException:  # a Ctrl-C too: on a shared cluster nobody else would end the actors
        end_engine(config.namespace)
        raise
    _say(progress, "ready")
    return controller


def _is_served(namespace: str) -> bool:
    """Whether the namespace has a Controller that lives; the name of a dead one is given free.

    Ray gives a dead one's handle for as long as anybody has another of it, and keeps its name so long.
    """
    import ray

    found = find_controller(namespace)
    if found is None:
        return False
    try:
        ControllerCalls(asker(found)).ping()
    except ActorGone:
        ray.kill(found)  # its name comes free; it is not among the named actors any more
        return False
    except NoAnswer as error:
        raise EngineError(f"an engine runs in namespace {namespace!r} already, and {error.message.partition('; ')[0]}; "
                          "stop it with `pieray down`, or choose another namespace") from error  # fmt: skip
    return True


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


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
