"""Ray underneath: join or start a cluster, create and find the Controller.  Imports Ray only when called."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

from pieray.assets import embedded_models, model_folder
from pieray.config import Config
from pieray.errors import EngineError, PierayError

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


def join(address: str | None, progress: Progress | None) -> bool:
    """Connect this process to Ray; True if it was this call that did, so that closing should undo it.

    Raises EngineError naming the address if there is no cluster.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return False
    if address is None and "RAY_ADDRESS" not in os.environ:
        _say(progress, "starting a local Ray")
        ray.init(**LOCAL_RAY)
        return True
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise EngineError(f"no Ray cluster answers at {address!r}: {error}") from error
    return True


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

    Raises EngineError if the namespace has an engine already or it does not come up in time, ModelError if
    the model cannot be served.
    """
    import ray
    from ray.exceptions import ActorAlreadyExistsError

    from pieray.actors.common import actor_name, create_actor
    from pieray.actors.controller import Controller
    from pieray.raycalls import ask_actor
    from pieray.wasm.prepare import prepare_python_runtime

    folder = model_folder(config.model.path)
    if config.model.path not in embedded_models():  # an embedded one is found by name on every node
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(folder)))
    prepare_python_runtime(progress)
    _say(progress, f"loading {folder.name}")
    try:
        controller = create_actor(Controller, config, actor_name("controller"))
    except ActorAlreadyExistsError as error:
        raise EngineError(f"an engine runs in namespace {config.namespace!r} already; "
                          "connect to it, stop it, or choose another namespace") from error  # fmt: skip
    try:
        ask_actor(controller, "start", timeout_s=config.start_timeout_s)
    except PierayError:
        ray.kill(controller)
        raise
    _say(progress, "ready")
    return controller


def _say(progress: Progress | None, text: str) -> None:
    if progress is not None:
        progress(text)
