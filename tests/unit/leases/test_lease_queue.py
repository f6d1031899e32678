"""LeaseQueue: who ranks first is served first; every request ends with pages or with an error."""

import pytest

from pieray.errors import OutOfPages, QuotaExceeded
from pieray.leases.ledger import Holder, Lease, PageLedger
from pieray.leases.queue import BACKFILL_S, Granted, LeaseQueue
from pieray.leases.rank import AGING_S, KEEP_S, SHARE_S, Facts, Ranks
from pieray.urgency import SERVICE_TOKENS

A, B, C, D = (Holder(f"peer-{name}", 1) for name in "abcd")


def full_line(total: int = 8) -> LeaseQueue:
    """A line whose pages are all with A."""
    line = LeaseQueue(PageLedger(total))
    assert line.request(A, 1, total, 0.0, 30.0) == Lease(list(range(total)), 0)
    return line


def test_free_pages_are_granted_at_once():
    line = LeaseQueue(PageLedger(8))
    assert line.request(A, 1, 3, now=0.0, deadline_s=30.0) == Lease([0, 1, 2], 0)
    assert (len(line), line.shortage, line.next_deadline()) == (0, 0, None)


def test_of_equals_who_came_first_is_served_first():
    line = full_line()
    assert line.request(B, 2, 5, 1.0, 30.0) is None
    assert line.request(C, 3, 2, 2.0, 30.0) is None
    assert line.shortage == 7
    line.ledger.release(A, [0, 1, 2, 3, 4])
    assert line.retry(3.0) == [Granted(B, 2, Lease([0, 1, 2, 3, 4], 0))]
    line.ledger.release(A, [5, 6, 7])
    assert line.retry(4.0) == [Granted(C, 3, Lease([5, 6], 0))]
    assert (len(line), line.shortage, line.next_deadline()) == (0, 0, None)
    line.ledger.check()


def test_pages_too_few_for_the_first_go_to_the_next_for_a_moment_and_then_only_to_who_has_pages():
    line = full_line()
    line.request(B, 2, 5, 1.0, 30.0)
    line.request(C, 3, 1, 1.0, 30.0)
    line.ledger.release(A, [0])
    assert line.retry(1.1) == [Granted(C, 3, Lease([0], 0))]
    line.request(D, 4, 1, 1.1, 30.0)
    line.request(C, 5, 1, 1.1, 30.0)
    line.ledger.release(A, [1])
    assert line.retry(1.0 + BACKFILL_S) == [Granted(C, 5, Lease([1], 0))]  # D has none yet, and waits for B
    line.ledger.release(A, [2])
    assert line.retry(1.0 + BACKFILL_S) == []


def test_who_goes_first_is_given_what_it_will_want_before_the_others_get_any():
    line = full_line()
    line.request(B, 2, 1, 1.0, 30.0, num_more=3)
    line.request(C, 3, 1, 1.0, 30.0, num_more=3)
    line.request(D, 4, 1, 1.0, 30.0)
    line.ledger.release(A, [0, 1, 2, 3, 4])
    assert line.retry(1.1) == [Granted(B, 2, Lease([0, 1, 2, 3], 0)), Granted(C, 3, Lease([4], 0))]
    line.ledger.release(A, [5])
    assert line.retry(1.2) == [Granted(D, 4, Lease([5], 0))]
    line.ledger.check()


def test_nothing_more_than_it_needs_is_given_to_who_is_served_before_its_turn():
    line = full_line()
    line.request(B, 2, 3, 1.0, 30.0)
    line.request(C, 3, 1, 1.0, 30.0, num_more=3)
    line.ledger.release(A, [0, 1])
    assert line.retry(1.1) == [Granted(C, 3, Lease([0], 0))]
    line.ledger.release(A, [2, 3])
    assert line.retry(1.1) == [Granted(B, 2, Lease([2, 3, 1], 0))]


def test_more_than_is_needed_is_given_at_once_as_far_as_it_is_there():
    line = LeaseQueue(PageLedger(8))
    assert line.request(A, 1, 2, 0.0, 30.0, num_more=3) == Lease([0, 1, 2, 3, 4], 0)
    assert line.request(B, 2, 2, 0.0, 30.0, num_more=3) == Lease([5, 6, 7], 0)


def test_nothing_more_than_needed_is_given_over_a_quota():
    line = LeaseQueue(PageLedger(8), quota_of=lambda _: 4)
    assert line.request(A, 1, 2, 0.0, 30.0, num_more=3) == Lease([0, 1], 0)


def test_nobody_is_served_while_others_give_up_pages_for_the_first():
    line = full_line()
    line.request(B, 2, 2, 1.0, 30.0)
    line.request(C, 3, 1, 1.0, 30.0)
    line.kept_for = B
    line.ledger.release(A, [0])
    assert line.retry(1.0) == []
    line.ledger.release(A, [1])
    assert line.retry(1.0) == [Granted(B, 2, Lease([1, 0], 0))]
    assert line.kept_for is None
    line.ledger.release(A, [2])
    assert line.retry(1.0) == [Granted(C, 3, Lease([2], 0))]


@pytest.mark.parametrize(
    ("early", "late"),
    [
        (Facts(priority=0), Facts(priority=1)),
        (Facts(), Facts(deadline=50.0)),
        (Facts(deadline=60.0), Facts(deadline=50.0)),
        (Facts(num_tokens=4096), Facts(num_tokens=100)),
        (Facts(born=2.0), Facts(born=1.0)),
    ],
)
def test_rank_decides_who_goes_first(early, late):
    line = LeaseQueue(PageLedger(8))
    line.ranks.open(A, Facts(tenant="greedy"))
    line.ranks.open(B, early)
    line.ranks.open(C, late)
    line.request(A, 1, 8, 0.0, 99.0)
    line.request(B, 2, 2, 1.0, 99.0)
    line.request(C, 3, 2, 2.0, 99.0)
    line.ledger.release(A, [0, 1])
    assert line.retry(3.0) == [Granted(C, 3, Lease([0, 1], 0))]


def test_a_tenant_that_has_had_more_than_its_share_goes_last_until_the_others_have_had_theirs():
    line = LeaseQueue(PageLedger(8), Ranks(ledger := PageLedger(8)))
    line.ledger = ledger
    for holder, tenant in ((A, "greedy"), (B, "greedy"), (C, "modest")):
        line.ranks.open(holder, Facts(tenant=tenant, priority=9 * (tenant == "greedy")))
    line.request(A, 1, 8, 0.0, 99.0)
    line.request(B, 2, 2, 0.0, 99.0)
    line.request(C, 3, 2, 0.0, 99.0)
    assert line.head(0.0)[1].holder == B  # its priority counts, at first
    assert line.head(SHARE_S + 0.1)[1].holder == C
    line.ledger.release(A, [0, 1])
    assert [granted.holder for granted in line.retry(SHARE_S + 0.2)] == [C]
    line.request(C, 4, 2, SHARE_S + 0.3, 99.0)
    assert line.head(SHARE_S + 0.3)[1].holder == C  # it holds a quarter of what the other does
    line.ledger.close(A)
    line.request(A, 5, 6, SHARE_S + 0.3, 99.0)
    assert line.head(10.0)[1].holder in (A, B)  # the other's requests have held nothing meanwhile


def test_service_is_that_of_the_whole_family_for_as_long_as_one_of_it_lives():
    line = full_line()
    ranks = line.ranks
    ranks.open(B, Facts(family="b", born=0.0))
    ranks.open(C, Facts(born=1.0))
    ranks.open(D, Facts(tenant="", family="b", born=0.0))
    ranks.served(D, 8 * SERVICE_TOKENS)
    ranks.close(D)
    line.request(B, 2, 2, 1.0, 99.0)
    line.request(C, 3, 2, 2.0, 99.0)
    line.ledger.release(A, [0, 1])
    assert [granted.holder for granted in line.retry(3.0)] == [C]
    ranks.close(B)
    assert not ranks._families
    ranks.open(B, Facts(family="b", born=0.0))
    line.request(B, 4, 2, 3.0, 99.0)
    line.request(C, 5, 2, 3.0, 99.0)
    line.ledger.release(A, [2, 3])
    assert [granted.holder for granted in line.retry(4.0)] == [B]


def test_service_up_to_a_point_makes_no_difference():
    line = full_line()
    for holder, tokens in ((B, SERVICE_TOKENS - 1), (C, 0)):
        line.ranks.open(holder, Facts(num_tokens=tokens))
        line.request(holder, 1, 2, 1.0, 99.0)
    line.ledger.release(A, [0, 1])
    assert [granted.holder for granted in line.retry(1.0)] == [B]


def test_who_has_waited_goes_before_a_newcomer_of_the_next_priority_and_keeps_that_for_a_while():
    line = full_line()
    line.ranks.open(B, Facts(priority=0))
    line.ranks.open(C, Facts(priority=1))
    line.request(B, 2, 2, 0.0, 999.0)
    line.request(C, 3, 2, AGING_S - 1, 999.0)
    line.ledger.release(A, [0, 1])
    first = line.head(AGING_S + 1)
    assert first is not None
    assert first[1].holder == B
    assert line.head(AGING_S - 1)[1].holder == C
    now = AGING_S + 1
    assert [granted.holder for granted in line.retry(now)] == [B]
    none = frozenset[str]()
    assert line.ranks.rank(B, now, none) < line.ranks.rank(C, now, none)  # C cannot take it back at once
    assert line.ranks.rank(B, now + KEEP_S, none) > line.ranks.rank(C, now + KEEP_S, none)


def test_a_tenant_waits_for_its_own_quota_and_others_do_not():
    line = LeaseQueue(PageLedger(8), quota_of=lambda tenant: {"small": 3}.get(tenant, 0))
    for holder, tenant in ((A, "small"), (B, "small"), (C, "large")):
        line.ranks.open(holder, Facts(tenant=tenant))
    with pytest.raises(QuotaExceeded, match=r"tenants.small.pages: the limit is 3; .*asked for 4 more"):
        line.request(A, 1, 4, 0.0, 30.0)
    assert line.request(A, 1, 2, 0.0, 30.0) == Lease([0, 1], 0)
    assert line.request(B, 2, 2, 0.0, 30.0) is None
    assert line.request(C, 3, 2, 0.0, 30.0) is None
    assert line.retry(0.0) == [Granted(C, 3, Lease([2, 3], 0))]
    line.ledger.release(A, [0])
    assert line.retry(0.0) == [Granted(B, 2, Lease([0, 4], 0))]


def test_deadline_fails_the_request_with_its_numbers_and_lets_the_next_through():
    line = full_line()
    line.request(B, 2, 6, 1.0, 10.0)
    line.request(C, 3, 2, 2.0, 30.0)
    line.ledger.release(A, [0, 1, 2])
    assert line.next_deadline() == 11.0
    assert line.expire(10.9) == []
    (refused,) = line.expire(11.0)
    assert (refused.holder, refused.ticket, type(refused.error)) == (B, 2, OutOfPages)
    assert refused.error.message == (
        "page_wait_s: the limit is 10 s; 6 pages were asked for, and 3 of the pool's 8 (settings model.num_pages, "
        "model.kv_memory_bytes) are free: free pages elsewhere or ask for fewer"
    )
    assert line.next_deadline() == 32.0
    assert line.retry(11.0) == [Granted(C, 3, Lease([0, 1], 0))]


def test_request_past_its_deadline_is_not_served_late():
    line = full_line()
    line.request(B, 2, 1, 1.0, 10.0)
    line.ledger.release(A, [5])
    assert line.retry(11.0) == []
    assert [refused.ticket for refused in line.expire(11.0)] == [2]


def test_more_than_the_pool_has_fails_at_once():
    line = full_line()
    with pytest.raises(OutOfPages, match="the pool has 8 pages .* asked for 9 more"):
        line.request(B, 2, 9, 0.0, 30.0)
    assert len(line) == 0


def test_pages_waited_for_count_towards_what_a_holder_could_ever_have():
    line = LeaseQueue(PageLedger(8))
    line.request(A, 1, 6, 0.0, 30.0)
    assert line.request(B, 2, 6, 0.0, 30.0) is None
    with pytest.raises(OutOfPages, match="the pool has 8 pages .*holds 0, waits for 6 and asked for 3"):
        line.request(B, 3, 3, 0.0, 30.0)
    assert line.request(B, 4, 2, 0.0, 30.0) is None


def test_cancel_and_death_take_requests_out_of_the_line():
    line = full_line()
    other = Holder("peer-b", 2)
    for ticket, holder in enumerate((B, C, B, other), start=2):
        line.request(holder, ticket, 2, 1.0, float(ticket))
    assert line.cancel(B) == [2, 4]
    assert line.cancel(B) == []
    assert line.next_deadline() == 4.0  # C's; that of B is gone
    assert line.drop_peer("peer-b") == [5]
    assert (len(line), line.shortage) == (1, 2)
    line.ledger.close(A)
    assert line.retry(2.0) == [Granted(C, 3, Lease([0, 1], 0))]
