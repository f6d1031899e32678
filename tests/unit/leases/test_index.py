"""Pages known by their content: found by chains of hashes, idle ones dropped least recently used and deepest first."""

from __future__ import annotations

import random

import pytest
from rounds import seeds

from pieray.errors import InvalidRequest, OutOfPages, PeerLost
from pieray.leases.ledger import Holder, Lease, PageLedger
from pieray.leases.queue import Granted, LeaseQueue
from pieray.messages.leases import Place

A, B, C = (Holder(f"peer-{name}", 1) for name in "abc")


def places(text: str) -> list[Place]:
    """One page a letter: its content is all letters up to it."""
    names = [text[: i + 1].encode().ljust(16, b".") for i in range(len(text))]
    return [Place(name, before, i) for i, (name, before) in enumerate(zip(names, [b"root", *names], strict=False))]


def hashes(text: str) -> list[bytes]:
    return [place.name for place in places(text)]


def written(ledger: PageLedger, holder: Holder, text: str) -> list[int]:
    """Pages leased, written and known."""
    found = ledger.take(holder, len(text), hashes(text))
    assert found is not None
    ledger.enter(holder, found.pages, places(text))
    ledger.check()
    return found.pages


def test_the_longest_chain_that_is_there_is_shared_and_the_rest_is_free_pages():
    ledger = PageLedger(8)
    assert written(ledger, A, "abc") == [0, 1, 2]
    assert ledger.take(B, 4, hashes("abxy")) == Lease([0, 1, 3, 4], 2)
    assert ledger.take(B, 0, hashes("abcd")) == Lease([0, 1, 2], 3)
    assert ledger.take(B, 1, hashes("xbc")) == Lease([5], 0)
    assert (ledger.num_leased, ledger.num_found) == (6, 5)
    assert ledger.close(A) == 0
    assert ledger.close(B) == 6
    assert (ledger.num_free, ledger.num_cached, ledger.num_available) == (5, 3, 8)
    ledger.check()


def test_idle_pages_go_least_recently_used_first_and_the_deepest_of_one_use():
    ledger = PageLedger(6)
    written(ledger, A, "abc")
    written(ledger, B, "xyz")
    ledger.close(B)  # 3, 4, 5
    ledger.close(A)  # 0, 1, 2, used later
    assert ledger.lease(C, 2) == [4, 5]  # z, then y
    assert ledger.lease(C, 1) == [3]
    assert ledger.take(C, 1, hashes("abc")) == Lease([0, 1, 2], 3)
    ledger.release(C, [0])  # from the front: the beginning outlives what is behind it all the same
    ledger.release(C, [1])
    ledger.release(C, [2])
    assert ledger.take(B, 2) == Lease([1, 2], 0)
    assert ledger.take(B, 0, hashes("abc")) == Lease([0], 1)
    ledger.check()


def test_pages_found_are_not_dropped_to_make_room_for_the_rest():
    ledger = PageLedger(4)
    written(ledger, A, "abc")
    ledger.close(A)
    assert ledger.take(B, 5, hashes("abcde")) is None
    assert ledger.take(B, 4, hashes("abcd")) == Lease([0, 1, 2, 3], 3)
    ledger.check()


def test_what_has_the_same_content_twice_is_known_once():
    ledger = PageLedger(4)
    written(ledger, A, "ab")
    pages = ledger.lease(B, 2)
    assert pages == [2, 3]
    ledger.enter(B, pages, places("ab"))
    assert ledger.close(B) == 2
    assert (ledger.num_free, ledger.num_cached, ledger.num_indexed) == (2, 0, 2)
    with pytest.raises(InvalidRequest, match="not held"):
        ledger.enter(B, [0], places("a"))


def test_a_page_of_a_dead_peer_is_found_and_idle_only_after_the_fence():
    ledger = PageLedger(4)
    written(ledger, A, "ab")
    ledger.drop_peer("peer-a", fenced=False)
    assert (ledger.num_quarantined, ledger.num_available) == (2, 2)
    assert ledger.take(B, 0, hashes("a")) == Lease([0], 1)
    assert (ledger.num_leased, ledger.num_quarantined) == (1, 1)
    assert ledger.fence("peer-a") == 1
    assert (ledger.num_leased, ledger.num_cached, ledger.num_available) == (1, 1, 3)
    ledger.drop_peer("peer-b", fenced=False)
    with pytest.raises(PeerLost):
        ledger.enter(B, [0], places("a"))
    ledger.check()


def test_a_page_that_an_export_keeps_is_idle_once_the_export_is_gone():
    ledger = PageLedger(4)
    pages = written(ledger, A, "ab")
    ledger.keep(A, pages)
    ledger.close(A)
    assert (ledger.num_cached, ledger.num_available) == (2, 2)
    assert ledger.drop(pages) == 2
    assert (ledger.num_cached, ledger.num_available) == (2, 4)
    ledger.drop_index()
    assert (ledger.num_free, ledger.num_indexed) == (4, 0)
    ledger.check()


def test_without_the_index_pages_with_owners_stay_theirs():
    ledger = PageLedger(4)
    written(ledger, A, "ab")
    written(ledger, B, "ab")
    ledger.drop_index()
    ledger.check()
    assert ledger.close(A) == 0
    assert ledger.close(B) == 2
    assert ledger.num_free == 4


def test_a_line_serves_a_lookup_at_once_and_counts_idle_pages_as_free():
    line = LeaseQueue(PageLedger(4))
    written(line.ledger, A, "ab")
    line.ledger.lease(B, 2)
    assert line.request(C, 1, 2, 0.0, 9.0, hashes("xy")) is None
    assert line.request(B, 2, 0, 0.0, 9.0, hashes("ab")) == Lease([0, 1], 2)
    line.ledger.release(B, [0, 1])
    line.ledger.close(A)
    assert line.shortage == 0
    assert line.retry(1.0) == [Granted(C, 1, Lease([0, 1], 0))]


@pytest.mark.parametrize("seed", seeds(40))
def test_books_balance_and_content_is_never_mistaken(seed):
    """A page found holds the text that was asked for: whatever was leased, written, dropped and fenced before."""
    rng = random.Random(seed)
    ledger = PageLedger(20)
    holders = [Holder(f"p{i}", j) for i in range(3) for j in range(2)]
    holds: dict[int, str] = {}  # by page, the text up to its letter
    kept: list[list[int]] = []
    for _ in range(300):
        holder = rng.choice(holders)
        held = ledger.pages_of(holder)
        try:
            match rng.randrange(8):
                case 0 | 1 | 2:
                    text = "".join(rng.choices("ab", k=rng.randint(1, 6)))
                    before = ledger.num_available
                    ledger.admit(holder, len(text))
                    lease = ledger.take(holder, len(text), hashes(text))
                    if lease is None:
                        assert before < len(text)
                        continue
                    for i, page in enumerate(lease.pages[: lease.num_found]):
                        assert holds[page] == text[: i + 1]
                    for i, page in enumerate(lease.pages[lease.num_found : len(text)], lease.num_found):
                        holds[page] = text[: i + 1]
                    if rng.random() < 0.8:
                        ledger.enter(holder, lease.pages, places(text))
                case 3:
                    ledger.release(holder, rng.sample(held, rng.randint(0, len(held))))
                case 4:
                    ledger.close(holder)
                case 5 if held:
                    kept.append(rng.sample(held, 1))
                    try:
                        ledger.keep(holder, kept[-1])
                    except PeerLost:
                        kept.pop()
                case 6 if kept:
                    ledger.drop(kept.pop(rng.randrange(len(kept))))
                case 7:
                    if rng.random() < 0.3:
                        ledger.drop_peer(holder.peer_id, fenced=rng.random() < 0.3)
                    ledger.fence(holder.peer_id)
        except (InvalidRequest, OutOfPages, PeerLost):
            pass
        ledger.check()
    for i in range(3):
        ledger.drop_peer(f"p{i}", fenced=True)
    for pages in kept:
        ledger.drop(pages)
    assert ledger.num_available == 20
    assert ledger.lease(A, 20) is not None
    assert (ledger.num_indexed, ledger.num_idle) == (0, 0)
    ledger.check()
