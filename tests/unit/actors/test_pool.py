"""Placing inferlets on actors, without Ray: places are counted, growth is shared, the silent are set aside."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from pieray.actors.admission import Standing
from pieray.actors.members import INFERLETS, Member
from pieray.actors.pool import KEEP_IDLE_S, MAX_GROWING, HostPool
from pieray.errors import EngineError, InvalidRequest, NoAnswer, NoRoom, Overloaded, PierayError

SOON = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Actor:
    """What a fake InferletActor holds."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.live = self.returned = self.most = self.granted = 0
        self.lock = threading.Lock()

    def launch(self) -> None:
        with self.lock:
            if self.live >= self.capacity:
                self.returned += 1
                raise NoRoom(f"inferlets_per_actor: the limit is {self.capacity}; one more was launched")
            self.live += 1
            self.most = max(self.most, self.live)

    def end_one(self) -> None:
        with self.lock:
            self.live -= 1
            self.returned += 1


class Crew:
    """A pool of fake actors."""

    def __init__(
        self, capacity: int, spare: int = 1, max_hosts: int = 64, create_s: float = 0.0, max_waiting: int = 1024
    ) -> None:
        self.capacity = capacity
        self.create_s = create_s
        self.actors: dict[str, Actor] = {}
        self.ended: list[str] = []
        self.num_creating = self.most_creating = self.num_refreshes = 0
        self.failure: PierayError | None = None
        self.lock = threading.Lock()
        self.pool = HostPool(
            capacity=capacity,
            spare=spare,
            max_hosts=max_hosts,
            create=self.create,
            end=self.end,
            refresh=self.refresh,
            max_waiting=max_waiting,
        )
        self.pool.add([self.create() for _ in range(spare)])

    def create(self) -> Member:
        with self.lock:
            self.num_creating += 1
            self.most_creating = max(self.most_creating, self.num_creating)
        time.sleep(self.create_s)
        with self.lock:
            self.num_creating -= 1
            if self.failure is not None:
                raise self.failure
            name = f"a{len(self.actors)}"
            self.actors[name] = Actor(self.capacity)
        return Member(INFERLETS, name, name)

    def end(self, host: Member) -> None:
        self.ended.append(host.name)

    def refresh(self, hosts: list[Member]) -> None:
        self.num_refreshes += 1
        for host in hosts:
            actor = self.actors[host.name]
            actor.returned, actor.granted = actor.returned + actor.granted, 0
            host.returned(actor.returned)

    def grant(self, num_places: int) -> list[tuple[str, int]]:
        found = self.pool.grant(num_places)
        for host, count in found:
            self.actors[host.name].granted += count
        return [(host.name, count) for host, count in found]

    def launch(self, timeout_s: float = SOON) -> str:
        return self.pool.launch(lambda host: self.actors[host.name].launch(), time.monotonic() + timeout_s).name

    def host(self, name: str) -> Member:
        return next(host for host in self.pool.hosts() if host.name == name)


def test_inferlets_fill_actors_evenly_and_new_ones_come_when_all_are_full() -> None:
    crew = Crew(capacity=2, spare=2)
    assert [crew.launch() for _ in range(5)] == ["a0", "a1", "a0", "a1", "a2"]


def test_a_storm_starts_as_many_actors_as_it_needs() -> None:
    crew = Crew(capacity=64, create_s=0.2)
    with ThreadPoolExecutor(120) as threads:
        placed = list(threads.map(lambda _: crew.launch(), range(120)))
    assert (placed.count("a0"), placed.count("a1")) == (64, 56)
    assert list(crew.actors) == ["a0", "a1"]
    assert crew.num_refreshes <= 56  # those that wait share one question; none asks again


def test_a_storm_on_small_actors_fails_none_and_grows_within_bounds() -> None:
    crew = Crew(capacity=2, create_s=0.05)
    with ThreadPoolExecutor(16) as threads:
        placed = list(threads.map(lambda _: crew.launch(), range(16)))
    assert sorted(placed) == sorted(f"a{i}" for i in range(8) for _ in range(2))
    assert {actor.most for actor in crew.actors.values()} == {2}
    assert crew.most_creating <= MAX_GROWING


def test_at_most_max_hosts_run_and_who_finds_no_room_waits_for_it() -> None:
    crew = Crew(capacity=1, max_hosts=2)
    assert [crew.launch(), crew.launch()] == ["a0", "a1"]
    with pytest.raises(Overloaded, match=r"no InferletActor had room in time: 2 run, max_actors is 2, .* is 1"):
        crew.launch(timeout_s=0.2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(crew.launch)
        until(lambda: crew.pool.num_waiting == 1)
        crew.actors["a1"].end_one()
        crew.refresh(crew.pool.hosts())  # as a sign of life does
        crew.pool.noted()
        assert waiting.result(SOON) == "a1"
    assert len(crew.actors) == 2


def test_places_given_back_are_asked_for_before_an_actor_is_started() -> None:
    crew = Crew(capacity=1)
    for _ in range(5):
        assert crew.launch() == "a0"
        crew.actors["a0"].end_one()
    assert list(crew.actors) == ["a0"]


def test_launches_under_way_take_their_places() -> None:
    crew = Crew(capacity=1, spare=2)
    first, going = threading.Event(), threading.Event()

    def slow(_host: Member) -> None:
        first.set()
        assert going.wait(SOON)

    with ThreadPoolExecutor(1) as threads:
        slow_one = threads.submit(crew.pool.launch, slow, time.monotonic() + SOON)
        assert first.wait(SOON)
        assert crew.launch() == "a1"
        assert crew.pool.num_live() == 2
        going.set()
        assert slow_one.result(SOON).name == "a0"


def test_a_refused_launch_gives_its_place_back_and_is_not_tried_elsewhere() -> None:
    crew = Crew(capacity=1)

    def refuse(host: Member) -> None:
        crew.actors[host.name].returned += 1
        raise InvalidRequest("no such program")

    for _ in range(3):
        with pytest.raises(InvalidRequest):
            crew.pool.launch(refuse, time.monotonic() + SOON)
    assert list(crew.actors) == ["a0"]
    assert crew.pool.num_live_now() == 0


def test_late_reports_change_nothing() -> None:
    host = Member(INFERLETS, "a0", None, num_sent=5)
    host.returned(3)
    host.returned(1)
    assert host.num_live == 2


def test_a_launch_that_its_actor_leaves_unanswered_is_tried_on_one_other() -> None:
    crew = Crew(capacity=4, spare=2)
    tried: list[str] = []

    def freeze(host: Member) -> None:
        tried.append(host.name)
        host.is_suspect = True
        raise NoAnswer(f"{host.name} is frozen")

    with pytest.raises(NoAnswer, match="a1 is frozen"):
        crew.pool.launch(freeze, time.monotonic() + SOON)
    assert tried == ["a0", "a1"]

    def slow(host: Member) -> None:
        raise NoAnswer(f"{host.name} took too long")  # though it lives: it may start it yet

    with pytest.raises(NoAnswer, match="a2 took too long"):
        crew.pool.launch(slow, time.monotonic() + SOON)


def test_nothing_is_placed_on_a_suspect_and_another_takes_its_place() -> None:
    crew = Crew(capacity=4)
    crew.host("a0").is_suspect = True
    assert {crew.launch() for _ in range(3)} == {"a1"}
    crew.host("a0").is_suspect = False
    assert crew.launch() == "a0"


def test_launches_wait_for_an_actor_that_is_being_reconnected() -> None:
    crew = Crew(capacity=4)
    host = crew.host("a0")
    host.is_current = False
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(crew.launch)
        until(lambda: crew.pool.num_waiting == 1)
        time.sleep(0.05)
        assert not waiting.done()
        host.is_current = True
        crew.pool.noted()
        assert waiting.result(SOON) == "a0"
    assert list(crew.actors) == ["a0"]


def test_who_waits_for_an_actor_that_cannot_be_started_is_told() -> None:
    crew = Crew(capacity=1, create_s=0.05)
    crew.launch()
    crew.failure = EngineError("no memory is left")
    with pytest.raises(EngineError, match="could be started for it: no memory is left"):
        crew.launch()
    crew.failure = None
    assert crew.launch() == "a1"  # the next one tries again


def test_room_is_made_before_it_is_needed() -> None:
    crew = Crew(capacity=1)
    crew.launch()
    crew.pool.tend(now=0.0)
    until(lambda: len(crew.pool.hosts()) == 2)
    crew.pool.tend(now=0.0)
    assert crew.launch() == "a1"


def test_actors_that_nobody_needs_leave_and_not_before_their_time() -> None:
    crew = Crew(capacity=1)
    for _ in range(3):
        crew.launch()
    for name in ("a1", "a2"):
        crew.actors[name].end_one()
    crew.refresh(crew.pool.hosts())
    start = max(h.used_at for h in crew.pool.hosts())
    crew.pool.tend(start + KEEP_IDLE_S / 2)
    assert crew.ended == []
    crew.pool.tend(start + KEEP_IDLE_S + 1)
    assert crew.ended == ["a1"]
    assert [h.name for h in crew.pool.hosts()] == ["a0", "a2"]


def test_a_pool_that_is_closed_answers_who_waits_and_ends_what_comes_up() -> None:
    crew = Crew(capacity=1, create_s=0.2)
    crew.launch()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(crew.launch)
        until(lambda: crew.num_creating == 1)
        crew.pool.close()
        with pytest.raises(EngineError, match="shutting down"):
            waiting.result(SOON)
    until(lambda: crew.ended == ["a1"])


def test_a_grant_is_half_of_what_each_actor_has_and_one_in_all_at_least() -> None:
    crew = Crew(capacity=8, spare=2)
    assert crew.launch() == "a0"
    assert [crew.grant(64) for _ in range(6)] == [
        [("a1", 4), ("a0", 3)],
        [("a0", 2), ("a1", 2)],
        [("a0", 1), ("a1", 1)],
        [("a0", 1)],
        [("a1", 1)],
        [],
    ]
    assert crew.grant(1) == []
    assert [host.num_live for host in crew.pool.hosts()] == [8, 8]


def test_places_that_were_granted_and_are_free_are_called_back_before_an_actor_is_started() -> None:
    crew = Crew(capacity=4)
    assert crew.grant(64) == [("a0", 2)]
    assert [crew.launch() for _ in range(4)] == ["a0"] * 4
    assert crew.num_refreshes == 1
    assert crew.launch() == "a1"


def test_nothing_is_granted_while_launches_wait() -> None:
    crew = Crew(capacity=1, max_hosts=1)
    crew.launch()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(crew.launch)
        until(lambda: crew.pool.num_waiting == 1)
        assert crew.grant(1) == []
        crew.actors["a0"].end_one()
        crew.refresh(crew.pool.hosts())
        crew.pool.noted()
        assert waiting.result(SOON) == "a0"


def test_of_two_that_race_for_the_last_place_one_has_it() -> None:
    for _ in range(50):
        crew = Crew(capacity=1)
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda _, crew=crew: crew.grant(4), range(2)))
        assert sorted(found) == [[], [("a0", 1)]]


def test_a_client_has_one_of_actors_that_hold_one_each() -> None:
    crew = Crew(capacity=1, spare=4)
    assert [crew.grant(4) for _ in range(5)] == [[("a0", 1)], [("a1", 1)], [("a2", 1)], [("a3", 1)], []]


def test_as_many_actors_are_kept_and_one_with_room() -> None:
    crew = Crew(capacity=2, spare=4)
    for _ in range(7):
        crew.launch()
    crew.pool.tend(now=0.0)
    assert crew.num_creating == 0
    crew.launch()
    crew.pool.tend(now=0.0)
    until(lambda: len(crew.pool.hosts()) == 5)
    crew.pool.tend(now=0.0)
    time.sleep(0.05)
    assert len(crew.actors) == 5


def test_places_that_could_not_be_opened_are_free_again() -> None:
    crew = Crew(capacity=8, spare=2)
    (host, count), _ = crew.pool.grant(8)
    crew.pool.not_granted(host, count)
    assert sorted(one.num_live for one in crew.pool.hosts()) == [0, 4]


def test_places_are_granted_over_the_actors_with_the_most_room() -> None:
    crew = Crew(capacity=16, spare=4)
    assert [crew.launch() for _ in range(5)] == ["a0", "a1", "a2", "a3", "a0"]
    assert crew.grant(3) == [("a1", 1), ("a2", 1), ("a3", 1)]
    assert crew.grant(9) == [("a0", 3), ("a1", 3), ("a2", 3)]


def waiting_for_a_place(crew: Crew, threads: ThreadPoolExecutor, **standing: Any) -> Future[Member]:
    """A launch that gets into line, behind those that are there."""
    num_before = crew.pool.num_waiting
    launching = threads.submit(
        crew.pool.launch, lambda host: crew.actors[host.name].launch(), time.monotonic() + SOON, Standing(**standing)
    )
    until(lambda: crew.pool.num_waiting == num_before + 1)
    return launching


def test_who_ranks_higher_passes_those_that_wait() -> None:
    crew = Crew(capacity=1, max_hosts=1)
    crew.launch()
    with ThreadPoolExecutor(3) as threads:
        plain = waiting_for_a_place(crew, threads)
        urgent = waiting_for_a_place(crew, threads, deadline=9.0)
        high = waiting_for_a_place(crew, threads, priority=1)
        for first, others in ((high, (plain, urgent)), (urgent, (plain,)), (plain, ())):
            crew.actors["a0"].end_one()
            assert first.result(SOON).name == "a0"
            assert [other.done() for other in others] == [False] * len(others)


def test_when_too_many_wait_the_last_is_told_at_once_when_to_come_again() -> None:
    crew = Crew(capacity=1, max_hosts=1, max_waiting=2)
    crew.launch()
    for _ in range(4):
        crew.actors["a0"].end_one()
        crew.launch()
    with ThreadPoolExecutor(3) as threads:
        waiting = [waiting_for_a_place(crew, threads, tenant=tenant) for tenant in ("crowd", "ann")]
        began = time.monotonic()
        with pytest.raises(Overloaded, match="max_waiting_launches: 2 launches wait .* try again in") as full:
            crew.pool.launch(lambda _: None, time.monotonic() + SOON, Standing("crowd"))
        assert time.monotonic() - began < 5.0
        assert 0 < full.value.retry_after_s < 60
        high = threads.submit(crew.pool.launch, lambda _: None, time.monotonic() + SOON, Standing("ann", priority=1))
        with pytest.raises(Overloaded, match="max_waiting_launches"):
            waiting[1].result(SOON)  # of two of one tenant: who ranks last
        assert crew.pool.launches() == {"waiting": {"crowd": 1, "ann": 1}, "refused": {"crowd": 1, "ann": 1}}
        for launching in (high, waiting[0]):
            with crew.actors["a0"].lock:
                crew.actors["a0"].returned += 1
                crew.actors["a0"].live = 0
            assert launching.result(SOON).name == "a0"
    assert crew.pool.launches()["waiting"] == {}


def test_a_thousand_that_wait_are_all_served() -> None:
    crew = Crew(capacity=4, max_hosts=2)
    num_served = 0

    def one(number: int) -> None:
        nonlocal num_served
        host = crew.pool.launch(
            lambda host: crew.actors[host.name].launch(),
            time.monotonic() + SOON,
            Standing(f"t{number % 7}", number % 5),
        )
        time.sleep(0.001)
        crew.actors[host.name].end_one()
        crew.refresh([host])
        crew.pool.noted()
        with crew.lock:
            num_served += 1

    with ThreadPoolExecutor(300) as threads:
        list(threads.map(one, range(1000)))
    assert num_served == 1000
    assert {actor.most for actor in crew.actors.values()} == {4}
    assert crew.pool.num_live_now() == 0
