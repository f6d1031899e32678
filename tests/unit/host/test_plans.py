"""Decode plans from handler to batcher, on a runner that checks what each token is built on."""

from __future__ import annotations

import re

import numpy as np
import pytest
from plan_bench import PlanBench, u32

from pieray.errors import InvalidRequest, OutOfPages
from tests.support.digest_runner import chain, reference, score

PROMPT = [65, 66, 67, 68, 69]


def test_a_plan_says_what_forward_and_sample_say():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 40)
    bench.handlers.plans.start(plan)
    assert bench.all(plan) == reference(PROMPT, 40)
    state = bench.state_of(plan)
    assert (state["state"], state["finish_reason"], state["num_tokens"], state["kv_len"]) == ("ended", "length", 40, 44)
    assert state["num_steps"] == 40
    assert bench.next(plan) == [], "it has ended"
    bench.check()


def test_draws_depend_on_seed_and_position_alone():
    bench = PlanBench()
    samplers = [bench.handlers.samplers.create(1.0, 0, 1.0, 0.0, 1.0, seed) for seed in range(8)]
    plans = [bench.plan(PROMPT, 20, sampler=s, queue=bench.handlers.queues.create("")) for s in samplers]
    for plan in plans:
        bench.handlers.plans.start(plan)
    found = [bench.all(plan) for plan in plans]
    assert found == [reference(PROMPT, 20, seed, 1.0) for seed in range(8)]
    assert len(set(map(tuple, found))) == 8
    assert max(bench.runner.batches) == 8, "plans share steps"


def test_the_batcher_runs_ahead_of_the_guest():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 30)
    bench.handlers.plans.start(plan)
    first = bench.next(plan)
    bench.run()
    assert first == reference(PROMPT, 1)
    assert bench.next(plan) == reference(PROMPT, 30)[1:], "all the rest at once"


def test_pages_are_bound_as_the_plan_gets_there():
    bench = PlanBench()
    bench.free = list(range(500))
    plan = bench.plan(PROMPT, 900)
    bench.handlers.plans.start(plan)
    bench.handlers.tickets.flush()
    bench.pump()
    assert bench.pages.num_bound < 40
    bench.run()
    assert bench.all(plan) == reference(PROMPT, 900)
    assert bench.pages.num_bound == -(-904 // 4)
    bench.check()


def test_what_a_plan_lacks_is_asked_for_with_what_it_will_want_soon():
    bench = PlanBench()
    bench.handlers.plans.start(bench.plan(PROMPT, 900))
    bench.handlers.tickets.flush()
    (count, deadline_s), (more,) = bench.device.leases[-1], bench.device.num_more[-1:]
    assert (count, deadline_s > 0) == (-(-len(PROMPT) // 4), True)
    assert more == 4  # a usual lease
    bench.run()
    bench.check()


def test_no_page_stalls_a_plan_and_the_deadline_fails_it():
    bench = PlanBench(num_pages=6)
    plan = bench.plan(PROMPT, 60)
    bench.handlers.plans.start(plan)
    bench.run()
    expected = reference(PROMPT, 60)
    got = bench.next(plan)
    assert 0 < len(got) < 60
    assert got == expected[: len(got)]
    assert bench.waiting, "a page is waited for, in line"
    bench.begin_export(8)
    bench.run()
    more = bench.next(plan)
    assert got + more == expected[: len(got + more)]
    assert bench.waiting
    bench.outbox.leases.lease_failed(OutOfPages("no page in 9 s"))
    ticket = bench.handlers.plans.next(plan)
    bench.run()
    with pytest.raises(OutOfPages, match="no page in 9 s"):
        bench.handlers.tickets.take_tokens(ticket)
    assert bench.state_of(plan)["state"] == "ended"
    bench.free += range(5000, 5050)
    bench.handlers.plans.truncate(plan, len(got + more))
    bench.handlers.plans.resume(plan)
    assert got + more + bench.all(plan) == expected
    bench.check()


def test_pause_truncate_and_resume_change_nothing_but_the_future():
    bench = PlanBench()
    hot = bench.handlers.samplers.create(1.0, 0, 1.0, 0.0, 1.0, 5)
    plan = bench.plan(PROMPT, 50, sampler=hot)
    bench.handlers.plans.start(plan)
    got = bench.next(plan) + bench.next(plan)
    bench.wait(bench.handlers.plans.pause(plan))
    num_drawn = bench.state_of(plan)["num_tokens"]
    while more := bench.next(plan):
        got += more
    assert len(got) == num_drawn < 50
    assert bench.state_of(plan)["state"] == "paused"
    bench.handlers.plans.truncate(plan, 1)
    cold = bench.handlers.samplers.create(0.0, 0, 1.0, 0.0, 1.0, 0)
    bench.handlers.plans.set_sampler(plan, cold)
    bench.handlers.plans.resume(plan)
    rest = bench.all(plan)
    assert got[0] == reference(PROMPT, 1, 5, 1.0)[0]
    assert rest == reference([*PROMPT, got[0]], 49)
    bench.check()


def test_a_paused_plan_lets_others_write_and_then_goes_on_from_its_own_tokens():
    bench = PlanBench()
    pages = bench.handlers.kv.alloc(8)
    plan = bench.plan(PROMPT, 20, pages=pages)
    bench.handlers.plans.start(plan)
    got = bench.next(plan)
    bench.wait(bench.handlers.plans.pause(plan))
    while more := bench.next(plan):
        got += more
    kv_len = bench.state_of(plan)["kv_len"]
    other = bench.handlers.forward.forward(bench.queue, pages, kv_len, u32(1, 2), u32(), u32())
    bench.wait(other)
    bench.handlers.plans.resume(plan)
    assert got + bench.all(plan) == reference(PROMPT, 20)


@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_stop_token_is_given_and_ends_it(place):
    bench = PlanBench()
    expected = reference(PROMPT, 40)
    stop = expected[place]
    plan = bench.plan(PROMPT, 40)
    bench.handlers.plans.set_stop(plan, u32(stop), [])
    bench.handlers.plans.start(plan)
    assert bench.all(plan) == expected[: expected.index(stop) + 1]
    state = bench.state_of(plan)
    assert (state["finish_reason"], state["stopped_by"]) == ("stop", stop)


def test_a_stop_text_is_met_across_tokens_and_across_runs():
    bench = PlanBench()
    expected = reference(PROMPT, 60)
    text = "".join(bench.parts.models.get("").tokenizer.decode([t]) for t in expected)
    stop = text[20:25]
    end = text.index(stop) + 5
    plan = bench.plan(PROMPT, 60)
    bench.handlers.plans.set_stop(plan, u32(), ["never there", stop])
    bench.handlers.plans.start(plan)
    got: list[int] = []
    while bench.state_of(plan)["num_tokens"] < end - 2:
        got += bench.next(plan)
    bench.wait(bench.handlers.plans.pause(plan))
    while more := bench.next(plan):
        got += more
    bench.handlers.plans.truncate(plan, end - 2)
    bench.handlers.plans.resume(plan)
    assert got[: end - 2] + bench.all(plan) == expected[:end]
    assert bench.state_of(plan)["stopped_by"] == stop


@pytest.mark.parametrize("num_drafts", [1, 4, 15])
def test_a_drafter_changes_the_steps_and_not_the_text(num_drafts):
    bench = PlanBench()
    expected = reference(PROMPT, 120)
    plan = bench.plan(PROMPT, 120)
    bench.handlers.plans.set_drafter(plan, num_drafts, u32(*expected))
    bench.handlers.plans.start(plan)
    assert bench.all(plan) == expected
    state = bench.state_of(plan)
    assert 0 < state["num_accepted"] <= state["num_drafted"]
    assert state["num_steps"] == 120 - state["num_accepted"]
    assert state["num_steps"] < 90
    assert state["kv_len"] == len(PROMPT) + 119
    bench.check()


def test_hidden_tokens_stay_hidden_from_a_plan():
    said = []
    for is_plan in (True, False):
        bench = PlanBench()
        h, pages = bench.handlers, bench.handlers.kv.alloc(12)
        bench.wait(h.forward.forward(bench.queue, pages, 0, u32(*range(1, 10)), u32(), u32()))
        h.kv.mask(int(pages[0]), 1, 2, False)
        if is_plan:
            plan = bench.plan([77], 12, pages=pages, kv_len=9)
            h.plans.start(plan)
            said.append(bench.all(plan))
            continue
        line, kv_len = [77], 9
        while len(line) < 13:
            run = h.forward.forward(bench.queue, pages, kv_len, u32(line[-1]), u32(), u32())
            ticket = h.forward.sample(run, 0, 0.0, 0, 1.0, 0.0, 0)
            bench.run()
            line += h.tickets.take_tokens(ticket).tolist()
            kv_len += 1
        said.append(line[1:])
    assert said[0] == said[1] != reference([*range(1, 10), 77], 12)


def test_scores_come_with_the_tokens():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 6)
    bench.handlers.plans.score(plan)
    bench.handlers.plans.start(plan)
    bench.run()
    ticket = bench.handlers.plans.next_scored(plan)
    tokens, scores = bench.handlers.tickets.take_distribution(ticket)
    digest, expected = 0, []
    for token in PROMPT:
        digest = chain(digest, token)
    for token in tokens.tolist():
        expected.append(score(digest, token))
        digest = chain(digest, token)
    assert tokens.tolist() == reference(PROMPT, 6)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_grammar_rules_what_is_drawn():
    from pieray.grammar import GrammarCompiler

    bench = PlanBench()
    compiler = GrammarCompiler(bench.parts.models.get("").tokenizer.spec, 256)
    matcher = bench.parts.tables.matchers.put(compiler.compile("regex", "[0-9]{3}-[a-c]+x", tenant="").matcher())
    plan = bench.plan(PROMPT, 50)
    bench.handlers.plans.set_grammar(plan, matcher)
    bench.handlers.plans.set_drafter(plan, 4, u32())
    bench.handlers.plans.start(plan)
    text = bench.parts.models.get("").tokenizer.decode(bench.all(plan))
    assert re.fullmatch("[0-9]{3}-[a-c]+x?!?", text), text
    assert bench.state_of(plan)["finish_reason"] in ("grammar", "length")


def test_a_grammar_goes_on_over_pause_and_truncation():
    from pieray.grammar import GrammarCompiler

    bench = PlanBench()
    compiler = GrammarCompiler(bench.parts.models.get("").tokenizer.spec, 256)
    matcher = bench.parts.tables.matchers.put(compiler.compile("regex", "[0-9]{8}x", tenant="").matcher())
    plan = bench.plan(PROMPT, 50)
    bench.handlers.plans.set_grammar(plan, matcher)
    bench.handlers.plans.start(plan)
    bench.next(plan)
    bench.wait(bench.handlers.plans.pause(plan))
    whole = bench.plan(PROMPT, 50)
    bench.handlers.plans.set_grammar(whole, matcher)
    bench.handlers.plans.start(whole)
    expected = bench.all(whole)
    bench.handlers.plans.truncate(plan, 1)
    bench.handlers.plans.resume(plan)
    assert [expected[0], *bench.all(plan)] in (expected, [expected[0], *expected])


def test_a_grammar_that_cannot_be_compiled_is_the_plans_error():
    bench = PlanBench()
    plan = bench.plan(PROMPT, 5)
    bench.handlers.plans._plans.get(plan).settings.grammar = ("regex", "[", b"")
    bench.handlers.plans.start(plan)
    with pytest.raises(InvalidRequest):
        bench.next(plan)
    other = bench.plan(PROMPT, 5)
    bench.handlers.plans.start(other)
    assert bench.all(other) == reference(PROMPT, 5)
