"""Bringing an engine up on a Ray cluster: the Controller is created here, and brings up the other actors.

Imports Ray, and the actors, only when called.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pieray.assets import embedded_models, model_folder
from pieray.client.controller_calls import ControllerCalls
from pieray.client.engine import Engine
from pieray.client.preflight import check_files
from pieray.cluster import ray_cluster
from pieray.cluster.ray_calls import ask_actor, asker
from pieray.cluster.ray_cluster import Progress, actor_name, end_engine, find_controller, say
from pieray.config import Config, load
from pieray.errors import ActorGone, EngineError, NoAnswer

NAME_FREE_S = 5.0
"""How long the name of a dead Controller may take to come free."""
LAUNCH_THREADS = 64
"""Launches that the Controller works on at one time, those that wait for an actor to start included."""


def start(
    model: str | Mapping[str, Any] | None = None,
    *,
    address: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Engine:
    """Start an engine and return its handle; the engine stops when the handle is closed, unless it is `detached`.

    `address`: None starts a local Ray in this process (or uses the one this driver is connected to), "auto"
    or "host:port" joins a cluster.  `settings` are fields of `Config`; a `model` that
    is a string is its path.  Raises ConfigError, ModelError, EngineError.
    """
    if model is not None:
        settings["model"] = {"path": model} if isinstance(model, str) else model
    config = load(settings)
    if ray_cluster.is_local(address):
        check_files(config)
    owns_ray = ray_cluster.join(address, progress)
    try:
        controller = start_engine(config, progress)
        try:
            return Engine(config, controller, owns_engine=not config.detached, owns_ray=owns_ray)
        except BaseException:
            end_engine(config.namespace)
            raise
    except BaseException:
        if owns_ray:
            ray_cluster.leave()
        raise


def start_engine(config: Config, progress: Progress | None) -> Any:
    """Create the Controller, have it bring up the others, and return its handle.

    It is put on the head node, whose loss ends the cluster in any case: the loss of any other ends no engine.
    Raises EngineError if the namespace has an engine already or it does not come up in time, ModelError if
    the model cannot be served.
    """
    from ray.exceptions import ActorAlreadyExistsError

    from pieray.actors.common import create_actor
    from pieray.actors.controller import Controller
    from pieray.cluster.facts import head_node
    from pieray.wasm.prepare import prepare_python_runtime

    config = _with_folders(config)
    prepare_python_runtime(progress)
    say(progress, f"loading {', '.join(Path(one.path).name for one in config.all_models().values())}")
    if not (is_served := _is_served(config.namespace)):
        end_engine(config.namespace)  # what a Controller that died has left, its name included
    create = partial(
        create_actor, Controller, config, actor_name("controller"), node=head_node(), max_concurrency=LAUNCH_THREADS
    )
    deadline = time.monotonic() + (0.0 if is_served else NAME_FREE_S)
    while True:
        try:
            controller = create()
            break
        except ActorAlreadyExistsError as error:
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"an engine runs in namespace {config.namespace!r} already; "
                    "connect to it, stop it, or choose another namespace"
                ) from error
            time.sleep(0.02)
    try:
        ask_actor(controller, "start", timeout_s=config.start_timeout_s)
    except BaseException:  # a Ctrl-C too: on a shared cluster nobody else would end the actors
        end_engine(config.namespace)
        raise
    say(progress, "ready")
    return controller


def _with_folders(config: Config) -> Config:
    """With the whole paths of models; an embedded one is found by name on every node.  Raises ModelError."""
    found = {}
    for name, settings in config.all_models().items():
        folder = str(model_folder(settings.path))
        found[name] = settings if settings.path in embedded_models() else dataclasses.replace(settings, path=folder)
    first = found.pop("")
    return dataclasses.replace(
        config, model=first, models={name: dataclasses.asdict(one) for name, one in found.items()}
    )


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
        raise EngineError(
            f"an engine runs in namespace {namespace!r} already, and {error.message.partition('; ')[0]}; "
            "stop it with `pieray down`, or choose another namespace"
        ) from error
    return True
