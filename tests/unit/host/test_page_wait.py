"""`page_wait_s` runs in the InferletActor too: a ResourceManager that is frozen answers nobody."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import Bench

from pieray.config import Limits
from pieray.errors import OutOfPages
from pieray.host.device.ledger import GRACE_S

NONE = np.array([], np.uint32)


def u32(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


def pass_without_memory(bench: Bench) -> int:
    """The ticket of a pass for whose page nothing is leased."""
    queue, pages = bench.handlers.queues.create(""), bench.handlers.kv.alloc(1)
    ticket: int = bench.handlers.forward.forward(queue, pages, 0, u32(1), NONE, NONE)
    bench.outbox.flush()
    return ticket


def rings(bench: Bench) -> list[float]:
    return [timer.seconds for timer in bench.timers if not timer.is_cancelled]


def test_a_command_whose_lease_nobody_answers_is_out_of_pages() -> None:
    bench = Bench()
    first = pass_without_memory(bench)
    (timer,) = [one for one in bench.timers if not one.is_cancelled]
    assert timer.seconds == 9.0 + GRACE_S  # of the bench's page_wait_s
    timer.ring()
    with pytest.raises(OutOfPages, match="page_wait_s: no page came within 9 s; the ResourceManager does not"):
        bench.handlers.tickets.take_none(first)
    second = pass_without_memory(bench)
    assert bench.device.leases == [(1, 9.0), (4, 0.0)]  # ahead of need, behind the first one: it has no answer either
    assert bench.timers[-1].seconds == GRACE_S
    bench.timers[-1].ring()
    assert bench.device.leases[2:] == [(1, 9.0)]
    for _ in range(2):  # it wakes up: these are no answers to the third request
        bench.outbox.leases.lease_failed(OutOfPages("of another one"))
    assert bench.outbox.num_outstanding == 1
    assert not bench.timers[-1].is_cancelled
    bench.outbox.leases.granted([5])
    bench.complete_all()
    bench.handlers.tickets.take_none(second)


def test_an_answer_in_time_and_the_end_of_the_device_cancel_the_timer() -> None:
    bench = Bench()
    pass_without_memory(bench)
    assert len(rings(bench)) == 1
    bench.outbox.leases.granted([5])
    assert rings(bench) == [GRACE_S]  # of a lease ahead of need
    bench = Bench()
    pass_without_memory(bench)
    bench.outbox.fail_all(OutOfPages("lost"))
    assert rings(bench) == []
    bench = Bench()
    pass_without_memory(bench)
    bench.outbox.close()
    assert rings(bench) == []


def test_a_reservation_that_nobody_answers_is_out_of_pages_and_what_comes_late_goes_back() -> None:
    bench = Bench(Limits(page_wait_s=3.0))
    ticket = bench.handlers.kv.reserve(2)
    (timer,) = bench.timers
    assert timer.seconds == 3.0 + GRACE_S
    timer.ring()
    with pytest.raises(OutOfPages, match="within 3 s"):
        bench.handlers.tickets.take_none(ticket)
    bench.outbox.ledger.answered(ticket, [u32(8, 9).astype("<u4").tobytes(), 0])
    assert bench.device.released == [8, 9]
    assert bench.pages.num_spare == 0
