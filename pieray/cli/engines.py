"""Which engine a command talks to: the one of `pieray up`, one on a cluster, or one of its own.

None of it loads Ray: see `pieray.cli.driver`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from pieray import config
from pieray.assets import model_folder
from pieray.cli.driver import Driver
from pieray.cli.output import say
from pieray.cli.progress import Progress
from pieray.client.connecting import connect_door
from pieray.client.engine import Engine
from pieray.cluster import up_state
from pieray.cluster.up_state import UpState
from pieray.config import Config
from pieray.errors import ConfigError, Denied, EngineError, NotFound, PeerLost


def given_address(address: str | None) -> str | None:
    """The cluster that the user has named: by option, or by RAY_ADDRESS as Ray's jobs do."""
    return address or os.environ.get("RAY_ADDRESS") or None


def default_namespace(namespace: str | None) -> str:
    return namespace or config.load().namespace


def open_existing(
    address: str | None, namespace: str | None, settings: Mapping[str, Any], show: Progress
) -> Engine | None:
    """The engine for `pieray run`, if it runs already; stderr says which it is.

    On a named cluster: that of the namespace.  Without one: what `pieray up` has started here, unless "local" or
    settings ask for an engine of the command's own.
    """
    namespace = default_namespace(namespace)
    place = given_address(address)
    if place is not None and place != "local":
        return _open_on_cluster(place, namespace, settings, show)
    found = None if place == "local" or settings else find_up(namespace)
    if found is None:
        return None
    state, engine = found
    say(f"using the engine of `pieray up` at {state.address}, namespace {namespace}")
    return engine


def start_for_run(address: str | None, namespace: str | None, settings: Mapping[str, Any], show: Progress) -> Engine:
    """An engine that ends with its handle: on a named cluster, else on a Ray of its own."""
    namespace = default_namespace(namespace)
    place = given_address(address)
    if place is not None and place != "local":
        say(f"no engine runs in namespace {namespace} at {place}: starting one for this run")
        namespace = f"{namespace}-run-{secrets.token_hex(4)}"  # nobody else may come to depend on it
    return start_own(place, {**settings, "namespace": namespace}, show)


def find_up(namespace: str) -> tuple[UpState, Engine] | None:
    """What `pieray up` has started here, if it is alive; raises EngineError if only its Ray is."""
    state = up_state.load(namespace)
    if state is None:
        return None
    if state.endpoint:
        try:
            return state, connect_door(state.endpoint, state.token)
        except (PeerLost, Denied):
            pass  # its Controller is gone, or there is another: the cluster knows
    if not state.is_alive():
        return None
    state.export()
    try:
        return state, connect(state.address, namespace)
    except NotFound as error:
        raise EngineError(f"{error.message}, which clears away what is left of the last one") from None


def connect(address: str, namespace: str) -> Engine:
    """An engine that runs on a cluster, found by a driver process; raises NotFound, EngineError."""
    return _opened(Driver({"do": "connect", "address": address, "namespace": namespace}, lambda _: None))


def _opened(driver: Driver) -> Engine:
    """The engine that the driver has found or started; the driver ends with its handle."""
    try:
        facts = driver.facts
        if facts["endpoint"]:
            return connect_door(facts["endpoint"], facts["token"], on_close=driver.close)
        import pieray  # an engine with transport "ray" has no sockets: this process must be a driver itself

        engine = pieray.connect(facts["address"], facts["namespace"])
        engine.on_close = driver.close
    except BaseException:
        driver.close()
        raise
    return engine


def _open_on_cluster(place: str, namespace: str, settings: Mapping[str, Any], show: Progress) -> Engine | None:
    show(f"joining Ray at {place}")
    try:
        engine = connect(place, namespace)
    except NotFound:
        return None
    if settings:
        engine.close()
        raise ConfigError(
            f"the engine in namespace {namespace} at {place} has its settings already: "
            "drop --model, --set and the like, or choose another --namespace"
        )
    return engine


def start_own(address: str | None, settings: Mapping[str, Any], show: Progress) -> Engine:
    """An engine that ends with its handle, from nested settings; raises ConfigError, ModelError, EngineError."""
    is_own = address is None or address == "local"
    check(config.load(settings), is_own=is_own)
    return _opened(Driver({"do": "start", "address": address, "settings": dict(settings)}, show, is_own=is_own))


def check(settings: Config, *, is_own: bool) -> None:
    """What can be told before Ray has taken its seconds: of a cluster that is not ours, whether there is the model."""
    if is_own:
        from pieray.client.preflight import check_files

        check_files(settings)
    else:
        model_folder(settings.model.path)


def open_running(address: str | None, namespace: str | None) -> Engine:
    """An engine that runs already; raises EngineError, saying how to start one."""
    namespace = default_namespace(namespace)
    place = given_address(address)
    if place is None:
        found = find_up(namespace)
        if found is None:
            raise EngineError(
                f"no engine runs on this machine in namespace {namespace}; `pieray up` starts one, "
                "--address names a cluster"
            )
        return found[1]
    try:
        return connect(place, namespace)
    except NotFound as error:
        raise EngineError(error.message) from None
