"""Which engine a command talks to: the one of `pieray up`, one on a cluster, or one of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

import pieray
from pieray import config, upstate
from pieray.cli.output import say
from pieray.cli.progress import Progress
from pieray.engine import Engine
from pieray.errors import ConfigError, EngineError, NotFound


def given_address(address: str | None) -> str | None:
    """The cluster that the user has named: by option, or by RAY_ADDRESS as Ray's jobs do."""
    return address or os.environ.get("RAY_ADDRESS") or None


def default_namespace(namespace: str | None) -> str:
    return namespace or config.load().namespace


def open_for_run(address: str | None, namespace: str | None, settings: Mapping[str, Any], show: Progress) -> Engine:
    """An engine to run an inferlet on; the second line of stderr says which when it is not one of its own.

    On a named cluster: the engine of the namespace, or if there is none an engine that ends with the run.
    Without one: what `pieray up` has started here, unless "local" or settings ask for an engine of its own.
    """
    namespace = default_namespace(namespace)
    cluster = given_address(address)
    if cluster is not None and cluster != "local":
        return _open_on_cluster(cluster, namespace, settings, show)
    running = None if cluster == "local" or settings else upstate.find_alive(namespace)
    if running is not None:
        say(f"using the engine of `pieray up` at {running.address}, namespace {namespace}")
        running.export()
        return pieray.connect(running.address, namespace)
    return pieray.start(address=cluster, progress=show, namespace=namespace, **settings)


def _open_on_cluster(cluster: str, namespace: str, settings: Mapping[str, Any], show: Progress) -> Engine:
    show(f"joining Ray at {cluster}")
    try:
        engine = pieray.connect(cluster, namespace)
    except NotFound:
        own = f"{namespace}-run-{secrets.token_hex(4)}"  # nobody else may come to depend on it: it ends with the run
        say(f"no engine runs in namespace {namespace} at {cluster}: starting one for this run")
        return pieray.start(address=cluster, progress=show, namespace=own, **settings)
    if settings:
        engine.close()
        raise ConfigError(f"the engine in namespace {namespace} at {cluster} has its settings already: "
                          "drop --model, --set and the like, or choose another --namespace")  # fmt: skip
    return engine


def open_running(address: str | None, namespace: str | None) -> Engine:
    """An engine that runs already; raises EngineError, saying how to start one."""
    namespace = default_namespace(namespace)
    cluster = given_address(address)
    if cluster is None:
        running = upstate.find_alive(namespace)
        if running is None:
            raise EngineError(f"no engine runs on this machine in namespace {namespace}; `pieray up` starts one, "
                              "--address names a cluster")  # fmt: skip
        running.export()
        cluster = running.address
    try:
        return pieray.connect(cluster, namespace)
    except NotFound as error:
        raise EngineError(error.message) from None
