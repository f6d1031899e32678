"""`pieray up` and `pieray down`: an engine that stays, on a cluster or on a Ray head of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from pieray import config
from pieray.assets import model_folder
from pieray.cli.driver import Driver
from pieray.cli.engines import check, default_namespace, find_up, given_address
from pieray.cli.guard import Debug, guard
from pieray.cli.head import head_processes, start_head, stop_head
from pieray.cli.options import Address, Device, Model, Namespace, NumPages, Set, engine_settings
from pieray.cli.output import say
from pieray.cli.progress import Progress, progress
from pieray.cluster import up_state
from pieray.cluster.up_state import UpState
from pieray.config import Config
from pieray.errors import ConfigError, EngineError, PierayError

WAIT_S = 300.0
"""For another `up` or `down` of the same namespace to be done."""

Dashboard = Annotated[
    bool, typer.Option("--dashboard", help="With Ray's dashboard, which `ray job submit` needs; on loopback.")
]
NumCpus = Annotated[int | None, typer.Option(min=0, help="CPUs that an own Ray head offers.")]


def up(
    address: Address = None,
    namespace: Namespace = None,
    model: Model = None,
    device: Device = None,
    num_pages: NumPages = None,
    pairs: Set = None,
    dashboard: Dashboard = False,
    num_cpus: NumCpus = None,
    debug: Debug = False,
) -> None:
    """Start an engine that stays, on the cluster at --address or on a Ray head of its own."""
    with guard(debug=debug):
        chosen = default_namespace(namespace)
        given = engine_settings(model, device, num_pages, pairs)
        settings = {**given, "namespace": chosen, "detached": True}
        cluster = given_address(address)
        is_own = cluster is None or cluster == "local"
        check(config.load(settings), is_own=is_own)
        if not is_own and (dashboard or num_cpus is not None):
            raise ConfigError("--dashboard and --num-cpus are for a Ray head of its own; --address names one that runs")
        with _alone(chosen):
            if (found := _running(chosen)) is not None:
                _refuse_others(*found, given, cluster if not is_own else None, dashboard, num_cpus)
                say(f"an engine is up already in namespace {chosen} at {found[0].address}")
                return
            _clear_away(chosen)
            with progress() as show:
                state = _bring_up(None if is_own else cluster, settings, show, dashboard=dashboard, num_cpus=num_cpus)
            _tell(state)


def _alone(namespace: str) -> Any:
    """While no other `up` or `down` is at work in the namespace."""
    return up_state.locked(namespace, WAIT_S, lambda: say(f"waiting for another `pieray up` or `down` in {namespace}"))


def _running(namespace: str) -> tuple[UpState, Config] | None:
    """The engine that is up, and its settings."""
    try:
        found = find_up(namespace)
    except EngineError:
        return None  # its head has lost it
    if found is None:
        return None
    state, engine = found
    with engine:
        return state, engine.config


def _refuse_others(
    state: UpState,
    running: Config,
    given: Mapping[str, Any],
    cluster: str | None,
    dashboard: bool,
    num_cpus: int | None,
) -> None:
    """Raises ConfigError if what is asked for is not what runs, naming each difference."""
    wanted = config.load({**given, "namespace": running.namespace, "detached": True})
    named = config.merge(config.from_environment(), given)
    there = [(name, _setting(running, name), _setting(wanted, name)) for name in _names(named)]
    there += [
        ("--address", state.address, cluster or state.address),
        ("--dashboard", bool(state.dashboard), dashboard or bool(state.dashboard)),
        ("--num-cpus", state.num_cpus, state.num_cpus if num_cpus is None else num_cpus),
    ]
    differing = [f"{name} is {has!r}, asked for is {asked!r}" for name, has, asked in there if has != asked]
    if differing:
        raise ConfigError(
            f"an engine is up already in namespace {state.namespace} with other settings: "
            f"{'; '.join(differing)}; `pieray down` first, or choose another --namespace"
        )


def _names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the settings that a nested mapping gives."""
    for key, value in values.items():
        name = f"{prefix}{key.replace('-', '_')}"
        if name in ("model", "limits") and isinstance(value, Mapping):
            yield from _names(value, f"{name}.")
        elif name not in ("namespace", "detached"):
            yield name


def _setting(settings: Config, name: str) -> Any:
    if name == "model.path":
        return str(model_folder(settings.model.path))
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _bring_up(
    cluster: str | None, settings: Mapping[str, Any], show: Progress, *, dashboard: bool, num_cpus: int | None
) -> UpState:
    if cluster is not None:
        state = UpState(str(settings["namespace"]), cluster)
        state.save()
        try:
            driver = Driver({"do": "up", "address": cluster, "settings": settings}, show)
        except BaseException:
            state.forget()
            raise
        return _saved(replace(state, address=driver.facts["address"]), driver)
    state = start_head(str(settings["namespace"]), dashboard=dashboard, num_cpus=num_cpus, show=show)
    try:
        state.export()
        return _saved(state, Driver({"do": "up", "address": state.address, "settings": settings}, show, is_own=True))
    except BaseException:
        stop_head(state)
        state.forget()
        raise


def _saved(state: UpState, driver: Driver) -> UpState:
    """The state with the way to its engine, which the driver leaves behind."""
    state = replace(state, endpoint=driver.facts["endpoint"], token=driver.facts["token"])
    state.save()
    driver.close()
    return state


def down(namespace: Namespace = None, debug: Debug = False) -> None:
    """Stop what `up` started: the engine, and its own Ray head; nobody else's."""
    with guard(debug=debug):
        chosen = default_namespace(namespace)
        with _alone(chosen):
            state = up_state.load(chosen)
            if state is None:
                say(f"nothing is up in namespace {chosen}")
                return
            with progress() as show:
                _take_down(state, show)
            say(f"namespace {chosen} is down")


def _take_down(state: UpState, show: Progress) -> None:
    if state.is_alive() or not (state.temp_dir or state.is_whole):  # on a cluster an `up` may have been killed half way
        show("stopping the engine")
        _stop_engine(state)
    if state.temp_dir:
        show("stopping its Ray head")
        left = stop_head(state)
        if left:
            raise EngineError(f"processes {', '.join(map(str, left))} of the Ray head cannot be ended")
    state.forget()


def _stop_engine(state: UpState) -> None:
    """Let the inferlets end in order; on a cluster that is not ours its actors are ended too."""
    try:
        if state.temp_dir:
            if state.is_whole and (found := find_up(state.namespace)) is not None:
                found[1].shutdown()
            return
        state.export()
        Driver({"do": "end", "address": state.address, "namespace": state.namespace}, say).close()
    except PierayError as error:
        if not state.temp_dir:
            raise
        say(error.message)  # a head of our own takes all with it anyway


def _clear_away(namespace: str) -> None:
    """What an engine that died, or an `up` that was killed, has left: its head's processes and its state file."""
    state = up_state.load(namespace)
    if state is not None:
        if head_processes(state):
            say("clearing away a Ray head that has no engine" + (f": {state.address}" if state.address else ""))
        stop_head(state)
        state.forget()


def _tell(state: UpState) -> None:
    say(f"up in namespace {state.namespace} at {state.address}; `pieray down` stops it")
    if state.dashboard:
        say(f"dashboard, and door for jobs: {state.dashboard}")
    if state.environment.get("RAY_AUTH_MODE") == "token":
        needed = " ".join(f"{name}={value}" for name, value in state.environment.items())
        say(f"other Ray programs reach it with: export {needed}")
