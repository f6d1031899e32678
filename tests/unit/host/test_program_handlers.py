"""Tensor programs as a guest uses them, from the SDK through the handlers to a real model; what is refused, and why."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from arrays import NONE, u32
from fakes import Bench
from test_rebuild_bits import NUM_PAGES, ModelBench, text

from inferlet import _host, _raw, tensor
from pieray.assets import model_folder
from pieray.config import Limits
from pieray.errors import BadHandle, InvalidRequest, PierayError, Unsupported
from pieray.host.models import ModelInfo
from pieray.host.tables import HandleTables
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.models.sampler import uniforms
from pieray.sched.core import BatcherCore

PROMPT = text(37)
F32 = np.zeros(0, np.float32)


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner.load(model_folder("pie-tiny"), num_pages=NUM_PAGES, page_size=4, swap_bytes=64 << 20)


class ProgramBench(ModelBench):
    """Knows the model's sizes; `made` is the handle of a program that the SDK has written."""

    def __init__(self, runner: ModelRunner, **limits: int) -> None:
        super().__init__(runner)
        c = runner.config
        info = ModelInfo(
            "pie-tiny", "llama", c.vocab_size, 1024, 4, NUM_PAGES, "float32", "cpu", c.hidden_size,
            num_layers=c.num_layers, num_heads=c.num_heads, head_dim=c.head_dim,
        )  # fmt: skip
        self.parts.tables = HandleTables(Limits(**limits))
        self.parts.identity = dataclasses.replace(self.parts.identity, limits=Limits(**limits))
        self.change(info=info)
        self.queue = self.handlers.queues.create("")
        _host.install(SimpleNamespace(programs=SimpleNamespace(create=self._create, free=self._free)))

    def _create(self, code: str, states: list[float]) -> int:
        try:
            return self.handlers.programs.create(code, np.array(states, np.float32))
        except PierayError as error:
            name = error.code.upper().replace("-", "_")
            raise _raw.Err(SimpleNamespace(code=SimpleNamespace(name=name), message=error.message)) from None

    def _free(self, handles: list[int]) -> None:
        self.handlers.programs.free(u32(*handles))

    def sampler(self, *programs: tensor.TensorProgram, temperature: float = 1.0, seed: int = 5) -> int:
        handle = self.handlers.samplers.create(temperature, 0, 1.0, 0.0, 1.0, seed)
        self.handlers.programs.for_sampler(handle, *tensor.draws_of(programs))
        return handle

    def by_plan(self, count: int, sampler: int, programs: list[tensor.TensorProgram] = ()) -> list[int]:  # type: ignore[assignment]
        plan = self.plan(PROMPT, count, sampler=sampler)
        if programs:
            self.handlers.programs.for_plan(plan, u32(*[one.id for one in programs]))
        self.handlers.plans.start(plan)
        found = self.all(plan)
        self.handlers.plans.close(plan)
        return found

    def by_passes(self, count: int, sampler: int, programs: list[tensor.TensorProgram] = ()) -> list[int]:  # type: ignore[assignment]
        pages, tokens, kv_len, waiting = self.alloc(40), [], 0, list(PROMPT)
        while len(tokens) < count:
            pass_ = self.handlers.forward.forward(self.queue, pages, kv_len, u32(*waiting), NONE, NONE)
            if programs:
                self.handlers.programs.for_pass(pass_, u32(*[one.id for one in programs]))
            tokens.append(self.drawn(self.handlers.forward.sample_with(pass_, len(waiting) - 1, sampler)))
            kv_len, waiting = kv_len + len(waiting), [tokens[-1]]
        return tokens

    def states(self, program: tensor.TensorProgram) -> np.ndarray:
        ticket = self.handlers.programs.states(program.id)
        self.run()
        return np.asarray(self.handlers.tickets.take_floats(ticket))

    def counts(self, program: tensor.TensorProgram) -> dict[str, int]:
        ticket = self.handlers.programs.counts(program.id)
        self.run()
        return json.loads(self.handlers.tickets.take_text(ticket))


@pytest.fixture
def bench(runner: ModelRunner) -> ProgramBench:
    return ProgramBench(runner)


def top_n_sigma(n: float) -> tensor.TensorProgram:
    return tensor.draw(lambda logits: tensor.where(logits >= logits.max() - n * logits.std(), logits, -tensor.inf))


def mirostat(tau: float, rate: float = 0.2) -> tensor.TensorProgram:
    """Mirostat v2 (Basu et al. 2020): the state is mu, in bits."""

    def kept(logits: Any, mu: Any) -> Any:
        bits = logits.log_softmax() * (-1 / np.log(2))
        return tensor.where((bits <= mu) | (logits >= logits.max()), logits, -tensor.inf)

    def steered(result: Any, token: Any, mu: Any) -> dict[str, Any]:
        return {"mu": mu - rate * (result.log_softmax().take(token) * (-1 / np.log(2)) - tau)}

    return tensor.draw(kept, states={"mu": 2 * tau}, update=steered)


def test_a_sampler_draws_what_its_formula_says(bench: ProgramBench, runner: ModelRunner) -> None:
    """Top-n-sigma: by hand from the logits, with the number that the built-in samplers draw with."""
    tokens = bench.by_plan(24, bench.sampler(top_n_sigma(1.0), seed=11))
    assert len(set(tokens)) > 3
    pages, line = bench.alloc(40), [*PROMPT, *tokens]
    pass_ = bench.handlers.forward.forward(bench.queue, pages, 0, u32(*line), NONE, NONE)
    asked = [bench.handlers.forward.logits(pass_, len(PROMPT) - 1 + place) for place in range(len(tokens))]
    bench.run()
    for place, ticket in enumerate(asked):
        logits = np.asarray(bench.handlers.tickets.take_floats(ticket), np.float64)
        kept = np.where(logits >= logits.max() - logits.std(), np.exp(logits - logits.max()), 0)
        uniform = uniforms(np.array([11], np.uint64), np.array([len(PROMPT) - 1 + place], np.uint64))[0]
        assert tokens[place] == np.searchsorted(kept.cumsum(), uniform * kept.sum(), side="right")


@pytest.mark.parametrize("make", [lambda: top_n_sigma(2.0), lambda: mirostat(3.0)])
def test_plans_and_passes_draw_the_same(bench: ProgramBench, make: Callable[[], tensor.TensorProgram]) -> None:
    by_plan = bench.by_plan(30, bench.sampler(make()))
    assert bench.by_passes(30, bench.sampler(make())) == by_plan
    bench.check()


def test_many_plans_of_one_program_draw_what_each_draws_alone(bench: ProgramBench) -> None:
    alone = [bench.by_plan(20, bench.sampler(mirostat(1.0 + n), seed=n)) for n in range(4)]
    plans = [bench.plan(PROMPT, 20, sampler=bench.sampler(mirostat(1.0 + n), seed=n)) for n in range(4)]
    plans.append(bench.plan(PROMPT, 20))
    for plan in plans:
        bench.handlers.plans.start(plan)
    assert [bench.all(plan) for plan in plans][:4] == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


def test_a_state_goes_on_from_draw_to_draw_and_can_be_taken_along(bench: ProgramBench) -> None:
    """Mu follows its formula over the tokens drawn; a program that begins with the state of another goes on as it."""
    program = mirostat(2.0)
    assert bench.states(program).tolist() == [4.0]
    tokens = bench.by_plan(10, bench.sampler(program))
    mu = float(bench.states(program)[0])
    assert mu != 4.0
    assert bench.counts(program)["rows"] == 10
    other = program.again([mu])
    assert float(bench.states(other)[0]) == pytest.approx(mu)
    assert bench.by_plan(30, bench.sampler(mirostat(2.0)))[:10] == tokens


def test_a_processor_with_counts_as_state_forbids_what_was_drawn(bench: ProgramBench) -> None:
    """A presence penalty over the vocabulary, greedy: no token comes twice; without the program, some do."""
    program = tensor.logits(
        lambda logits, seen: tensor.where(seen > 0, -tensor.inf, logits),
        states={"seen": "V"},
        update=lambda seen, token: {"seen": seen.scatter_add(token, 1.0)},
    )
    plain = bench.by_plan(30, 0)
    tokens = bench.by_plan(30, bench.sampler(program, temperature=0.0))
    assert len(set(plain)) < 30 == len(set(tokens))
    assert np.flatnonzero(bench.states(program)).tolist() == sorted(tokens)


def test_draws_of_one_program_in_one_step_take_turns(bench: ProgramBench) -> None:
    """Two samples of one pass through one program: the second sees the state that the first has left."""
    program = tensor.logits(
        lambda logits, seen: tensor.where(seen > 0, -tensor.inf, logits),
        states={"seen": "V"},
        update=lambda seen, token: {"seen": seen.scatter_add(token, 1.0)},
    )
    pass_ = bench.handlers.forward.forward(bench.queue, bench.alloc(40), 0, u32(*PROMPT), NONE, NONE)
    sampler = bench.sampler(program, temperature=0.0)
    asked = [bench.handlers.forward.sample_with(pass_, 36, sampler) for _ in range(4)]
    ranked = bench.handlers.forward.distribution(pass_, 36, 4)
    bench.run()
    tokens = [int(bench.handlers.tickets.take_tokens(ticket)[0]) for ticket in asked]
    assert tokens == [int(token) for token in bench.handlers.tickets.take_distribution(ranked)[0]]


def test_greedy_draws_take_the_best_of_a_program(bench: ProgramBench) -> None:
    plain = bench.by_plan(12, 0)
    assert bench.by_plan(12, bench.sampler(top_n_sigma(1.0), temperature=0.0)) == plain


def test_quest_reads_few_pages_and_all_pages_are_full_attention(bench: ProgramBench, runner: ModelRunner) -> None:
    plain, every = bench.by_plan(24, 0), tensor.quest(10_000)
    assert bench.by_plan(24, 0, [every]) == plain
    assert bench.by_passes(24, bench.sampler(temperature=0.0), [tensor.quest(10_000)]) == plain
    few = tensor.quest(3)
    assert len(bench.by_plan(24, 0, [few])) == 24
    found, rows = bench.counts(few), 23 * runner.config.num_layers
    assert found["rows"] == rows
    assert 3 * rows <= found["pages_read"] <= 4 * rows
    assert found["pages_held"] == runner.config.num_layers * sum(-(-(len(PROMPT) + n) // 4) for n in range(1, 24))


def test_what_a_program_may_have_changed_is_found_by_nobody(runner: ModelRunner) -> None:
    """Pages of a steered pass have no hash, though tokens and positions are those of plain ones."""
    bench = ProgramBench(runner)
    vector = [0.5] * runner.config.hidden_size
    bench.by_plan(8, 0, [tensor.steer(vector, 0)])
    contents = bench.sides.first.lineage._log
    assert contents
    assert all(step.adapter >= 1 << 31 for step in contents)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: tensor.logits(lambda logits: logits.sum()), r"result of stage logits is float\[\d+\]; .* is float\[\]"),
    (lambda: tensor.logits(lambda mass: mass), "a program of stage logits is given logits, position, uniform, token"),
    (lambda: tensor.logits(lambda logits: logits * [1.0, 2.0]), r"operation 2 \(mul\): shapes .* do not go together"),
    (lambda: tensor.logits(lambda logits, token: logits + token), "cannot depend on the token"),
    (lambda: tensor.hidden(lambda hidden: hidden, layers=[99]), "layers are numbers from 0 to"),
    (lambda: tensor.pages(lambda bound: bound.max()), r"result of stage pages is bool\[P\]; .* float\[P\]"),
    (lambda: tensor.logits(lambda logits: logits.max(3)), "an axis of 1 is from -1 to 0; given 3"),
    (lambda: tensor.TensorProgram("logits", "[1"), "a tensor program is JSON"),
    (lambda: tensor.TensorProgram("logits", '{"stage": "logits", "ops": [["input", 7]]}'), "not '7'"),
    (lambda: tensor.TensorProgram("x", '{"stage": "x", "ops": []}'), "stage of a program is one of logits, draw"),
    (lambda: tensor.TensorProgram("draw", '{"stage": "draw", "ops": [["exec", 0]]}'), "operations are input, state"),
    (
        lambda: tensor.TensorProgram("draw", '{"stage": "draw", "ops": [["add", 0, 0]]}'),
        "numbers of earlier operations",
    ),
]


@pytest.mark.parametrize(("write", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(bench: ProgramBench, write: Callable[[], Any], message: str) -> None:
    from inferlet import InvalidRequest as Refused

    with pytest.raises(Refused, match=message):
        write()


def test_limits_are_named_with_what_was_given(runner: ModelRunner) -> None:
    from inferlet import QuotaExceeded as Quota

    small = ProgramBench(runner, program_ops=5, program_bytes=1500, program_work=100_000, programs=2)
    with pytest.raises(Quota, match="program_ops: the limit is 5; this program has 7"):
        tensor.logits(lambda logits: logits + 1 + 2.0 + 3)
    with pytest.raises(Quota, match="program_bytes: the limit is 1500; this program has"):
        tensor.hidden(lambda hidden: hidden + [0.5] * runner.config.hidden_size * 8)
    with pytest.raises(Quota, match="program_work: the limit is 100000 operations for a row"):
        tensor.logits(lambda logits: logits.rank().sort().float())
    with pytest.raises(Quota, match="program_bytes: the limit is 1500; these states have"):
        tensor.logits(lambda logits: logits, states={"seen": "V"}, update=lambda seen: {"seen": seen})
    kept = [tensor.logits(lambda logits: logits) for _ in range(2)]
    with pytest.raises(Quota, match="the limit is 2 tensor programs open"):
        tensor.logits(lambda logits: logits)
    for one in kept:
        one.close()
    assert small.by_plan(3, small.sampler(tensor.logits(lambda logits: logits), temperature=0.0)) == small.by_plan(3, 0)


def test_where_programs_do_not_run(bench: ProgramBench) -> None:
    handlers = bench.handlers
    draw, few = top_n_sigma(1.0), tensor.quest(2)
    watch = tensor.attention(states={"mass": "P"}, update=lambda mass: {"mass": mass})
    pages = bench.alloc(40)
    pass_ = handlers.forward.forward(bench.queue, pages, 0, u32(*PROMPT), NONE, NONE)
    with pytest.raises(InvalidRequest, match="stage draw are a sampler's"):
        handlers.programs.for_pass(pass_, u32(draw.id))
    with pytest.raises(InvalidRequest, match="pages or attention, not of both"):
        handlers.programs.for_pass(pass_, u32(few.id, watch.id))
    with pytest.raises(InvalidRequest, match="at most 8 programs"):
        handlers.programs.for_pass(pass_, u32(*[few.id] * 9))
    with pytest.raises(BadHandle):
        handlers.programs.for_pass(pass_, u32(999))
    handlers.programs.for_pass(pass_, u32(few.id))
    with pytest.raises(InvalidRequest, match="takes no mask"):
        handlers.forward.mask_runs(pass_, 0, u32(1))
    sampler = handlers.samplers.create(1.0, 0, 1.0, 0.0, 1.0, 0)
    with pytest.raises(InvalidRequest, match="a program of stage logits is wanted here; given one of stage draw"):
        handlers.programs.for_sampler(sampler, draw.id, 0)
    bench.run()


def test_drafts_and_states_do_not_go_together(bench: ProgramBench) -> None:
    plan = bench.plan(PROMPT, 10, sampler=bench.sampler(mirostat(2.0)))
    bench.handlers.plans.set_drafter(plan, 4, NONE)
    bench.handlers.plans.start(plan)
    with pytest.raises(Unsupported, match="no states"):
        bench.all(plan)
    plain = bench.sampler(top_n_sigma(1.0))
    plan = bench.plan(PROMPT, 10, sampler=plain)
    bench.handlers.plans.set_drafter(plan, 4, NONE)
    bench.handlers.plans.start(plan)
    assert bench.all(plan) == bench.by_plan(10, plain)


def test_a_program_that_gives_nan_fails_its_draw_alone(bench: ProgramBench) -> None:
    bad = tensor.draw(lambda logits: logits * 0.0 / 0.0)
    plans = [bench.plan(PROMPT, 5, sampler=bench.sampler(bad)), bench.plan(PROMPT, 5)]
    for plan in plans:
        bench.handlers.plans.start(plan)
    with pytest.raises(InvalidRequest, match="gave NaN"):
        bench.all(plans[0])
    assert bench.all(plans[1]) == bench.by_plan(5, 0)


def test_a_freed_program_runs_what_was_enqueued_and_no_more(bench: ProgramBench) -> None:
    program = top_n_sigma(1.0)
    sampler = bench.sampler(program)
    plan = bench.plan(PROMPT, 8, sampler=sampler)
    bench.handlers.plans.start(plan)
    program.close()
    assert len(bench.all(plan)) == 8
    late = bench.plan(PROMPT, 8, sampler=sampler)
    bench.handlers.plans.start(late)
    with pytest.raises(BadHandle, match="is not open"):
        bench.all(late)
    with pytest.raises(BadHandle):
        bench.handlers.programs.free(u32(77))


def test_plans_with_programs_of_draws_are_rows_of_the_decode_table(bench: ProgramBench) -> None:
    """A step of them is one with all others; a program inside of the pass makes it a command."""
    sampler = bench.sampler(mirostat(2.0))
    wide = [[0.0] * bench.sides.first.info.vocab_size] * 64
    wide_program = tensor.logits(lambda logits: logits + (logits + wide).sort().sum(0) * 0.0)
    heavy = bench.sampler(wide_program, temperature=0.0)
    for chain, programs, num_rows in ((sampler, [], 1), (sampler, [tensor.quest(3)], 0), (heavy, [], 0)):
        plan = bench.plan(PROMPT, 20, sampler=chain)
        bench.handlers.programs.for_plan(plan, u32(*[one.id for one in programs]))
        bench.handlers.plans.start(plan)
        for _ in range(4):
            bench.turn()
        assert len(bench.core._scheduler.table) == num_rows
        assert len(bench.all(plan)) == 20


@pytest.mark.parametrize("stage", ["draw", "hidden", "pages"])
def test_programs_and_their_states_stay_when_pages_are_given_up(runner: ModelRunner, stage: str) -> None:
    """Again and again in the middle of a plan: the text is that without."""

    def drawn(preempts: random.Random | None) -> list[int]:
        bench = ProgramBench(runner)
        bench.core = BatcherCore(runner, ModelSettings(page_size=4), num_swap_slots=runner.host_pool.num_slots)
        bench.preempts = preempts
        if stage == "draw":
            return bench.by_plan(30, bench.sampler(mirostat(2.0)))
        if stage == "pages":
            return bench.by_plan(30, 0, [tensor.quest(3)])
        return bench.by_plan(30, 0, [tensor.steer([0.2] * runner.config.hidden_size, 2)])

    assert drawn(random.Random(3)) == drawn(None)


def test_two_plans_of_one_program_with_states_take_turns(bench: ProgramBench) -> None:
    """Both draw through it in each step: no token comes twice in either."""
    program = tensor.logits(
        lambda logits, seen: tensor.where(seen > 0, -tensor.inf, logits),
        states={"seen": "V"},
        update=lambda seen, token: {"seen": seen.scatter_add(token, 1.0)},
    )
    sampler = bench.sampler(program, temperature=0.0)
    plans = [bench.plan(PROMPT, 15, sampler=sampler) for _ in range(2)]
    for plan in plans:
        bench.handlers.plans.start(plan)
    tokens = [token for plan in plans for token in bench.all(plan)]
    assert len(set(tokens)) == 30


def test_programs_are_of_the_default_model() -> None:
    """On a queue of another one they are refused, with both names."""
    small = ModelInfo("small", "llama", 200, 64, 4, 32, "float32", "cpu")
    handlers = Bench(others={"small": small}).handlers
    program = handlers.programs.create('{"stage": "logits", "ops": [["input", "logits"]], "result": 0}', F32)
    sampler = handlers.samplers.create(1.0, 0, 1.0, 0.0, 1.0, 0)
    handlers.programs.for_sampler(sampler, program, 0)
    other = handlers.queues.create("small")
    pass_ = handlers.forward.forward(other, handlers.kv.alloc_for("small", 2), 0, u32(1, 2), NONE, NONE)
    with pytest.raises(InvalidRequest, match="tensor programs are of fake, the default model; this is for small"):
        handlers.forward.sample_with(pass_, 1, sampler)
    watch = handlers.programs.create(
        '{"stage": "attention", "ops": [["input", "mass"]], "states": [[["P"], null]], "updates": [0]}', F32
    )
    with pytest.raises(InvalidRequest, match="the default model; this is for small"):
        handlers.programs.for_pass(pass_, u32(watch))


def test_a_pass_may_be_older_than_its_programs(bench: ProgramBench) -> None:
    """It is enqueued, and then somebody thinks of a program for it; also behind others that have gone."""
    for _ in range(2):
        pass_ = bench.handlers.forward.forward(bench.queue, bench.alloc(40), 0, u32(*PROMPT), NONE, NONE)
        total = tensor.attention(states={"total": "P"}, update=lambda total, mass: {"total": total + mass})
        sampler = bench.sampler(top_n_sigma(1.0))
        bench.handlers.programs.for_pass(pass_, u32(total.id))
        ticket = bench.handlers.forward.sample_with(pass_, 36, sampler)
        assert 0 <= bench.drawn(ticket) < 640
        assert bench.states(total).sum() == pytest.approx(37, rel=1e-4)
    bench.check()
