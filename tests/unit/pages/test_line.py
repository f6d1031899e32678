"""LeaseLine: strict first come, first served; every request ends with pages or with an error."""

import pytest

from pieray.errors import OutOfPages
from pieray.pages.ledger import Holder, Lease, PageLedger
from pieray.pages.line import Granted, LeaseLine

A, B, C = (Holder(f"peer-{name}", 1) for name in "abc")


def full_line(total: int = 8) -> LeaseLine:
    """A line whose pages are all with A."""
    line = LeaseLine(PageLedger(total))
    assert line.request(A, 1, total, 0.0, 30.0) == Lease(list(range(total)), 0)
    return line


def test_free_pages_are_granted_at_once():
    line = LeaseLine(PageLedger(8))
    assert line.request(A, 1, 3, now=0.0, deadline_s=30.0) == Lease([0, 1, 2], 0)
    assert (len(line), line.shortage, line.next_deadline()) == (0, 0, None)


def test_nobody_overtakes():
    line = full_line()
    assert line.request(B, 2, 5, 1.0, 30.0) is None
    assert line.request(C, 3, 1, 2.0, 30.0) is None
    assert line.shortage == 6
    line.ledger.release(A, [0, 1])
    assert line.retry(3.0) == []  # one would do for C, but B came first
    assert line.request(A, 4, 1, 3.5, 30.0) is None  # nor may a newcomer
    assert line.shortage == 5
    line.ledger.release(A, [2, 3, 4, 5])
    assert line.retry(4.0) == [Granted(B, 2, Lease([2, 3, 4, 5, 0], 0)), Granted(C, 3, Lease([1], 0))]
    line.ledger.release(A, [6])
    assert line.retry(5.0) == [Granted(A, 4, Lease([6], 0))]
    assert (len(line), line.shortage, line.next_deadline()) == (0, 0, None)
    line.ledger.check()


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
    line = LeaseLine(PageLedger(8))
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
