"""Which engine a command talks to: the one of `pieray up`, one on a cluster, or one of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

import pieray
from pieray import config, upstate
from pieray.assets import model_folder
from pieray.cli.output import say
from pieray.cli.progress import Progress
from pieray.engine import Engine
from pieray.errors import ConfigError, EngineError, NotFound
from pieray.upstate import UpState


def given_address(address: str | None) -> str | None:
    """The cluster that the user has named: by option, or by RAY_ADDRESS as Ray's jobs do."""
    return address or os.environ.get("RAY_ADDRESS") or None


def default_namespace(namespace: str | None) -> str:
    return namespace or config.load().namespace


def open_for_run(address: str | None, namespace: str | None, settings: Mapping[str, Any], show: Progress) -> Engine:
    """An engine to run an inferlet on; stderr says which when it is not one of its own.

    On a named cluster: the engine of the namespace, or if there is none an engine that ends with the run.
    Without one: what `pieray up` has started here, unless "local" or settings ask for an engine of its own.
    """
    namespace = default_namespace(namespace)
    place = given_address(address)
    if place is not None and place != "local":
        return _open_on_cluster(place, namespace, settings, show)
    running = None if place == "local" or settings else upstate.find_alive(namespace)
    if running is not None:
        say(f"using the engine of `pieray up` at {running.address}, namespace {namespace}")
        return _connect(running, namespace)
    return start_own(place, {**settings, "namespace": namespace}, show)


def may_have_programs(address: str | None, namespace: str | None, settings: Mapping[str, Any]) -> bool:
    """Whether the engine of `open_for_run` may hold installed programs: it runs already, or has a folder of them."""
    if config.load(settings).registry_path:
        return True
    place = given_address(address)
    if place is not None:
        return place != "local"
    return not settings and upstate.find_alive(default_namespace(namespace)) is not None


def _connect(running: UpState, namespace: str) -> Engine:
    running.export()
    try:
        return pieray.connect(running.address, namespace)
    except NotFound as error:
        raise EngineError(f"{error.message}, which clears away what is left of the last one") from None


def _open_on_cluster(place: str, namespace: str, settings: Mapping[str, Any], show: Progress) -> Engine:
    show(f"joining Ray at {place}")
    try:
        engine = pieray.connect(place, namespace)
    except NotFound:
        own = f"{namespace}-run-{secrets.token_hex(4)}"  # nobody else may come to depend on it: it ends with the run
        say(f"no engine runs in namespace {namespace} at {place}: starting one for this run")
        return start_own(place, {**settings, "namespace": own}, show)
    if settings:
        engine.close()
        raise ConfigError(f"the engine in namespace {namespace} at {place} has its settings already: "
                          "drop --model, --set and the like, or choose another --namespace")  # fmt: skip
    return engine


def start_own(address: str | None, settings: Mapping[str, Any], show: Progress) -> Engine:
    """An engine that ends with its handle, from nested settings; raises ConfigError, ModelError, EngineError."""
    model_folder(config.load(settings).model.path)  # a wrong one is found before Ray has taken its seconds
    return pieray.start(address=address, progress=show, **settings)


def open_running(address: str | None, namespace: str | None) -> Engine:
    """An engine that runs already; raises EngineError, saying how to start one."""
    namespace = default_namespace(namespace)
    place = given_address(address)
    if place is None:
        running = upstate.find_alive(namespace)
        if running is None:
            raise EngineError(f"no engine runs on this machine in namespace {namespace}; `pieray up` starts one, "
                              "--address names a cluster")  # fmt: skip
        return _connect(running, namespace)
    try:
        return pieray.connect(place, namespace)
    except NotFound as error:
        raise EngineError(error.message) from None
