"""How urgent a launch is: what is taken, what is refused, and what children have of their parents."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest

from pieray.config import Limits
from pieray.errors import InvalidRequest
from pieray.messages import Launch, decode_one, encode
from pieray.programs.launches import LaunchRequest, prepared
from pieray.programs.sources import ProgramSource
from pieray.tenants import MAX_PRIORITY, NO_SETTINGS, TenantSettings
from pieray.urgency import admitted, check_priority, deadline_at

LAUNCH = Launch("it-1", "it", "it.py", "def main(): ...", b"", "{}", {})
OWN = ProgramSource("own", "own.py", source="def main(): ...")


def launch_of(**fields: Any) -> Launch:
    return prepared(LaunchRequest(OWN, **fields), OWN, Limits(), user="ann", tenant="t").whole


def test_a_launch_bears_priority_deadline_and_birth() -> None:
    before = time.time()
    sent = launch_of(priority=-7, deadline_s=30)
    found = decode_one(encode([sent]), Launch)
    assert found.priority == -7
    assert before <= found.born <= time.time()
    assert found.deadline == found.born + 30
    nothing = launch_of()
    assert (nothing.priority, nothing.deadline) == (0, 0.0)
    assert launch_of(deadline_s=0).deadline == 0.0


@pytest.mark.parametrize("priority", [MAX_PRIORITY + 1, -MAX_PRIORITY - 1, 1.5, True, "1", None])
def test_priorities_are_whole_numbers_within_bounds(priority: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"from -100 to 100; given"):
        launch_of(priority=priority)


@pytest.mark.parametrize("priority", [-MAX_PRIORITY, 0, MAX_PRIORITY])
def test_their_bounds_are_within(priority: int) -> None:
    assert check_priority(priority) == priority


@pytest.mark.parametrize("deadline_s", [-1, float("nan"), float("inf"), "3", True])
def test_deadlines_are_seconds(deadline_s: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"deadline_s is a number of seconds"):
        deadline_at(deadline_s, 100.0)


def test_an_engine_dates_what_has_no_birth_or_comes_from_the_future() -> None:
    assert admitted(LAUNCH, NO_SETTINGS, 50.0).born == 50.0
    assert admitted(dataclasses.replace(LAUNCH, born=60.0), NO_SETTINGS, 50.0).born == 50.0
    old = dataclasses.replace(LAUNCH, born=40.0, family=LAUNCH.instance_id)
    assert admitted(old, NO_SETTINGS, 50.0) is old


def test_a_clients_launch_is_the_root_of_its_family_and_a_child_is_of_its_parents() -> None:
    claimed = dataclasses.replace(LAUNCH, family="somebody's")
    assert admitted(claimed, NO_SETTINGS, 50.0).family == LAUNCH.instance_id
    assert admitted(dataclasses.replace(claimed, depth=2), NO_SETTINGS, 50.0).family == "somebody's"


@pytest.mark.parametrize(
    ("field", "value"), [("priority", 101), ("deadline", float("nan")), ("deadline", -1.0), ("born", float("inf"))]
)
def test_an_engine_takes_nothing_else(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        admitted(dataclasses.replace(LAUNCH, **{field: value}), NO_SETTINGS, 50.0)


def test_a_tenants_priority_is_added_once_and_kept_within_bounds() -> None:
    tenant = TenantSettings(priority=70)
    assert admitted(dataclasses.replace(LAUNCH, priority=-20), tenant, 50.0).priority == 50
    assert admitted(dataclasses.replace(LAUNCH, priority=60), tenant, 50.0).priority == MAX_PRIORITY
    assert admitted(dataclasses.replace(LAUNCH, priority=60, depth=1), tenant, 50.0).priority == 60
