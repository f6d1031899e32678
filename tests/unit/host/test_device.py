"""The device client over real connections: a real LeaseService, a scripted batcher."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from groups import TOKEN, Group, ScriptedBatcher, until

from pieray.errors import DeviceLost, PierayError
from pieray.host.device.device import MANY_WAIT, SHORT_S, DeviceClient
from pieray.messages import PeerFenced
from pieray.transport import connect


class Recorder:
    """A tenant that records."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, object]] = []
        self.pages: list[int] = []
        self.failures: list[PierayError] = []
        self.lost: list[DeviceLost] = []
        self.spare: list[int] = []

    def answered(self, answers: Sequence[tuple[int, object]]) -> None:
        self.answers.extend(answers)

    def granted(self, pages: list[int], _num_found: int) -> None:
        self.pages.extend(pages)

    def lease_failed(self, error: PierayError) -> None:
        self.failures.append(error)

    def ledger_answered(self, _ticket: int, result: object) -> None:
        raise AssertionError(f"it has asked for nothing, and got {result}")

    def preempt(self, _kept: Sequence[int], _shared: Sequence[int]) -> None:
        raise AssertionError("nobody lacks pages")

    def device_lost(self, error: DeviceLost) -> None:
        self.lost.append(error)

    def reclaim(self) -> list[int]:
        spare, self.spare = self.spare, []
        return spare

    def is_idle(self, _now: float) -> bool:
        return False


@pytest.fixture
def group() -> Iterator[Group]:
    group = Group(num_pages=10)
    yield group
    group.close()


def lease(client: DeviceClient, number: int, count: int, deadline_s: float = 5.0) -> None:
    client.lease(number, count, deadline_s)
    client.flush()


def test_pages_come_back_only_when_the_batcher_has_let_go(group: Group) -> None:
    client, tenant, ended = group.client("a"), Recorder(), threading.Event()
    client.admit(1, tenant)
    lease(client, 1, 4)
    until(lambda: tenant.pages == [0, 1, 2, 3])
    group.batcher.may_cancel.clear()
    client.retire(1, ended.set)
    time.sleep(0.05)
    assert group.free() == 6
    assert not ended.is_set()
    group.batcher.may_cancel.set()
    assert ended.wait(5)
    until(lambda: group.free() == 10)


def test_a_lease_that_waits_is_served_by_spare_pages_of_others(group: Group) -> None:
    client, rich, poor = group.client("a"), Recorder(), Recorder()
    client.admit(1, rich)
    client.admit(2, poor)
    lease(client, 1, 8)
    until(lambda: len(rich.pages) == 8)
    rich.spare = rich.pages[4:]
    lease(client, 2, 5)
    until(lambda: len(poor.pages) == 5)
    assert group.free() == 1


def test_a_lease_ahead_of_need_does_not_wait(group: Group) -> None:
    client, tenant = group.client("a"), Recorder()
    client.admit(1, tenant)
    lease(client, 1, 9)
    until(lambda: len(tenant.pages) == 9)
    client.admit(2, other := Recorder())
    lease(client, 2, 2, deadline_s=0.0)
    until(lambda: len(other.failures) == 1)
    assert other.failures[0].code == "out-of-pages"


def test_a_lease_past_its_deadline_fails_and_names_the_numbers(group: Group) -> None:
    client, tenant = group.client("a"), Recorder()
    client.admit(1, tenant)
    lease(client, 1, 9)
    client.admit(2, other := Recorder())
    lease(client, 2, 2, deadline_s=0.05)
    until(lambda: len(other.failures) == 1)
    assert "2 pages were asked for, and 1 of the pool's 10" in other.failures[0].message


def test_pages_are_short_for_those_who_would_come_behind_many_that_wait(group: Group) -> None:
    client, first = group.client("a"), Recorder()
    client.admit(1, first, "lab", priority=4)
    lease(client, 1, 10)
    until(lambda: len(first.pages) == 10)
    waiting = []
    for number in range(2, 2 + MANY_WAIT):
        assert not client.is_short("lab", 0)
        client.admit(number, one := Recorder(), "lab", priority=3)
        lease(client, number, 1)
        waiting.append(one)
    until(lambda: client.is_short("lab", 0))
    assert client.is_short("lab", 3)
    assert not client.is_short("lab", 4)
    assert not client.is_short("other", 0)
    lease(client, 2, 1)  # it asks once more: it has not waited for long
    assert not client.is_short("lab", 0)
    client.release(1, first.pages)
    client.flush()
    until(lambda: all(one.pages for one in waiting))
    time.sleep(2 * SHORT_S)
    assert not client.is_short("lab", 0)


def test_pages_of_a_dead_actor_wait_for_the_fence(group: Group) -> None:
    client, tenant = group.client("a"), Recorder()
    client.admit(1, tenant)
    lease(client, 1, 4)
    until(lambda: len(tenant.pages) == 4)
    fences = connect(
        group.doors[0].endpoint, ScriptedBatcher(), role="batcher", peer_id="batcher", token=TOKEN, timeout_s=5
    )
    until(lambda: group.leases._has_batcher)
    client.close()
    until(lambda: group.leases.status()["quarantined"] == 4)
    fences.send([PeerFenced("a")])
    until(lambda: group.free() == 10)
    fences.close()


def test_a_dead_batcher_is_told_to_all_at_once(group: Group) -> None:
    client, tenants = group.client("a"), [Recorder(), Recorder()]
    for number, tenant in enumerate(tenants, 1):
        client.admit(number, tenant)
    until(lambda: len(group.batcher.conns) == 1)
    group.doors[1].close()
    until(lambda: all(len(t.lost) == 1 for t in tenants))
    assert len(group.losses) == 1
    with pytest.raises(DeviceLost):
        client.post([])
    with pytest.raises(DeviceLost):
        client.admit(3, Recorder())
    ended = threading.Event()
    client.retire(1, ended.set)
    assert ended.is_set()
    until(lambda: group.free() == 10)


def test_pages_that_come_to_be_spare_later_serve_those_who_wait(group: Group) -> None:
    client, rich, poor = group.client("a"), Recorder(), Recorder()
    client.admit(1, rich)
    client.admit(2, poor)
    lease(client, 1, 8)
    until(lambda: len(rich.pages) == 8)
    lease(client, 2, 5)
    until(lambda: group.leases.status()["waiting"] == 1)
    time.sleep(0.05)  # it was asked for spare pages, and had none
    rich.spare = rich.pages[4:]
    until(lambda: len(poor.pages) == 5, timeout_s=2.0)


def test_who_stands_behind_a_request_that_expires_gets_the_pages_there_are(group: Group) -> None:
    client, tenants = group.client("a"), [Recorder() for _ in range(3)]
    for number, tenant in enumerate(tenants):
        client.admit(number + 1, tenant)
    lease(client, 1, 6)
    until(lambda: len(tenants[0].pages) == 6)
    lease(client, 2, 9, deadline_s=0.1)
    lease(client, 3, 4, deadline_s=60.0)
    until(lambda: len(tenants[2].pages) == 4, timeout_s=2.0)
    until(lambda: len(tenants[1].failures) == 1, timeout_s=2.0)


def test_a_deadline_that_is_infinite_does_not_stop_the_others(group: Group) -> None:
    client, tenants = group.client("a"), [Recorder() for _ in range(3)]
    for number, tenant in enumerate(tenants):
        client.admit(number + 1, tenant)
    lease(client, 1, 6)
    lease(client, 2, 9, deadline_s=float("inf"))
    time.sleep(0.05)
    lease(client, 3, 9, deadline_s=0.1)
    until(lambda: len(tenants[2].failures) == 1, timeout_s=2.0)


def test_spare_pages_are_given_back_before_the_lease_is_closed_or_not_at_all(group: Group) -> None:
    """Given back behind CloseLease they would be pages of nobody: the resource manager hangs up on such a peer."""
    client = group.client("a")

    class Slow(Recorder):
        def reclaim(self) -> list[int]:
            spare = super().reclaim()
            if spare:
                threading.Thread(target=client.retire, args=(1, ended.set)).start()
                time.sleep(0.1)  # CloseLease would overtake us
            return spare

    slow, poor, ended = Slow(), Recorder(), threading.Event()
    client.admit(1, slow)
    client.admit(2, poor)
    lease(client, 1, 8)
    until(lambda: len(slow.pages) == 8)
    slow.spare = slow.pages[4:]
    lease(client, 2, 9)
    until(lambda: len(poor.pages) == 9)
    assert ended.wait(5)
    time.sleep(0.2)
    assert client.lost is None


def test_what_a_dead_peer_still_asks_for_is_not_leased_behind_its_fence(group: Group) -> None:
    client, tenant = group.client("a"), Recorder()
    client.admit(1, tenant)
    lease(client, 1, 4)
    until(lambda: len(tenant.pages) == 4)
    lease(client, 2, 7)  # waits in line
    until(lambda: group.leases.status()["waiting"] == 1)
    fences = connect(
        group.doors[0].endpoint, ScriptedBatcher(), role="batcher", peer_id="batcher", token=TOKEN, timeout_s=5
    )
    fences.send([PeerFenced("a")])  # overtakes the end of the peer's own connection
    until(lambda: group.leases.status()["waiting"] == 0)
    lease(client, 1, 1)  # was on its way when the peer died
    until(lambda: len(tenant.failures) == 1)
    client.close()
    until(lambda: group.free() == 10)
    fences.close()


def test_one_inferlet_that_fails_to_listen_does_not_keep_a_loss_from_the_others(group: Group) -> None:
    class Deaf(Recorder):
        def device_lost(self, error: DeviceLost) -> None:
            raise RuntimeError("a bug")

    client, other, ended = group.client("a"), Recorder(), threading.Event()
    client.admit(1, Deaf())
    client.admit(2, other)
    group.doors[1].close()
    until(lambda: len(other.lost) == 1)
    until(lambda: len(group.losses) == 1)
    client.retire(2, ended.set)
    assert ended.is_set()
