"""Exports over real connections: time, memory pressure, and the deaths of those who made and serve them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from groups import TOKEN, Group, until

from pieray.errors import PierayError
from pieray.host.device.device import DeviceClient
from pieray.messages import ExportPages, ImportPages, PeerFenced
from pieray.transport import connect


class Tenant:
    """An inferlet that records what it is told."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.answers: dict[int, object] = {}

    def answered(self, answers: object) -> None: ...

    def granted(self, pages: list[int], _num_found: int) -> None:
        self.pages += pages

    def lease_failed(self, error: PierayError) -> None:
        self.answers[0] = error

    def ledger_answered(self, ticket: int, result: object) -> None:
        self.answers[ticket] = result

    def device_lost(self, error: PierayError) -> None: ...

    def reclaim(self) -> list[int]:
        return []

    def is_idle(self, _now: float) -> bool:
        return False


@pytest.fixture
def group() -> Iterator[Group]:
    group = Group(num_pages=10)
    yield group
    group.close()


def start(client: DeviceClient, number: int, num_pages: int) -> Tenant:
    tenant = Tenant()
    client.admit(number, tenant)
    lease(client, number, tenant, num_pages)
    return tenant


def lease(client: DeviceClient, number: int, tenant: Tenant, count: int, deadline_s: float = 5.0) -> None:
    before = len(tenant.pages)
    client.lease(number, count, deadline_s)
    client.flush()
    until(lambda: len(tenant.pages) == before + count)


def ask(client: DeviceClient, number: int, tenant: Tenant, ticket: int, message: object) -> object:
    client.ask_ledger(message)  # type: ignore[arg-type]
    client.flush()
    until(lambda: ticket in tenant.answers)
    return tenant.answers.pop(ticket)


def export(
    client: DeviceClient,
    number: int,
    tenant: Tenant,
    name: str,
    pages: list[int],
    ttl_s: float = 0.0,
    pin_s: float = 0.0,
) -> object:
    packed, written = np.array(pages, "<u4").tobytes(), np.full(len(pages), 0xFF, "<u8").tobytes()
    return ask(
        client,
        number,
        tenant,
        1,
        ExportPages(
            number << 32 | 1,
            number,
            "acme",
            "ann",
            name,
            "tenant",
            packed,
            written,
            8 * len(pages),
            "meta",
            ttl_s,
            pin_s,
            False,
            [9, 99, 999],
        ),
    )


def imported(client: DeviceClient, number: int, tenant: Tenant, name: str) -> object:
    """The pages, or the error's code."""
    found = ask(client, number, tenant, 2, ImportPages(number << 32 | 2, number, "acme", "bob", name))
    if isinstance(found, PierayError):
        return found.code
    assert isinstance(found, list)
    assert found[1:] == [np.full(len(found[1]) // 8, 0xFF, "<u8").tobytes(), len(found[1]), "meta", "tenant", "ann"]
    return np.frombuffer(found[0], "<u4").tolist()


def status(group: Group) -> tuple[int, int, int]:
    facts = group.leases.status()
    return facts["free"], facts["leased"], facts["cached"]


def test_an_export_outlives_inferlet_and_actor_and_is_found_from_another(group: Group) -> None:
    client, other = group.client("a"), group.client("b")
    ann, bob = start(client, 1, 4), start(other, 1, 1)
    assert export(client, 1, ann, "x", ann.pages[:2]) is None
    client.close()
    until(lambda: status(group) == (7, 1, 2))  # no batcher to fence: what is not exported is free
    assert imported(other, 1, bob, "x") == ann.pages[:2]
    assert status(group) == (7, 3, 0)
    assert imported(other, 1, bob, "y") == "not-found"
    other.close()
    until(lambda: status(group) == (8, 0, 2))


def test_a_dead_peers_export_stays_while_its_other_pages_wait_for_the_fence(group: Group) -> None:
    batcher = connect(group.doors[0].endpoint, _Silent(), role="batcher", peer_id="bt", token=TOKEN, timeout_s=5)
    client, other = group.client("a"), group.client("b")
    ann, bob = start(client, 1, 4), start(other, 1, 1)
    export(client, 1, ann, "x", ann.pages[:2])
    client.close()
    until(lambda: status(group) == (5, 1, 2))
    assert imported(other, 1, bob, "x") == ann.pages[:2]
    batcher.send([PeerFenced("a")])
    until(lambda: status(group) == (7, 3, 0))
    batcher.close("done")


def test_memory_pressure_drops_what_nobody_has_open_and_imports_say_so(group: Group) -> None:
    client = group.client("a")
    ann, bob = start(client, 1, 6), start(client, 2, 1)
    for index, name in enumerate(["first", "second", "third", "pinned"]):
        export(client, 1, ann, name, [ann.pages[index]], pin_s=60.0 * (name == "pinned"))
    client.release(1, ann.pages)
    client.flush()
    until(lambda: status(group) == (5, 1, 4))
    assert imported(client, 2, bob, "first") == ann.pages[:1]
    lease(client, 2, bob, 5)  # what is free
    client.lease(2, 2, 0.0)  # ahead of need: refused, and nothing is dropped for it
    client.flush()
    until(lambda: 0 in bob.answers)
    assert status(group) == (0, 7, 3)
    lease(client, 2, bob, 2)
    assert [imported(client, 2, bob, name) for name in ("second", "third")] == ["evicted", "evicted"]
    assert imported(client, 2, bob, "pinned") == [ann.pages[3]]


def test_a_waiting_request_is_served_as_soon_as_an_export_is_given_up(group: Group) -> None:
    client = group.client("a")
    ann, bob = start(client, 1, 10), start(client, 2, 0)
    export(client, 1, ann, "x", ann.pages[:3])
    client.lease(2, 2, 5.0)
    client.flush()
    client.release(1, ann.pages[:3])  # from here on only the export has them
    client.flush()
    until(lambda: len(bob.pages) == 2)
    assert imported(client, 2, bob, "x") == "evicted"


def test_time_ends_an_export_without_anybody_asking(group: Group) -> None:
    client = group.client("a")
    ann = start(client, 1, 2)
    export(client, 1, ann, "x", ann.pages, ttl_s=0.05)
    client.release(1, ann.pages)
    client.flush()
    until(lambda: status(group) == (10, 0, 0))
    assert imported(client, 1, ann, "x") == "not-found"


def test_the_batchers_death_ends_all_exports_for_good(group: Group) -> None:
    batcher = connect(group.doors[0].endpoint, _Silent(), role="batcher", peer_id="bt", token=TOKEN, timeout_s=5)
    client = group.client("a")
    ann = start(client, 1, 2)
    export(client, 1, ann, "x", ann.pages)
    batcher.close("it died")
    until(lambda: group.leases.status()["exports"] == 0)
    assert imported(client, 1, ann, "x") == "device-lost"
    late = export(client, 1, ann, "y", ann.pages)
    assert isinstance(late, PierayError)
    assert late.code == "device-lost"


class _Silent:
    def on_connect(self, conn: object) -> None: ...

    def on_messages(self, conn: object, messages: object) -> None: ...

    def on_close(self, conn: object, error: Exception) -> None: ...
