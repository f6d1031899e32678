"""Supervision on fake actors that die, freeze and wake up: who is replaced, who is told, what a launch meets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fake_fleet import FakeActor, FakeFleet

from pieray.actors import health, placement, records, supervisor
from pieray.actors.members import BATCHER, BROKER, INFERLETS, RESOURCE_MANAGER
from pieray.actors.supervisor import Supervisor
from pieray.concurrency.stalls import Stalls
from pieray.config import Config
from pieray.errors import (
    ActorGone,
    ChildCeiling,
    EngineError,
    InvalidRequest,
    ModelError,
    NoAnswer,
    NotFound,
    Overloaded,
    PeerLost,
    PierayError,
    Stalled,
    error_from,
)
from pieray.mapping import from_mapping
from pieray.messages import Launch, encode

SOON = 30.0
SETTINGS: dict[str, Any] = {"suspect_after_s": 2.0, "replace_after_s": 4.0}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (health, supervisor):
        monkeypatch.setattr(module, "TICK_S", 0.1)


@pytest.fixture
def fleet() -> FakeFleet:
    return FakeFleet()


@pytest.fixture
def engine(fleet: FakeFleet) -> Iterator[Callable[..., Supervisor]]:
    started: list[Supervisor] = []

    def start(stalls: Stalls | None = None, **settings: Any) -> Supervisor:
        found = Supervisor(from_mapping(Config, {**SETTINGS, **settings}), fleet, stalls)
        started.append(found)
        found.start()
        until(lambda: fleet.alive(BROKER) != [] and current(fleet))
        return found

    yield start
    for one in started:
        one.shutdown()


def until(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def current(fleet: FakeFleet) -> bool:
    """Whether all hosts that run have been told of the actors of today."""

    def today(role: str) -> list[tuple[str, int]]:
        return sorted((a.member.name, a.member.incarnation) for a in fleet.alive(role))

    groups = list(zip(today(BATCHER), today(RESOURCE_MANAGER), strict=False))
    hosts = [actor for actor in fleet.alive(INFERLETS) if actor.running.is_set() and actor.groups]
    return bool(hosts) and all(
        [group for _, group in sorted(actor.groups.items())] == groups and [actor.broker] == today(BROKER)
        for actor in hosts
    )


def frame(instance_id: str, depth: int = 0, **fields: Any) -> bytes:
    return encode([Launch(instance_id, "it", "it.py", "def main(): ...", b"", "{}", {}, depth=depth, **fields)])


def rows(engine: Supervisor, role: str) -> list[dict[str, Any]]:
    return [row for row in engine.status()["actors"] if row["role"] == role]


# --- deaths ------------------------------------------------------------------------------------


def test_an_engine_comes_up_and_goes(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(actor_pool=2)
    assert fleet.one(RESOURCE_MANAGER).near is fleet.one(BATCHER).member
    assert [row["state"] for row in running.status()["actors"]] == ["up"] * 5
    assert running.placement.launch(frame("a")) == ("pieray.inferlets.0", fleet.alive(INFERLETS)[0].member.incarnation)
    running.shutdown()
    assert all(actor.is_dead for actor in fleet.actors)


@pytest.mark.parametrize("role", [BATCHER, RESOURCE_MANAGER])
def test_a_pair_is_replaced_together_and_hosts_are_told(
    engine: Callable[..., Supervisor], fleet: FakeFleet, role: str
) -> None:
    running = engine(actor_pool=2)
    old = fleet.one(BATCHER), fleet.one(RESOURCE_MANAGER)
    fleet.die(fleet.one(role))
    until(lambda: len(fleet.alive(BATCHER)) == 1 and fleet.one(BATCHER) is not old[0] and current(fleet))
    assert all(actor.is_dead for actor in old)
    assert len(fleet.alive(INFERLETS)) == 2
    running.placement.launch(frame("a"))
    assert running.status()["failure"] is None


def test_a_launch_while_the_pair_is_replaced_waits_for_it(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine()
    loading = threading.Event()
    fleet.hooks[BATCHER, "load"] = lambda _: assert_(loading.wait(SOON))
    fleet.die(fleet.one(BATCHER))
    until(lambda: fleet.alive(BATCHER) != [] and "load" in fleet.one(BATCHER).calls)
    with ThreadPoolExecutor(1) as threads:
        launching = threads.submit(running.placement.launch, frame("a"))
        time.sleep(0.3)
        assert not launching.done()
        loading.set()
        launching.result(SOON)
    assert current(fleet)


def test_replacing_one_actor_blocks_notice_of_no_other(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    engine(actor_pool=2)
    loading = threading.Event()
    fleet.hooks[BATCHER, "load"] = lambda _: assert_(loading.wait(SOON))
    fleet.die(fleet.one(BATCHER))
    until(lambda: any("load" in a.calls for a in fleet.alive(BATCHER)))
    broker, host = fleet.one(BROKER), fleet.alive(INFERLETS)[0]
    fleet.die(broker)
    fleet.die(host)
    until(lambda: fleet.alive(BROKER) != [] and "open" in fleet.one(BROKER).calls)
    until(lambda: len(fleet.alive(INFERLETS)) == 2)
    loading.set()
    until(lambda: current(fleet) and len([a for a in fleet.alive(INFERLETS) if a.groups]) == 2)


@pytest.mark.parametrize("role", [BATCHER, RESOURCE_MANAGER, BROKER, INFERLETS])
def test_a_watch_that_fails_hides_no_death(engine: Callable[..., Supervisor], fleet: FakeFleet, role: str) -> None:
    running = engine()
    fleet.is_watch_broken = True
    old = fleet.one(role)
    fleet.die(old)
    until(lambda: [a for a in fleet.alive(role) if a is not old] != [] and current(fleet))
    fleet.is_watch_broken = False
    again = fleet.one(role)
    fleet.die(again)
    until(lambda: [a for a in fleet.alive(role) if a is not again] != [] and current(fleet))
    running.placement.launch(frame("a"))


@pytest.mark.slow
def test_more_deaths_than_the_budget_are_backed_off_and_mended(
    engine: Callable[..., Supervisor], fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RESTART_WINDOW_S", 4.0)
    running = engine()
    for _ in range(records.FREE_RESTARTS + 1):
        until(lambda: fleet.alive(BATCHER) != [] and current(fleet))
        fleet.die(fleet.one(BATCHER))
    until(lambda: running.status()["failure"] is not None)
    with pytest.raises(EngineError, match=r"the device group has died 6 times lately; it is started again within 1 s"):
        running.placement.launch(frame("a"))
    until(lambda: fleet.alive(BATCHER) != [] and current(fleet) and running.status()["failure"] is None)
    running.placement.launch(frame("b"))
    until(lambda: running.status()["num_restarts"] == 0)


def test_a_pair_that_fails_to_start_is_started_until_it_does(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine()
    failures = iter([OSError("the model folder is gone"), EngineError("no"), KeyboardInterrupt()])

    def fail(_: FakeActor) -> None:
        for error in failures:
            raise PierayError(repr(error))

    fleet.hooks[BATCHER, "load"] = fail
    fleet.die(fleet.one(RESOURCE_MANAGER))
    until(lambda: running._restarts["device group"].num_recent == 4)
    until(lambda: current(fleet) and running.status()["failure"] is None)
    assert len(fleet.alive(RESOURCE_MANAGER)) == len(fleet.alive(BATCHER)) == 1


def test_a_host_that_cannot_be_connected_is_replaced(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    engine()
    stubborn = fleet.one(INFERLETS)

    def refuse(actor: FakeActor) -> None:
        if actor is stubborn:
            raise PierayError("no")

    fleet.hooks[INFERLETS, "connect_group"] = refuse
    fleet.die(fleet.one(BATCHER))
    until(lambda: stubborn.is_dead and current(fleet))


# --- frozen actors -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_frozen_host_is_set_aside_named_and_replaced(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(actor_pool=2)
    running.placement.launch(frame("before"))
    frozen = next(actor for actor in fleet.alive(INFERLETS) if "before" in actor.live)
    fleet.freeze(frozen)
    began = time.monotonic()
    assert running.placement.launch(frame("a"))[0] != frozen.member.name
    until(lambda: frozen.member.is_suspect)
    assert running.placement.launch(frame("b"))[0] != frozen.member.name
    (row,) = [row for row in running.status()["actors"] if row["state"] != "up"]
    assert (row["name"], row["state"], row["pid"]) == (frozen.member.name, "silent", frozen.describe()["pid"])
    assert row["silent_s"] >= 2.0
    assert running.status()["silent"] == [frozen.member.name]
    assert {r["instance_id"]: r["state"] for r in running.placement.ps()} == {
        "before": "unreachable",
        "a": "running",
        "b": "running",
    }
    with pytest.raises(NoAnswer, match=rf"{frozen.member.name} \(pid \d+ on node .*\) does not answer: before ends"):
        running.placement.kill("before", "enough")
    assert time.monotonic() - began < SOON / 2
    until(lambda: frozen.is_dead)
    until(lambda: len(fleet.alive(INFERLETS)) == 2 and running.status()["silent"] == [])
    assert {r["instance_id"] for r in running.placement.ps()} == {"a", "b"}


@pytest.mark.slow
def test_a_launch_meets_no_actor_that_has_just_died(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    """Though nobody has noticed yet: it was not sent there, so it is placed elsewhere."""
    one = engine(actor_pool=2)
    first = fleet.alive(INFERLETS)[0]
    fleet.is_watch_broken = True
    first.is_dead = True
    assert one.placement.launch(frame("a"))[0] in [actor.member.name for actor in fleet.alive(INFERLETS)]
    assert fleet.started == ["a"]
    for actor in fleet.alive(INFERLETS):
        actor.is_dead = True
    assert one.placement.launch(frame("b"))[0] in [actor.member.name for actor in fleet.alive(INFERLETS)]
    assert fleet.started == ["a", "b"]


def test_an_actor_that_dies_with_a_launch_answers_that_it_may_have_run(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    one = engine(actor_pool=2)
    dying = fleet.alive(INFERLETS)[0]

    def die(actor: FakeActor) -> None:
        if actor is dying:
            fleet.die(actor)
            raise ActorGone("killed")

    fleet.hooks[INFERLETS, "launch"] = die
    with pytest.raises(PeerLost, match=r"pieray.inferlets.0 \(pid .* of a, which may have run for a moment"):
        one.placement.launch(frame("a"))
    until(lambda: len(fleet.alive(INFERLETS)) == 2)
    one.placement.launch(frame("b"))
    assert fleet.started == ["b"]


def test_a_dead_actor_grants_no_places(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    one = engine()
    fleet.is_watch_broken = True
    fleet.one(INFERLETS).is_dead = True
    assert one.placement.grant(4) == []
    assert one.placement.launch(frame("a"))[0] in [actor.member.name for actor in fleet.alive(INFERLETS)]


def test_a_launch_that_was_given_up_never_starts(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(max_actors=1, replace_after_s=1000.0)
    (frozen,) = fleet.alive(INFERLETS)
    fleet.freeze(frozen)
    with ThreadPoolExecutor(20) as threads:
        deadline = time.monotonic() + 3.0
        tried = [threads.submit(running.placement.launch, frame(f"lost-{i}"), None, deadline) for i in range(20)]
        for one in tried:
            with pytest.raises(EngineError, match="does not answer|no InferletActor had room in time"):
                one.result(SOON)
    fleet.wake(frozen)
    until(lambda: not frozen.member.is_suspect)
    until(lambda: frozen.calls.count("launch") == 20)
    assert fleet.started == []
    assert running.placement.ps() == []
    running.placement.launch(frame("later"))
    until(lambda: running._hosts.pool.num_live_now() == 1)  # each place that was taken has come back


@pytest.mark.slow
def test_one_that_started_before_its_actor_fell_silent_is_ended(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(max_actors=1, replace_after_s=1000.0)
    (frozen,) = fleet.alive(INFERLETS)
    is_started = threading.Event()
    launch = frozen.launch

    def launch_and_freeze(*args: Any) -> None:
        launch(*args)
        fleet.freeze(frozen)
        is_started.set()
        frozen.running.wait()

    frozen.launch = launch_and_freeze  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        running.placement.launch(frame("unlucky"), None, time.monotonic() + 3.0)
    assert fleet.started == ["unlucky"]
    fleet.wake(frozen)
    until(lambda: frozen.live == {})


@pytest.mark.slow
@pytest.mark.parametrize("role", [BATCHER, RESOURCE_MANAGER, BROKER])
def test_a_frozen_service_is_named_and_replaced(engine: Callable[..., Supervisor], fleet: FakeFleet, role: str) -> None:
    running = engine()
    frozen = fleet.one(role)
    fleet.freeze(frozen)
    until(lambda: running.status()["silent"] == [frozen.member.name])
    running.placement.launch(frame("a"))
    until(lambda: frozen.is_dead and current(fleet))
    until(lambda: running.status()["silent"] == [])


@pytest.mark.slow
def test_one_that_wakes_up_in_time_is_kept(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(replace_after_s=1000.0)
    frozen = fleet.one(BROKER)
    fleet.freeze(frozen)
    until(lambda: frozen.member.is_suspect)
    fleet.wake(frozen)
    until(lambda: running.status()["silent"] == [] and not frozen.member.is_suspect)
    assert not frozen.is_dead


def test_a_long_turn_is_no_freeze_and_one_without_end_is_replaced(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    engine(turn_timeout_s=60.0)
    batcher = fleet.one(BATCHER)
    batcher.busy_s = 59.0
    heard = len([call for call in batcher.calls if call == "pulse"])
    until(lambda: len([call for call in batcher.calls if call == "pulse"]) > heard + 2)
    assert not batcher.is_dead
    batcher.busy_s = 61.0
    until(lambda: batcher.is_dead and current(fleet))


def test_a_controller_that_stood_still_starts_nothing_that_waited_in_it(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    stalls = Stalls(0.2)
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.02):
            stalls.tick()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        running = engine(stalls)
        sent_at = time.monotonic()
        running.placement.launch(frame("prompt"), sent_at)
        stop.set()
        ticking.join()
        time.sleep(0.3)  # frozen; now it wakes up, and this launch was in its queue
        with pytest.raises(Stalled):
            running.placement.launch(frame("late"), sent_at)
        stalls.tick()
        with pytest.raises(Stalled):
            running.placement.launch(frame("late"), sent_at)
        running.placement.launch(frame("anew"), time.monotonic())
        assert fleet.started == ["prompt", "anew"]
    finally:
        stop.set()


def test_no_child_is_launched_past_the_ceiling(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(child_ceiling=2)
    running.placement.launch(frame("a"))
    running.placement.launch(frame("b"))
    with pytest.raises(ChildCeiling, match="child_ceiling: no child is launched while 2 inferlets run") as refused:
        running.placement.launch(frame("c", depth=1))
    told = error_from(refused.value.code, refused.value.message)  # as the Controller's socket tells it
    assert type(told) is ChildCeiling
    fleet.one(INFERLETS).kill("a", "")
    running.placement.launch(frame("c", depth=1))


def test_quotas_of_tenants_are_kept_over_all_actors(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(inferlets_per_actor=1, tenants={"lab": {"inferlets": 2}, "slow": {"tokens_per_minute": 60}})
    for instance_id in "ab":
        running.placement.launch(frame(instance_id, tenant="lab"))
    with pytest.raises(Overloaded, match="inferlets: the quota of tenant 'lab' is 2 at one time; 2 run") as refused:
        running.placement.launch(frame("c", tenant="lab", depth=1))
    assert refused.value.retry_after_s > 0
    running.placement.launch(frame("d", tenant="ann"))
    assert sum(bool(actor.live) for actor in fleet.alive(INFERLETS)) == 3  # perhaps a spare one has been added
    holds = next(actor for actor in fleet.alive(INFERLETS) if "a" in actor.live)
    holds.kill("a", "")
    running.placement.launch(frame("c", tenant="lab"))  # actors are asked before anybody is refused
    fleet.die(next(actor for actor in fleet.alive(INFERLETS) if "b" in actor.live))
    until(lambda: running.placement.admission()["quotas"] == {"lab": {"inferlets": 1}})
    fleet.alive(INFERLETS)[0].tokens = {"slow": 100, "ann": 100}
    until(lambda: "slow" in running.placement.admission()["quotas"])
    with pytest.raises(Overloaded, match="tokens_per_minute: the quota of tenant 'slow' is 60") as slow:
        running.placement.launch(frame("e", tenant="slow"))
    assert 30 < slow.value.retry_after_s <= 41
    assert running.placement.admission()["refused"] == {"lab": 1, "slow": 1}


def test_a_launch_that_finds_no_place_gives_its_quota_back(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(inferlets_per_actor=1, max_actors=1, launch_wait_s=0.3, tenants={"*": {"inferlets": 1}})
    running.placement.launch(frame("a", tenant="ann"))
    for _ in range(2):
        with pytest.raises(Overloaded, match="no InferletActor had room in time"):
            running.placement.launch(frame("b", tenant="lab"))
    assert running.placement.admission() == {"waiting": {}, "refused": {"lab": 2}, "quotas": {"ann": {"inferlets": 1}}}


def test_a_launch_whose_priority_is_none_is_refused_before_it_waits(engine: Callable[..., Supervisor]) -> None:
    with pytest.raises(InvalidRequest, match="priority is a whole number from -100 to 100; given 101"):
        engine().placement.launch(frame("a", priority=101))


def assert_(is_true: bool) -> None:
    assert is_true


def test_places_are_granted_by_the_actor_that_has_them(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    one = engine(inferlets_per_actor=8)
    host = fleet.one(INFERLETS)
    ((endpoint, grant_id, num_places, lifetime_s, clock),) = one.placement.grant(64)
    assert (endpoint, num_places, lifetime_s, host.num_granted) == (host.member.endpoint, 4, placement.GRANT_S, 4)
    assert len(grant_id) == 16
    assert abs(clock - time.monotonic()) < 5.0
    for number in range(8):  # they are called back where launches need them
        one.placement.launch(frame(f"it-{number}"))
    assert len(fleet.alive(INFERLETS)) == 1
    assert host.num_granted == 0


def test_an_actor_that_does_not_answer_grants_nothing_and_its_places_are_counted_until_it_does(
    engine: Callable[..., Supervisor], fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "GRANT_TIMEOUT_S", 0.1)
    one = engine(inferlets_per_actor=8, suspect_after_s=20.0, replace_after_s=40.0)
    host = fleet.one(INFERLETS)
    fleet.freeze(host)
    assert one.placement.grant(64) == []
    assert host.member.num_live == 4
    fleet.wake(host)
    until(lambda: host.num_granted == 4)
    one._hosts.refresh([host.member])
    assert (host.num_granted, host.member.num_live) == (0, 0)


def test_what_was_launched_by_a_grant_is_found_and_listed_when_its_actor_is_silent(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    one = engine(suspect_after_s=2.0, replace_after_s=60.0)
    host = fleet.one(INFERLETS)
    host.launched = [("it-1", "it")]
    until(lambda: host.launched == [])
    until(lambda: one.placement._locations.find("it-1") == ("it", host.member))
    assert one.placement.locate("it-1") == ("it", host.member.endpoint)
    fleet.freeze(host)
    until(lambda: host.member.is_suspect)
    assert [(row["instance_id"], row["state"]) for row in one.placement.ps()] == [("it-1", "unreachable")]
    with pytest.raises(NoAnswer, match="does not answer: it-1 ends when it wakes up"):
        one.placement.kill("it-1", "x")
    with pytest.raises(NoAnswer, match="does not answer: it-2 may run there"):
        one.placement.kill("it-2", "x")
    fleet.wake(host)
    until(lambda: not host.member.is_suspect)
    with pytest.raises(NotFound):
        one.placement.kill("it-2", "x")


def test_a_host_that_is_started_while_the_device_group_is_lost_is_opened_when_there_is_another(
    engine: Callable[..., Supervisor],
) -> None:
    running = engine()
    hosts = running._hosts
    what, told = hosts._groups()[0]
    _, served = hosts._served[0]
    hosts.drop_group(0)
    host = hosts.create()
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(hosts.open, [host])
        time.sleep(0.1)
        assert not opening.done()
        hosts.want_group(*told[:4], served)
        opening.result(SOON)
        assert host.sent[what] == told
        hosts.drop_group(0)
        opening = threads.submit(hosts.open, [host])
        running.shutdown()
        with pytest.raises(EngineError, match="shutting down"):
            opening.result(SOON)


def test_of_several_device_groups_one_that_dies_is_replaced_while_launches_go_on(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(model={"replicas": 3})
    batchers = sorted(fleet.alive(BATCHER), key=lambda a: a.member.name)
    assert [a.member.name for a in batchers] == ["pieray.batcher", "pieray.batcher.1", "pieray.batcher.2"]
    assert sorted(a.member.name for a in fleet.alive(RESOURCE_MANAGER)) == [
        "pieray.resource-manager",
        "pieray.resource-manager.1",
        "pieray.resource-manager.2",
    ]
    assert running.devices.models()[0]["replicas"] == 3
    loading = threading.Event()
    fleet.hooks[BATCHER, "load"] = lambda _: assert_(loading.wait(SOON))
    old = batchers[1]
    pair = next(a for a in fleet.alive(RESOURCE_MANAGER) if a.member.name.endswith(".1"))
    fleet.die(old)
    until(lambda: any("load" in a.calls for a in fleet.alive(BATCHER) if a.member.name == "pieray.batcher.1"))
    assert pair.is_dead
    for number in range(3):
        running.placement.launch(frame(f"it-{number}"))
    assert running.status()["failure"] is None
    loading.set()
    until(lambda: len(fleet.alive(RESOURCE_MANAGER)) == 3 and current(fleet))
    assert [a for a in fleet.alive(BATCHER) if a in (batchers[0], batchers[2])] == [batchers[0], batchers[2]]


def test_while_no_device_group_can_be_used_the_engine_says_why(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(model={"replicas": 2})

    def fail(_: Any) -> None:
        raise ModelError("no memory is left")

    fleet.hooks[BATCHER, "load"] = fail
    fleet.die(next(a for a in fleet.alive(BATCHER) if a.member.name == "pieray.batcher"))
    until(lambda: running.devices.of("").groups[0].keeper.failure is not None)
    assert running.status()["failure"] is None
    running.placement.launch(frame("it-1"))
    fleet.die(next(a for a in fleet.alive(BATCHER) if a.member.name == "pieray.batcher.1"))
    until(lambda: running.status()["failure"] is not None)
    assert "no memory is left" in running.status()["failure"]
    with pytest.raises(EngineError, match="no memory is left"):
        running.placement.launch(frame("it-2"))
    del fleet.hooks[BATCHER, "load"]
    until(lambda: running.status()["failure"] is None and len(fleet.alive(RESOURCE_MANAGER)) == 2)


def test_one_group_that_cannot_be_started_ends_the_start(fleet: FakeFleet) -> None:
    def fail(actor: Any) -> None:
        if actor.member.name == "pieray.batcher.1":
            raise ModelError("this device is too small")

    fleet.hooks[BATCHER, "load"] = fail
    with pytest.raises(ModelError, match="too small"):
        Supervisor(from_mapping(Config, {**SETTINGS, "model": {"replicas": 2}}), fleet).start()
    assert not [a for a in fleet.actors if not a.is_dead]


def test_an_adapter_is_loaded_into_each_group_or_into_none(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(model={"replicas": 2})
    first, second = fleet.alive(BATCHER)
    running.devices.load_adapter({"name": "a"}, b"weights", "tenant")
    assert first.adapters == second.adapters == [1 << 16]

    def fail(actor: Any) -> None:
        if actor is second:
            raise ModelError("it does not fit here")

    fleet.hooks[BATCHER, "add_adapter"] = fail
    with pytest.raises(ModelError, match="does not fit"):
        running.devices.load_adapter({"name": "b"}, b"weights", "tenant")
    assert first.adapters == second.adapters == [1 << 16]
    del fleet.hooks[BATCHER, "add_adapter"]
    fleet.die(first)
    until(lambda: current(fleet) and len(fleet.alive(RESOURCE_MANAGER)) == 2)
    assert next(a for a in fleet.alive(BATCHER) if a is not second).adapters == [1 << 16]
    running.devices.unload_adapter("a", "tenant")
    assert [a.adapters for a in fleet.alive(BATCHER)] == [[], []]


def test_scaling_adds_groups_and_takes_them_away_when_nothing_computes_there(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine()
    running.devices.scale(3, drain_s=0.0)
    until(lambda: current(fleet))
    assert len(fleet.alive(BATCHER)) == running.devices.models()[0]["replicas"] == 3
    assert "tell_news" in fleet.alive(RESOURCE_MANAGER)[0].calls
    first, *others = fleet.alive(RESOURCE_MANAGER)
    others[1].num_programs = 2
    with ThreadPoolExecutor(1) as threads:
        scaling = threads.submit(running.devices.scale, 1, SOON)
        host = fleet.one(INFERLETS)
        until(lambda: host.draining == {1, 2})
        time.sleep(0.3)
        assert not scaling.done()
        assert len(fleet.alive(BATCHER)) == 3
        others[1].num_programs = 0
        scaling.result(SOON)
    assert fleet.alive(RESOURCE_MANAGER) == [first]
    until(lambda: list(host.groups) == [0])
    running.placement.launch(frame("it-1"))
    time.sleep(0.3)
    assert len(fleet.alive(BATCHER)) == 1, "what was taken away is not brought up again"
    running.devices.scale(2, drain_s=0.0)
    until(lambda: list(host.groups) == [0, 3])  # numbers are never given out again


def test_what_computes_for_too_long_on_a_group_that_goes_is_not_waited_for(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(model={"replicas": 2})
    last = next(a for a in fleet.alive(RESOURCE_MANAGER) if a.member.name == "pieray.resource-manager.1")
    last.num_programs = 1
    began = time.monotonic()
    running.devices.scale(1, drain_s=0.5)
    assert 0.5 <= time.monotonic() - began < SOON
    assert last.is_dead


def test_a_replica_that_cannot_be_started_leaves_those_that_there_are(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine()

    def fail(actor: Any) -> None:
        if actor.member.name == "pieray.batcher.2":
            raise ModelError("this device is too small")

    fleet.hooks[BATCHER, "load"] = fail
    with pytest.raises(ModelError, match="too small"):
        running.devices.scale(3, drain_s=0.0)
    assert [a.member.name for a in fleet.alive(BATCHER)] == ["pieray.batcher"]
    assert running.devices.models()[0]["replicas"] == 1
    for wrong in (0, -1, 257):
        with pytest.raises(InvalidRequest, match=f"from 1 to 256 replicas; given {wrong}"):
            running.devices.scale(wrong, drain_s=0.0)
    running.placement.launch(frame("it-1"))


def test_a_host_that_reaches_one_device_group_is_kept_however_long_another_is_out_of_reach(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(model={"replicas": 2})
    host = fleet.one(INFERLETS)
    tried: list[int] = []

    def refuse(_: Any) -> None:
        tried.append(1)
        raise PeerLost("no route")

    fleet.hooks[INFERLETS, "connect_group"] = refuse
    fleet.die(next(a for a in fleet.alive(BATCHER) if a.member.name == "pieray.batcher.1"))
    until(lambda: len(tried) > 5)
    running.placement.launch(frame("it-1"))
    assert fleet.one(INFERLETS) is host
    del fleet.hooks[INFERLETS, "connect_group"]
    until(lambda: current(fleet))


def test_an_adapter_goes_everywhere_also_where_a_batcher_does_not_answer(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(model={"replicas": 3})
    running.devices.load_adapter({"name": "a"}, b"weights", "tenant")

    def refuse(actor: Any) -> None:
        if actor.member.name == "pieray.batcher":
            raise EngineError("it is dying")

    fleet.hooks[BATCHER, "remove_adapter"] = refuse
    running.devices.unload_adapter("a", "tenant")
    assert sorted(len(a.adapters) for a in fleet.alive(BATCHER)) == [0, 0, 1]
    del fleet.hooks[BATCHER, "remove_adapter"]
    running.devices.load_adapter({"name": "b"}, b"weights", "tenant")

    def too_small(actor: Any) -> None:
        if actor.member.name == "pieray.batcher.2":
            raise ModelError("it does not fit here")

    fleet.hooks[BATCHER, "add_adapter"] = too_small
    fleet.die(next(a for a in fleet.alive(BATCHER) if a.member.name == "pieray.batcher.2"))
    until(lambda: current(fleet) and len(fleet.alive(RESOURCE_MANAGER)) == 3)
    assert running.devices.adapters.facts() == []
    assert [a.adapters for a in fleet.alive(BATCHER) if a.member.name == "pieray.batcher.1"] == [[]]


def test_exports_are_told_and_dropped_while_one_group_does_not_answer(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(model={"replicas": 2})
    first, second = sorted(fleet.alive(RESOURCE_MANAGER), key=lambda a: a.member.name)
    second.exported = {"x": {"name": "x", "access": "owner"}}

    def refuse(actor: Any) -> None:
        if actor is first:
            raise EngineError("it does not answer")

    for method in ("exports", "drop_export"):
        fleet.hooks[RESOURCE_MANAGER, method] = refuse
    assert running.devices.exports() == [{"name": "x", "access": "owner", "group": 1, "model": "pie-tiny"}]
    assert running.devices.drop_export("x", "", "", "")["name"] == "x"
    with pytest.raises(NotFound, match="'x'"):
        running.devices.drop_export("x", "", "", "")
    fleet.hooks[RESOURCE_MANAGER, "exports"] = lambda _: refuse(first)
    with pytest.raises(EngineError, match="does not answer"):
        running.devices.exports()


def test_each_model_has_groups_of_its_own_and_stands_and_falls_for_itself(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(models={"small": {"path": "pie-tiny", "replicas": 2}, "third": "pie-tiny"})
    assert [(one["name"], one["replicas"]) for one in running.devices.models()] == [
        ("m", 1),
        ("small", 2),
        ("third", 1),
    ]
    assert sorted((a.member.model, a.member.number) for a in fleet.alive(BATCHER)) == [
        ("", 0),
        ("small", 1),
        ("small", 2),
        ("third", 3),
    ]
    host = fleet.one(INFERLETS)
    assert [one["info"]["name"] for one in host.served] == ["m", "small", "third"]
    assert host.models == {0: "", 1: "small", 2: "small", 3: "third"}
    rows = {(row["role"], row["group"]): row["model"] for row in running.status()["actors"] if "group" in row}
    assert rows[BATCHER, 2] == rows[RESOURCE_MANAGER, 2] == "small"

    loading = threading.Event()

    def slow(_actor: FakeActor) -> None:
        loading.wait(SOON)

    fleet.hooks[BATCHER, "load"] = slow
    fleet.die(next(a for a in fleet.alive(BATCHER) if a.member.model == "third"))
    until(lambda: len(fleet.alive(RESOURCE_MANAGER)) == 4 and len(running.devices.of("third").running()) == 0)
    running.placement.launch(frame("while-it-is-away"))  # on the default model all is well
    assert running.devices.failure is None
    new = running._hosts._new()  # and hosts that start meanwhile know of the model too
    assert [one["info"]["name"] for one in new.handle.served] == ["m", "small", "third"]
    running._hosts.pool.add([new])
    loading.set()
    until(lambda: len(running.devices.of("third").running()) == 2 and new.handle.models.get(3) == "third")
    with pytest.raises(NotFound, match=r"no model is named 'large'; served: pie-tiny, small, third"):
        running.devices.scale(2, 1.0, "large")


def test_a_model_is_scaled_beside_others(engine: Callable[..., Supervisor], fleet: FakeFleet) -> None:
    running = engine(models={"small": "pie-tiny"})
    running.devices.scale(3, 1.0, "small")
    running.devices.scale(2, 1.0)
    assert sorted((a.member.model, a.member.number) for a in fleet.alive(BATCHER)) == [
        ("", 0),
        ("", 4),
        ("small", 1),
        ("small", 2),
        ("small", 3),
    ]
    running.devices.scale(1, 1.0, "small")
    assert [one["replicas"] for one in running.devices.models()] == [2, 1]
    host = fleet.one(INFERLETS)
    until(lambda: sorted(host.groups) == [0, 1, 4])
    assert host.models[4] == ""


def test_exports_of_all_models_are_told_with_whose_they_are(
    engine: Callable[..., Supervisor], fleet: FakeFleet
) -> None:
    running = engine(models={"small": "pie-tiny"})
    for actor in fleet.alive(RESOURCE_MANAGER):
        actor.exported["a"] = {"name": "a", "of": actor.member.model}
    assert [(one["model"], one["of"]) for one in running.devices.exports()] == [("pie-tiny", ""), ("small", "small")]
    assert running.devices.drop_export("a", "", "", "")["of"] == ""
    assert running.devices.drop_export("a", "", "", "")["of"] == "small"
    with pytest.raises(NotFound):
        running.devices.drop_export("a", "", "", "")
