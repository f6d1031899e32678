"""PageLedger: who holds which page, exactly, and the books balance after everything."""

import random

import pytest
from rounds import seeds

from pieray.errors import InvalidRequest, OutOfPages, PeerLost, PierayError
from pieray.leases.ledger import Holder, PageLedger

A, B = Holder("peer-a", 1), Holder("peer-b", 1)


def counts(ledger: PageLedger) -> tuple[int, int, int]:
    ledger.check()
    return ledger.num_free, ledger.num_leased, ledger.num_quarantined


def test_lowest_pages_go_first_and_released_ones_are_reused_first_in_the_order_released():
    ledger = PageLedger(8)
    assert ledger.lease(A, 3) == [0, 1, 2]
    assert ledger.lease(B, 2) == [3, 4]
    assert ledger.release(A, [2, 0]) == 2
    assert ledger.lease(B, 3) == [2, 0, 5]
    assert ledger.pages_of(A) == [1]
    assert ledger.pages_of(B) == [3, 4, 2, 0, 5]
    assert counts(ledger) == (2, 6, 0)


def test_lease_beyond_what_is_free_changes_nothing():
    ledger = PageLedger(4)
    ledger.lease(A, 3)
    assert ledger.lease(B, 2) is None
    assert counts(ledger) == (1, 3, 0)
    assert ledger.lease(B, 1) == [3]


def test_what_can_never_be_granted_is_refused_with_numbers():
    ledger = PageLedger(8)
    with pytest.raises(OutOfPages, match="the pool has 8 pages .settings model.num_pages.*holds 0, .* 9 more"):
        ledger.lease(A, 9)
    ledger.lease(A, 3)
    with pytest.raises(OutOfPages, match="the pool has 8 pages .settings model.num_pages.*holds 3, .* 6 more"):
        ledger.lease(A, 6)
    with pytest.raises(InvalidRequest, match="given 0"):
        ledger.lease(A, 0)
    assert counts(ledger) == (5, 3, 0)


@pytest.mark.parametrize("pages", [[3], [0, 9], [0, -1], [0, 0]])
def test_release_of_pages_not_held_names_them_and_changes_nothing(pages):
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    ledger.lease(B, 2)
    with pytest.raises(InvalidRequest, match="not held by inferlet 1 of peer-a"):
        ledger.release(A, pages)
    assert ledger.pages_of(A) == [0, 1]
    assert counts(ledger) == (0, 4, 0)


def test_shared_page_is_free_only_when_its_last_holder_gives_it_back():
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    ledger.share(B, [0])
    assert ledger.close(A) == 1  # page 1
    assert counts(ledger) == (3, 1, 0)
    assert ledger.release(B, [0]) == 1
    assert counts(ledger) == (4, 0, 0)
    with pytest.raises(InvalidRequest, match="not leased or exported"):
        ledger.share(B, [0])


def test_pages_of_a_dead_peer_wait_for_the_fence():
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    ledger.lease(Holder("peer-a", 2), 1)
    assert ledger.drop_peer("peer-a", fenced=False) == 0
    assert counts(ledger) == (1, 0, 3)
    assert ledger.drop_peer("peer-a", fenced=False) == 0  # told twice
    assert ledger.close(A) == 0
    with pytest.raises(PeerLost):
        ledger.lease(A, 1)
    with pytest.raises(PeerLost):
        ledger.release(A, [0])
    assert ledger.lease(B, 2) is None
    assert ledger.fence("peer-a") == 3
    assert counts(ledger) == (4, 0, 0)
    assert ledger.lease(B, 4) == [2, 0, 1, 3]


def test_peer_that_never_talked_to_the_batcher_does_not_leak():
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    assert ledger.drop_peer("peer-a", fenced=True) == 2
    assert counts(ledger) == (4, 0, 0)
    assert ledger.drop_peer("unknown", fenced=False) == 0


def test_peers_that_wait_for_their_fences_are_known():
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    ledger.lease(B, 1)
    ledger.drop_peer("peer-b", fenced=False)
    ledger.drop_peer("peer-a", fenced=False)
    assert ledger.dead_peers == ["peer-a", "peer-b"]
    assert sum(ledger.fence(peer_id) for peer_id in ledger.dead_peers) == 3
    assert ledger.dead_peers == []
    assert counts(ledger) == (4, 0, 0)


def test_fence_that_overtakes_the_notice_of_death_is_remembered():
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    assert ledger.fence("peer-a") == 0
    assert counts(ledger) == (2, 2, 0)
    assert ledger.drop_peer("peer-a", fenced=False) == 2
    assert counts(ledger) == (4, 0, 0)


def test_early_fence_is_forgotten_by_a_peer_that_leases_again():
    ledger = PageLedger(4)
    ledger.lease(A, 1)
    ledger.fence("peer-a")
    ledger.lease(A, 1)
    assert ledger.drop_peer("peer-a", fenced=False) == 0
    assert counts(ledger) == (2, 0, 2)


def test_page_shared_with_a_dead_peer_stays_leased_and_is_quarantined_when_its_live_holder_leaves():
    ledger = PageLedger(2)
    ledger.lease(A, 2)
    ledger.share(B, [1])
    ledger.drop_peer("peer-a", fenced=False)
    assert counts(ledger) == (0, 1, 1)
    assert ledger.close(B) == 0  # the dead peer's last step may still write to it
    assert counts(ledger) == (0, 0, 2)
    assert ledger.fence("peer-a") == 2
    assert counts(ledger) == (2, 0, 0)


def test_what_an_export_keeps_is_cached_once_its_holders_are_gone_and_comes_free_when_it_is_dropped():
    ledger = PageLedger(4)
    ledger.lease(A, 3)
    ledger.keep(A, [0, 2])
    assert (counts(ledger), ledger.num_cached) == ((1, 3, 0), 0)
    assert ledger.close(A) == 1  # page 1
    assert (counts(ledger), ledger.num_cached) == ((2, 0, 0), 2)
    assert ledger.lease(B, 3) is None
    ledger.share(B, [0, 2])
    assert (counts(ledger), ledger.num_cached) == ((2, 2, 0), 0)
    assert ledger.drop([0, 2]) == 0  # whoever has imported keeps them
    assert ledger.close(B) == 2
    assert counts(ledger) == (4, 0, 0)


def test_export_made_by_a_peer_that_died_later_stays_and_its_pages_are_not_free_before_the_fence():
    ledger = PageLedger(4)
    ledger.lease(A, 2)
    ledger.keep(A, [0])
    ledger.drop_peer("peer-a", fenced=False)
    assert (counts(ledger), ledger.num_cached) == ((2, 0, 1), 1)
    ledger.share(B, [0])
    assert (counts(ledger), ledger.num_cached) == ((2, 1, 1), 0)
    ledger.release(B, [0])
    assert ledger.drop([0]) == 0
    assert (counts(ledger), ledger.num_cached) == ((2, 0, 2), 0)
    assert ledger.fence("peer-a") == 2
    assert counts(ledger) == (4, 0, 0)
    with pytest.raises(InvalidRequest, match=r"\[0\] are not held"):
        ledger.keep(A, [0])


def test_a_holder_may_have_a_page_several_times_and_gives_it_back_as_often():
    ledger = PageLedger(4)
    ledger.lease(A, 1)
    ledger.share(A, [0])
    ledger.share(A, [0])
    assert ledger.pages_of(A) == [0]
    assert ledger.release(A, [0]) == 0
    with pytest.raises(InvalidRequest, match="not that often"):
        ledger.release(A, [0, 0, 0])
    assert ledger.release(A, [0, 0]) == 1
    ledger.lease(A, 2)
    ledger.share(A, [0])
    assert ledger.close(A) == 2
    assert counts(ledger) == (4, 0, 0)


def test_imbalance_is_reported_with_every_term():
    ledger = PageLedger(4)
    ledger.lease(A, 1)
    ledger._free.pop()
    with pytest.raises(PierayError, match=r"free 3 .*leased 1 .*cached 0 .*quarantined 0 .*free list 2; total 4"):
        ledger.check()


@pytest.mark.parametrize("seed", seeds(30))
def test_books_balance_after_any_operations_and_the_pool_is_full_again(seed):
    rng = random.Random(seed)
    ledger = PageLedger(24)
    holders = [Holder(f"p{i}", j) for i in range(3) for j in range(3)]
    kept: list[list[int]] = []
    for _ in range(300):
        holder, held = rng.choice(holders), []
        held = ledger.pages_of(holder)
        try:
            match rng.randrange(8):
                case 0 | 1 | 2:
                    ledger.lease(holder, rng.randint(1, 5))
                case 3:
                    ledger.release(holder, rng.sample(held, rng.randint(0, len(held))))
                case 4:
                    ledger.close(holder)
                case 5:
                    other = ledger.pages_of(rng.choice(holders))
                    ledger.share(holder, rng.sample(other, rng.randint(0, min(3, len(other)))))
                    if rng.random() < 0.5:
                        kept.append(rng.sample(held, rng.randint(0, min(3, len(held)))))
                        try:
                            ledger.keep(holder, kept[-1])
                        except PeerLost:
                            kept.pop()
                    elif kept:
                        ledger.share(holder, kept[-1])
                case 6 if kept and rng.random() < 0.5:
                    ledger.drop(kept.pop(rng.randrange(len(kept))))
                case 6 if rng.random() < 0.3:
                    ledger.drop_peer(holder.peer_id, fenced=rng.random() < 0.3)
                case 7:
                    ledger.fence(holder.peer_id)
        except (InvalidRequest, OutOfPages, PeerLost):
            pass
        ledger.check()
    for i in range(3):
        ledger.drop_peer(f"p{i}", fenced=True)
    assert ledger.num_cached == len({page for pages in kept for page in pages})
    for pages in kept:
        ledger.drop(pages)
    assert counts(ledger) == (24, 0, 0)
    assert ledger.num_cached == 0
