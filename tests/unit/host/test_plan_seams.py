"""Plans and other commands of one inferlet on the same pages: each sees what program order says."""

from __future__ import annotations

import numpy as np
import pytest
from plan_bench import PlanBench, u32

from pieray.errors import OutOfPages
from pieray.messages import ExportPages
from tests.support.digest_runner import reference

PROMPT = [65, 66]
NONE = u32()


class Bed(PlanBench):
    """A plan of 110 tokens on 30 pages, which is on its first ones; and a second queue."""

    def __init__(self, num_pages: int = 256, *, before: list[int] | None = None) -> None:
        super().__init__(num_pages)
        h = self.handlers
        self.page = h.kv.alloc(30)
        self.other = h.queues.create("")
        if before is not None:
            self.run_on_20(before)
        self.number = self.plan(PROMPT, 110, pages=self.page)
        h.plans.start(self.number)
        if before is None:
            self.turn()
            self.turn()

    def run_on_20(self, tokens: list[int], kv_len: int = 0) -> int:
        """A pass on a page that the plan gets to late, and a ticket for what is said behind it."""
        h = self.handlers
        run = h.forward.forward(self.other, self.page[20:21], kv_len, u32(*tokens), NONE, NONE)
        return h.forward.sample(run, len(tokens) - 1, 0.0, 0, 1.0, 0.0, 0)


def test_a_pass_on_a_page_that_a_plan_will_get_to_waits_for_the_plan():
    bed = Bed()
    said = bed.run_on_20([7, 8, 9])
    bed.turn()
    bed.turn()
    assert bed.handlers.tickets.ready(u32(said)) == []
    bed.run()
    assert bed.state_of(bed.number)["state"] == "ended"
    assert bed.handlers.tickets.take_tokens(said).tolist() == reference([7, 8, 9], 1)
    again = bed.run_on_20([10], kv_len=3)
    bed.run()
    assert bed.handlers.tickets.take_tokens(again).tolist() == reference([7, 8, 9, 10], 1), "nobody wrote there since"
    bed.check()


def test_a_plan_waits_for_what_was_enqueued_before_it_on_its_last_pages():
    bed = Bed(before=[7, 8, 9])
    bed.handlers.tickets.flush()
    bed.pump()
    (start,) = bed.core.plans._plans.values()
    assert len(start.pages) == 21, "the batcher knows of the page that both use"
    assert start.num_blockers == 1
    bed.run()
    assert bed.all(bed.number) == reference(PROMPT, 110)
    bed.check()


def test_what_is_exported_is_never_written_to_again():
    bed = Bed()
    bed.run_on_20([7, 8, 9, 1])
    ticket = bed.handlers.kv.export_pages("x", bed.page[20:21], 4, "", "public", 0, False, False)
    bed.turn()
    assert bed.device.asked == [], "the pass is still to come"
    for _ in range(300):
        bed.turn()
        if bed.device.asked:
            break
    (asked,) = bed.device.asked
    assert isinstance(asked, ExportPages)
    (page,) = np.frombuffer(asked.pages, "<u4").tolist()
    held = [bed.runner.slots[page, slot] for slot in range(4)]
    assert [token for token, _ in held] == [7, 8, 9, 1]
    bed.run()
    assert [bed.runner.slots[page, slot] for slot in range(4)] == held
    bed.outbox.ledger.answered(ticket, None)
    bed.check()


def test_a_stopped_plan_holds_no_page_that_it_did_not_get_to():
    bed = Bed()
    bed.handlers.plans.cancel(bed.number)
    said = bed.run_on_20([7, 8, 9])
    bed.run()
    assert bed.handlers.tickets.take_tokens(said).tolist() == reference([7, 8, 9], 1)
    plan = bed.plan(PROMPT, 100, pages=bed.page)
    num_bound = bed.pages.num_bound
    bed.handlers.plans.start(plan)
    bed.handlers.tickets.flush()
    assert bed.pages.num_bound < num_bound + 20
    assert bed.all(plan) == reference(PROMPT, 100)
    bed.check()


@pytest.mark.parametrize("is_lent", [True, False])
def test_memory_that_lacks_for_the_pages_between_is_waited_for(is_lent: bool):
    bed = Bed(num_pages=18)
    said = bed.run_on_20([7, 8, 9])
    bed.turn()
    assert bed.waiting
    if is_lent:
        bed.begin_export(100)
        while bed.waiting:
            bed.begin_export(20)
        bed.run()
        assert bed.handlers.tickets.take_tokens(said).tolist() == reference([7, 8, 9], 1)
    else:
        bed.outbox.leases.lease_failed(OutOfPages("none came"))
        with pytest.raises(OutOfPages, match="none came"):
            bed.handlers.tickets.take_tokens(said)
    bed.check()
