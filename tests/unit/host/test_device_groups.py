"""Several device groups: an inferlet's is chosen when it first has something to compute, by what groups tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from groups import TOKEN, Group, until
from test_device import Recorder

from pieray.errors import DeviceLost
from pieray.host.device.groups import DeviceGroups, LateDevice
from pieray.messages import IndexPages
from pieray.messages.leases import fingerprints

TEXT = [bytes([n]) * 16 for n in range(1, 4)]


@pytest.fixture
def two() -> Iterator[tuple[list[Group], DeviceGroups]]:
    both = [Group(num_pages=10, news_s=0.01) for _ in range(2)]
    devices = DeviceGroups(peer_id="a", token=TOKEN)
    for number, group in enumerate(both):
        devices.open(number, group.doors[1].endpoint, group.doors[0].endpoint)
    yield both, devices
    devices.close()
    for group in both:
        group.close()


def prints(*names: bytes) -> list[int]:
    return fingerprints(b"".join(names))


def late(devices: DeviceGroups) -> LateDevice:
    found = devices.current()
    assert isinstance(found, LateDevice)
    return found


def compute(device: LateDevice, number: int, tenant: Recorder, text: list[bytes]) -> None:
    """Lease pages for a text, and say that it is written."""
    device.lease(number, len(text), 5.0, b"".join(text))
    device.bound().flush()
    until(lambda: len(tenant.pages) >= len(text))
    pages = np.array(tenant.pages[: len(text)], "<u4").tobytes()
    before = b"".join([b"root" * 4, *text[:-1]])
    device.ask_ledger(IndexPages(number, pages, b"".join(text), before, np.arange(len(text), dtype="<u4").tobytes()))
    device.bound().flush()


def test_one_group_is_no_choice(two: tuple[list[Group], DeviceGroups]) -> None:
    (first, _), _ = two
    devices = DeviceGroups(peer_id="b", token=TOKEN)
    devices.open(0, first.doors[1].endpoint, first.doors[0].endpoint)
    assert devices.current() is devices.alive()[0]
    assert devices.status()["is_up"]
    devices.close()


@pytest.mark.parametrize("is_one", [True, False])
def test_a_model_none_of_whose_groups_was_dialled_yet_is_lost_until_one_is(
    two: tuple[list[Group], DeviceGroups], *, is_one: bool
) -> None:
    """An InferletActor that begins while another model's groups are replaced."""
    (first, _), _ = two
    devices = DeviceGroups(peer_id="b", token=TOKEN, is_one=is_one)
    with pytest.raises(DeviceLost, match="no device group of this model"):
        devices.current(0.0)
    devices.open(0, first.doors[1].endpoint, first.doors[0].endpoint)
    assert devices.current(0.0) is not None
    devices.close()


def test_a_text_is_computed_where_it_was_before(two: tuple[list[Group], DeviceGroups]) -> None:
    _, devices = two
    tenant = Recorder()
    first = late(devices)
    first.admit(1, tenant, "tenant")
    assert first.session is None
    compute(first, 1, tenant, TEXT)
    holding = first.session
    assert holding is not None
    until(lambda: devices.session_with([holding], prints(TEXT[0])) is holding)
    for number in range(2, 4):
        other = late(devices)
        other.admit(number, Recorder(), "tenant")
        other.lease(number, 3, 5.0, b"".join(TEXT))
        assert other.session is holding
    until(lambda: devices.load(holding) == 3)


def test_who_has_nothing_to_look_up_goes_where_fewest_are(two: tuple[list[Group], DeviceGroups]) -> None:
    _, devices = two
    chosen = []
    for number in range(1, 7):
        device = late(devices)
        device.admit(number, Recorder(), "tenant")
        device.lease(number, 1, 5.0)
        chosen.append(device.session)
    assert sorted(map(chosen.count, devices.alive())) == [3, 3]


def test_what_is_gone_is_told_too_and_all_of_it_to_who_comes_later(two: tuple[list[Group], DeviceGroups]) -> None:
    both, devices = two
    tenant = Recorder()
    first = late(devices)
    first.admit(1, tenant, "tenant")
    compute(first, 1, tenant, TEXT)
    holding = first.session
    assert holding is not None
    until(lambda: all(devices.session_with([holding], prints(one)) is holding for one in TEXT))
    later = DeviceGroups(peer_id="late", token=TOKEN)
    for number, group in enumerate(both):
        later.open(number, group.doors[1].endpoint, group.doors[0].endpoint)
    place = devices.alive().index(holding)
    there = later.alive()[place]
    until(lambda: all(later.session_with([there], prints(one)) is there for one in TEXT))
    later.close()
    done: list[int] = []
    first.retire(1, lambda: done.append(1))
    until(lambda: bool(done))
    greedy = Recorder()
    holding.admit(9, greedy)
    holding.lease(9, 10, 5.0)
    holding.flush()
    until(lambda: len(greedy.pages) == 10)
    until(lambda: devices.session_with([holding], prints(*TEXT)) is None)


def test_a_group_that_is_lost_is_chosen_no_more(two: tuple[list[Group], DeviceGroups]) -> None:
    both, devices = two
    lost = devices.alive()[0]
    for door in both[0].doors:
        door.close()
    both[0].batcher.conns[0].close("a test ends this group")
    until(lambda: lost.lost is not None)
    assert not devices.status()["is_up"]
    assert {number: one["is_up"] for number, one in devices.status()["groups"].items()} == {0: False, 1: True}
    for number in range(1, 5):
        device = late(devices)
        device.admit(number, Recorder(), "tenant")
        device.lease(number, 1, 5.0)
        assert device.session is devices.alive()[0]
    for door in both[1].doors:
        door.close()
    both[1].batcher.conns[0].close("a test ends this group")
    until(lambda: not devices.alive())
    device.retire(4, lambda: None)
    with pytest.raises(DeviceLost):
        devices.current(0.01)


def test_who_never_computes_is_nobodys_and_ends_at_once(two: tuple[list[Group], DeviceGroups]) -> None:
    _, devices = two
    device = late(devices)
    device.admit(1, Recorder(), "tenant")
    done: list[int] = []
    device.retire(1, lambda: done.append(1))
    assert done == [1]
    assert all(devices.load(one) == 0 for one in devices.alive())


def test_programs_that_end_at_once_leave_no_load_behind(two: tuple[list[Group], DeviceGroups]) -> None:
    _, devices = two
    for number in range(1, 30):
        device = late(devices)
        device.admit(number, Recorder(), "tenant")
        device.lease(number, 1, 5.0)
        device.flush()
        done: list[int] = []
        device.retire(number, lambda done=done: done.append(1))
        until(lambda done=done: bool(done))
    until(lambda: all(devices.load(one) == 0 for one in devices.alive()))


class Breaking:
    """A session whose link breaks as an inferlet is admitted, and which tells of it later."""

    lost = None

    def __init__(self) -> None:
        self.users: list[Any] = []

    def admit(self, _number: int, user: Any, *_facts: Any) -> None:
        self.users.append(user)
        raise DeviceLost("its link has just broken")


class Healthy(Breaking):
    def admit(self, _number: int, user: Any, *_facts: Any) -> None:
        self.users.append(user)


def test_a_session_that_could_not_take_an_inferlet_tells_it_nothing_later() -> None:
    breaking, healthy, tenant = Breaking(), Healthy(), Recorder()
    offered: list[Any] = [breaking, healthy]

    class Groups:
        def choose(self, _hashes: bytes, _export: object) -> Any:
            return offered.pop(0)

    device = LateDevice(Groups())  # type: ignore[arg-type]
    device.admit(1, tenant, "tenant")
    assert not device.is_chosen
    assert device.bound() is healthy  # type: ignore[comparison-overlap]
    breaking.users[0].device_lost(DeviceLost("its link has just broken"))
    assert tenant.lost == []
    healthy.users[0].device_lost(DeviceLost("gone"))
    assert len(tenant.lost) == 1
