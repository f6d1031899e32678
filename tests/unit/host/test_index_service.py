"""Pages known by their content, over real connections: deaths of who wrote them and of the batcher."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from groups import TOKEN, Group, until
from test_export_service import Tenant, start

from pieray.host.device.device import DeviceClient
from pieray.messages import IndexPages, PeerFenced
from pieray.transport import connect

NAMES = [bytes([i]) * 16 for i in range(4)]


@pytest.fixture
def group() -> Iterator[Group]:
    group = Group(num_pages=10)
    yield group
    group.close()


class Finder(Tenant):
    num_found = 0

    def granted(self, pages: list[int], num_found: int) -> None:
        self.pages += pages
        self.num_found += num_found


def enter(client: DeviceClient, number: int, pages: list[int]) -> None:
    names = NAMES[: len(pages)]
    before = b"".join([b"r" * 16, *names[:-1]])
    depths = np.arange(len(pages), dtype="<u4").tobytes()
    client.ask_ledger(IndexPages(number, np.array(pages, "<u4").tobytes(), b"".join(names), before, depths))
    client.flush()


def find(client: DeviceClient, number: int, count: int) -> Finder:
    finder = Finder()
    client.admit(number, finder)
    client.lease(number, count, 5.0, b"".join(NAMES))
    client.flush()
    until(lambda: len(finder.pages) >= count)
    return finder


def facts(group: Group, *names: str) -> list[int]:
    found = group.leases.status()
    return [found[name] for name in names]


def test_pages_of_a_dead_actor_are_found_before_and_after_its_fence(group: Group) -> None:
    batcher = connect(group.doors[0].endpoint, group.batcher, role="batcher", peer_id="b", token=TOKEN, timeout_s=5)
    client, other = group.client("a"), group.client("c")
    ann = start(client, 1, 4)
    enter(client, 1, ann.pages[:3])
    until(lambda: facts(group, "indexed") == [3])
    client.close()
    until(lambda: facts(group, "quarantined") == [4])
    bob = find(other, 1, 2)
    assert (bob.pages, bob.num_found) == (ann.pages[:3], 3)
    assert facts(group, "leased", "quarantined", "available") == [3, 1, 6]
    batcher.send([PeerFenced("a")])
    until(lambda: facts(group, "quarantined") == [0])
    other.retire(1, lambda: None)
    until(lambda: facts(group, "free", "cached", "available") == [7, 3, 10])
    assert find(other, 2, 1).num_found == 3


def test_with_the_batcher_the_index_ends(group: Group) -> None:
    batcher = connect(group.doors[0].endpoint, group.batcher, role="batcher", peer_id="b", token=TOKEN, timeout_s=5)
    client = group.client("a")
    ann = start(client, 1, 4)
    enter(client, 1, ann.pages[:3])
    until(lambda: facts(group, "indexed") == [3])
    batcher.close("it dies")
    until(lambda: facts(group, "indexed") == [0])  # after 0.2 s
    enter(client, 1, ann.pages[:3])
    assert find(client, 2, 1).num_found == 0
    assert facts(group, "indexed") == [0]
