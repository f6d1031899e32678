"""Fair shares of a pool of threads: who waits for whom, whatever others ask for."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.concurrency.fair_pool import FairPool, FairQueue
from pieray.errors import Cancelled, DeadlineExceeded, InvalidRequest, PierayError, QuotaExceeded

WAIT_S = 30.0


def served(queue: FairQueue[tuple[str, str, float]], count: int) -> list[tuple[str, str]]:
    """Whose items are taken, each charged with what it says that it costs."""
    order = []
    for _ in range(count):
        item = queue.pop()
        assert item is not None
        tenant, owner, cost = item
        queue.charge(tenant, owner, cost)
        order.append((tenant, owner))
    return order


def filled(*items: tuple[str, str, float]) -> FairQueue[tuple[str, str, float]]:
    queue: FairQueue[tuple[str, str, float]] = FairQueue()
    for item in items:
        queue.put(item[0], item[1], item)
    return queue


def test_tenants_take_turns_and_so_do_their_owners():
    queue = filled(*[("a", "a1", 1.0)] * 4, *[("a", "a2", 1.0)] * 2, *[("b", "b1", 1.0)] * 3)
    assert served(queue, 9) == [
        ("a", "a1"),
        ("b", "b1"),
        ("a", "a2"),
        ("b", "b1"),
        ("a", "a1"),
        ("b", "b1"),
        ("a", "a2"),
        ("a", "a1"),
        ("a", "a1"),
    ]
    assert len(queue) == 0


def test_who_asks_for_little_waits_for_no_second_costly_item():
    queue = filled(*[("costly", "c", 10.0)] * 5, *[("cheap", "x", 1.0)] * 10)
    assert [tenant for tenant, _ in served(queue, 12)].count("costly") == 2


def test_a_tenant_that_was_away_has_saved_no_time_up():
    queue = filled(*[("a", "a", 1.0)] * 100)
    served(queue, 50)
    for _ in range(50):
        queue.put("b", "b", ("b", "b", 1.0))
    assert [tenant for tenant, _ in served(queue, 20)].count("b") == 10


def test_a_pause_pays_no_debt():
    """Who has just had a costly item and comes back at once is behind the others until they have had as much."""
    queue = filled(("a", "a", 5.0), *[("b", "b", 1.0)] * 10)
    order = [tenant for tenant, _ in served(queue, 1)]
    queue.put("a", "a", ("a", "a", 5.0))
    order += [tenant for tenant, _ in served(queue, 7)]
    assert order.count("a") == 2
    assert order.index("a") == 0
    assert order[1:6] == ["b"] * 5


ITEMS = st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.floats(0.1, 5.0))


@given(st.lists(ITEMS, min_size=1, max_size=80))
def test_no_tenant_that_waits_falls_behind_another_by_more_than_one_item(items):
    """All ask at once: while two tenants both have items, their use differs by one item's cost at most; nothing is
    lost, and each owner's items come in order."""
    queue: FairQueue[tuple[str, str, float, int]] = FairQueue()
    for number, (tenant, owner, cost) in enumerate(items):
        queue.put(tenant, owner, (tenant, owner, cost, number))
    used = dict.fromkeys("abc", 0.0)
    last: dict[tuple[str, str], int] = {}
    most = max(cost for _, _, cost in items)
    while (item := queue.pop()) is not None:
        tenant, owner, cost, number = item
        assert last.get((tenant, owner), -1) < number
        last[tenant, owner] = number
        used[tenant] += cost
        queue.charge(tenant, owner, cost)
        waiting = [t for t in "abc" if queue.num_waiting(t)]
        assert all(used[t] <= used[w] + most + 1e-9 for w in waiting for t in "abc")
    assert sum(used.values()) == pytest.approx(sum(cost for _, _, cost in items))


@given(st.lists(st.tuples(st.sampled_from(["put", "pop", "remove"]), st.sampled_from("ab"), st.sampled_from("xy"))))
def test_counts_are_those_of_the_items(operations):
    queue: FairQueue[int] = FairQueue()
    held: dict[int, tuple[str, str]] = {}
    for number, (what, tenant, owner) in enumerate(operations):
        if what == "put":
            queue.put(tenant, owner, number)
            held[number] = tenant, owner
        elif what == "pop":
            item = queue.pop(lambda t, tenant=tenant: t == tenant)
            assert (item is None) == (tenant not in {t for t, _ in held.values()})
            held.pop(-1 if item is None else item, None)
        else:
            mine = [n for n, who in held.items() if who == (tenant, owner)]
            assert queue.remove(tenant, owner, mine[0] if mine else -1) == bool(mine)
            held.pop(mine[0] if mine else -1, None)
        assert len(queue) == len(held)
        assert all(queue.num_waiting(t) == [who[0] for who in held.values()].count(t) for t in "ab")


def test_one_tenant_never_has_all_threads():
    """However long its jobs take, another's begins at once."""
    release = threading.Event()
    with closing(FairPool("test", 2)) as pool:
        greedy = [pool.submit(lambda: release.wait(WAIT_S), tenant="greedy") for _ in range(20)]
        assert pool.submit(lambda: "here", tenant="modest").result(WAIT_S) == "here"
        assert not any(future.done() for future in greedy)
        release.set()
        assert all(future.result(WAIT_S) for future in greedy)


def test_threads_start_with_work_and_all_are_used():
    barrier = threading.Barrier(3)
    with closing(FairPool("test", 3)) as pool:
        futures = [pool.submit(lambda: barrier.wait(WAIT_S), tenant=t) for t in "abc"]
        assert sorted(future.result(WAIT_S) for future in futures) == [0, 1, 2]


def test_a_job_taken_back_never_runs_and_frees_its_place():
    release, ran = threading.Event(), []
    with closing(FairPool("test", 1, max_waiting=1)) as pool:
        first = pool.submit(lambda: release.wait(WAIT_S), tenant="a")
        wait_until(lambda: pool.num_waiting("a") == 0)
        second = pool.submit(lambda: ran.append(1), tenant="a")
        with pytest.raises(QuotaExceeded, match="at most 1 jobs of one tenant wait at one time; 1 do"):
            pool.submit(lambda: ran.append(2), tenant="a")
        assert second.cancel()
        third = pool.submit(lambda: ran.append(3), tenant="a")
        release.set()
        third.result(WAIT_S)
        assert first.result(WAIT_S)
        assert ran == [3]
        with pytest.raises(CancelledError):
            second.result(0)


def test_a_job_that_no_thread_takes_in_time_fails():
    release = threading.Event()
    with closing(FairPool("test", 1)) as pool:
        pool.submit(lambda: release.wait(WAIT_S), tenant="a")
        wait_until(lambda: pool.num_waiting("a") == 0)
        with pytest.raises(DeadlineExceeded, match=r"no thread came free within 0\.05 s"):
            pool.submit(lambda: None, tenant="b", wait_s=0.05).result(WAIT_S)
        release.set()


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


def test_whatever_a_job_raises_fails_that_job_alone():
    def panic() -> None:
        raise Panic("native code")

    def refuse() -> None:
        raise InvalidRequest("no")

    with closing(FairPool("test", 1)) as pool:
        with pytest.raises(PierayError, match=r"test failed: Panic\('native code'\)"):
            pool.submit(panic, tenant="a").result(WAIT_S)
        with pytest.raises(InvalidRequest, match="no"):
            pool.submit(refuse, tenant="a").result(WAIT_S)
        assert pool.submit(lambda: 5, tenant="a").result(WAIT_S) == 5


def test_a_thread_survives_what_is_called_when_a_job_is_done():
    def panic(_: object) -> None:
        raise Panic("in a callback")

    gate = threading.Event()
    with closing(FairPool("test", 1)) as pool:
        first = pool.submit(lambda: gate.wait(WAIT_S), tenant="a")
        first.add_done_callback(panic)
        gate.set()
        assert pool.submit(lambda: 5, tenant="a").result(WAIT_S) == 5


def test_closing_fails_what_waits():
    release = threading.Event()
    pool = FairPool("test", 1)
    running = pool.submit(lambda: release.wait(WAIT_S), tenant="a")
    wait_until(lambda: pool.num_waiting("a") == 0)
    waiting = pool.submit(lambda: None, tenant="a", wait_s=WAIT_S)
    pool.close()
    with pytest.raises(Cancelled):
        waiting.result(WAIT_S)
    with pytest.raises(Cancelled):
        pool.submit(lambda: None, tenant="b")
    release.set()
    assert running.result(WAIT_S)


def wait_until(condition) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
