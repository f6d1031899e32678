"""`pieray up` and `pieray down`: an engine that stays, on a cluster or on a Ray head of its own."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pieray import config, upstate
from pieray.assets import model_folder
from pieray.cli.engines import default_namespace, given_address
from pieray.cli.guard import Debug, guard
from pieray.cli.head import head_processes, start_head, stop_head
from pieray.cli.options import Address, Device, Model, Namespace, NumPages, Set, engine_settings
from pieray.cli.output import say
from pieray.cli.progress import Progress, progress
from pieray.errors import EngineError
from pieray.upstate import UpState

Dashboard = Annotated[bool, typer.Option(
    "--dashboard", help="With Ray's dashboard, which `ray job submit` needs; on loopback.")]  # fmt: skip
NumCpus = Annotated[int | None, typer.Option(help="CPUs that an own Ray head offers.")]


def up(
    address: Address = None, namespace: Namespace = None, model: Model = None, device: Device = None,
    num_pages: NumPages = None, pairs: Set = None, dashboard: Dashboard = False, num_cpus: NumCpus = None,
    debug: Debug = False,
) -> None:  # fmt: skip
    """Start an engine that stays, on the cluster at --address or on a Ray head of its own."""
    with guard(debug=debug) as signals:
        chosen = default_namespace(namespace)
        given = engine_settings(model, device, num_pages, pairs)
        settings = config.load({**given, "namespace": chosen, "detached": True})
        model_folder(settings.model.path)
        running = upstate.find_alive(chosen)
        if running is not None and _has_engine(running):
            say(f"an engine is up already in namespace {chosen} at {running.address}")
            return
        _clear_away(chosen)
        cluster = given_address(address)
        with progress() as show, signals.starting_ray():
            state = _bring_up(cluster, settings, signals.kept(show), dashboard=dashboard, num_cpus=num_cpus)
        state.save()
        _tell(state)


def _bring_up(cluster: str | None, settings: config.Config, show: Progress, *, dashboard: bool,
              num_cpus: int | None) -> UpState:  # fmt: skip
    if cluster is not None and cluster != "local":
        return UpState(settings.namespace, _start_engine(cluster, settings, show))
    state = start_head(settings.namespace, dashboard=dashboard, num_cpus=num_cpus, show=show)
    state.save()  # first of all: `down` must find the head, whatever becomes of this process
    state.export()
    try:
        _start_engine(state.address, settings, show)
    except BaseException:
        stop_head(state)
        state.forget()
        raise
    return state


def _start_engine(cluster: str, settings: config.Config, show: Progress) -> str:
    """Start the engine on a cluster and leave it there; returns the cluster's host:port."""
    from pieray import cluster as ray_cluster

    ray_cluster.join(cluster, show)
    import ray

    try:
        ray_cluster.start_engine(settings, show)
        return str(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def down(namespace: Namespace = None, debug: Debug = False) -> None:
    """Stop what `up` started: the engine, and its own Ray head; nobody else's."""
    with guard(debug=debug) as signals:
        chosen = default_namespace(namespace)
        state = upstate.load(chosen)
        if state is None:
            say(f"nothing is up in namespace {chosen}")
            return
        with signals.starting_ray(), progress() as show:
            _take_down(state, show)
        say(f"namespace {chosen} is down")


def _take_down(state: UpState, show: Progress) -> None:
    if state.is_alive():
        show("stopping the engine")
        _stop_engine(state)
    if state.head_pid:
        show("stopping its Ray head")
        left = stop_head(state)
        if left:
            raise EngineError(f"processes {', '.join(map(str, left))} of the Ray head cannot be ended")
    state.forget()


def _stop_engine(state: UpState) -> None:
    """Politely where its Controller answers, by force where not; a head of our own takes all with it anyway."""
    from pieray import cluster

    state.export()
    try:
        cluster.join(state.address, None)
    except EngineError as error:
        if not state.head_pid:
            raise
        say(error.message)
        return
    import ray

    try:
        _ask_to_shut_down(cluster.find_controller(state.namespace))
        cluster.end_engine(state.namespace)
    finally:
        ray.shutdown()


def _ask_to_shut_down(controller: Any) -> None:
    from pieray.raycalls import ask_actor

    if controller is None:
        return
    try:
        ask_actor(controller, "shutdown", timeout_s=10.0)
    except EngineError as error:
        say(error.message)


def _has_engine(state: UpState) -> bool:
    """True if the cluster holds the engine still: its head may have been restarted without it."""
    from pieray import cluster

    state.export()
    try:
        cluster.join(state.address, None)
    except EngineError:
        return False
    import ray

    try:
        return cluster.find_controller(state.namespace) is not None
    finally:
        ray.shutdown()


def _clear_away(namespace: str) -> None:
    """What an engine that died has left: its head's processes and its state file."""
    state = upstate.load(namespace)
    if state is not None:
        if head_processes(state):
            say(f"clearing away a Ray head that has lost its engine: {state.address}")
        stop_head(state)
        state.forget()


def _tell(state: UpState) -> None:
    say(f"up in namespace {state.namespace} at {state.address}; `pieray down` stops it")
    if state.dashboard:
        say(f"dashboard, and door for jobs: {state.dashboard}")
    if state.environment.get("RAY_AUTH_MODE") == "token":
        needed = " ".join(f"{name}={value}" for name, value in state.environment.items())
        say(f"other Ray programs reach it with: export {needed}")
