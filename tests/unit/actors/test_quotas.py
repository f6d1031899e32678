"""Quotas of tenants in the Controller: live inferlets as their actors tell of them, tokens of the last minute."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from pieray.actors.members import INFERLETS, Member
from pieray.actors.quotas import Allowance, Quotas
from pieray.errors import Overloaded
from pieray.tenants import settings_of

TABLE = {"lab": {"inferlets": 2}, "slow": {"tokens_per_minute": 600}, "free": {"weight": 3}, "*": {"inferlets": 1}}


class Scene:
    """Quotas over one actor."""

    def __init__(self) -> None:
        self.now = 100.0
        self.host = Member(INFERLETS, "a0", None)
        self.live: set[str] = set()
        self.asked: list[list[str]] = []
        self.quotas = Quotas(lambda tenant: settings_of(TABLE, tenant), self.ask, lambda: self.now)

    def ask(self, hosts: Collection[Member]) -> None:
        self.asked.append([host.name for host in hosts])
        asked_at, self.now = self.now, self.now + 0.01
        for host in hosts:
            self.quotas.reported(host, self.live, asked_at)

    def launch(self, tenant: str, instance_id: str) -> None:
        self.quotas.take(tenant, instance_id)
        self.live.add(instance_id)
        self.now += 0.1
        self.quotas.placed(instance_id, self.host)
        self.now += 0.1

    def refused(self, tenant: str, instance_id: str = "x") -> Overloaded:
        with pytest.raises(Overloaded) as found:
            self.quotas.take(tenant, instance_id)
        return found.value


def test_a_tenant_has_as_many_as_its_quota_and_others_are_not_touched() -> None:
    scene = Scene()
    scene.launch("lab", "a")
    scene.launch("lab", "b")
    error = scene.refused("lab")
    assert error.message.startswith("inferlets: the quota of tenant 'lab' is 2 at one time; 2 run or wait")
    assert error.retry_after_s > 0
    scene.launch("ann", "c")
    assert "quota of tenant 'ann' is 1" in scene.refused("ann").message
    for number in range(50):
        scene.launch("free", f"f{number}")
    assert scene.quotas.facts() == {"lab": {"inferlets": 2}, "ann": {"inferlets": 1}}


def test_one_that_has_just_ended_is_asked_for_before_anybody_is_refused() -> None:
    scene = Scene()
    for number in range(20):
        scene.launch("lab", str(number))
        scene.live.discard(str(number))
    assert len(scene.asked) == 9  # two at a time come back
    scene.live |= {"18", "19"}


def test_what_waits_for_a_place_counts_and_an_answer_from_before_ends_nothing() -> None:
    scene = Scene()
    scene.quotas.take("lab", "waits")
    scene.quotas.take("lab", "young")
    scene.quotas.take("lab", "young")  # its client asks again: the Controller was frozen
    assert scene.refused("lab").retry_after_s > 0
    asked_at = scene.now
    scene.now += 1.0
    scene.quotas.placed("young", scene.host)
    scene.quotas.reported(scene.host, [], asked_at)  # it was asked before that one was there
    assert scene.quotas.facts() == {"lab": {"inferlets": 2}}
    scene.quotas.reported(scene.host, [], scene.now + 1.0)
    scene.quotas.give_back("waits")
    assert scene.quotas.facts() == {}
    scene.quotas.give_back("waits")


def test_an_actor_that_is_gone_gives_all_back() -> None:
    scene = Scene()
    scene.launch("lab", "a")
    scene.launch("lab", "b")
    scene.quotas.lost(scene.host)
    scene.launch("lab", "c")


def test_when_to_come_again_is_as_fast_as_the_tenants_own_have_ended() -> None:
    scene = Scene()
    scene.launch("lab", "keeps")
    for number in range(10):
        scene.launch("lab", str(number))
        scene.live.discard(str(number))
        scene.now += 1.8
    scene.live.add("9")
    assert scene.refused("lab").retry_after_s == pytest.approx(2.2, abs=0.3)  # 9 in about 20 seconds


def test_tokens_of_a_minute_are_used_up_and_fill_again() -> None:
    scene = Scene()
    scene.quotas.take("slow", "a")
    scene.quotas.used("slow", 599)
    scene.quotas.take("slow", "b")
    scene.quotas.used("slow", 61)
    error = scene.refused("slow")
    assert "tokens_per_minute: the quota of tenant 'slow' is 600; its inferlets have computed 61" in error.message
    assert error.retry_after_s == pytest.approx(6.1)  # ten a second
    scene.now += 6.0
    assert scene.refused("slow").retry_after_s == pytest.approx(0.1)
    scene.now += 0.2
    scene.quotas.take("slow", "c")
    assert scene.quotas.facts() == {"slow": {"tokens_left": 2}}
    scene.quotas.used("lab", 10**9)  # it has no such quota
    scene.quotas.take("lab", "d")


def test_an_allowance_holds_no_more_than_a_minutes() -> None:
    allowance = Allowance(600, now=0.0)
    assert allowance.left(1e6) == 600
    allowance.use(1200, 0.0)
    assert (allowance.left(0.0), allowance.left(30.0)) == (-600, -300)
    assert allowance.wait_s(60.0) == pytest.approx(0.1)
    assert allowance.wait_s(61.0) == 0.0


def test_allowances_that_are_full_are_forgotten() -> None:
    scene = Scene()
    scene.quotas.used("slow", 100)
    scene.now += 60.0
    scene.quotas.used("slow", 1)
    assert scene.quotas.facts() == {"slow": {"tokens_left": 599}}
    assert len(scene.quotas._allowances) == 1
