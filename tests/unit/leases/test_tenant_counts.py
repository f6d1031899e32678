"""Counts of what has happened to the programs of each tenant in the page pool."""

from __future__ import annotations

from pieray.leases import tenants
from pieray.leases.tenants import TenantCounts


def test_what_has_happened_and_what_is_stand_side_by_side() -> None:
    counts = TenantCounts()
    counts.add("lab", "waited")
    counts.add("lab", "swapped", 7)
    counts.add("ann", "found", 0)
    assert counts.status({"lab": 3}, {"bob": 1}) == {
        "lab": {"held": 3, "waiting": 0, "found": 0, "waited": 1, "preempted": 0, "swapped": 7},
        "bob": {"held": 0, "waiting": 1, "found": 0, "waited": 0, "preempted": 0, "swapped": 0},
    }


def test_tenants_that_come_and_go_take_no_memory_for_ever(monkeypatch) -> None:
    monkeypatch.setattr(tenants, "MOST_TENANTS", 2)
    counts = TenantCounts()
    for tenant in ("a", "b", "a", "c"):
        counts.add(tenant, "waited")
    assert {tenant: row["waited"] for tenant, row in counts.status({}, {}).items()} == {"a": 2, "c": 1}
