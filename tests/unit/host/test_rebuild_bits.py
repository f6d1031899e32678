"""KV pages of a real model that are dropped and computed again have the bits that they had."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from arrays import NONE, u32
from plan_bench import PlanBench
from rounds import seeds

from pieray.assets import model_folder
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore

NUM_PAGES = 256
GREEDY = (0.0, 0, 1.0, 0.0, 0)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runner(request: pytest.FixtureRequest) -> ModelRunner:
    return ModelRunner.load(model_folder("pie-tiny"), dtype=request.param, num_pages=NUM_PAGES, page_size=4)


class ModelBench(PlanBench):
    """There is no host memory: what is given up is lost."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(NUM_PAGES)
        self.model = runner
        self.core = BatcherCore(runner, ModelSettings(page_size=4), num_swap_slots=0)

    def turn(self) -> None:
        super().turn()
        self.core.sent()

    def content(self) -> dict[int, np.ndarray]:
        """By frame: the bits of its written slots."""
        frames = self.pages._frames
        self.pages.runs.settle()
        found = {}
        for row in np.flatnonzero((frames.ident > 0) & (frames.page >= 0) & (frames.written > 0)).tolist():
            written = [slot for slot in range(4) if int(frames.written[row]) >> slot & 1]
            page = self.model.pool.data[:, int(frames.page[row])][:, :, :, written]
            kind = torch.int32 if page.dtype == torch.float32 else torch.int16
            found[int(frames.ident[row])] = page.clone().view(kind).numpy()
        return found

    def lose(self) -> None:
        """All pages are given up, and others write to all of them."""
        with self.parts.lock:
            self.outbox.preempt(())
        self.run()
        assert not self.pages.num_bound
        self.model.pool.data.fill_(float("nan"))
        self.free = list(range(NUM_PAGES))
        random.Random(len(self.free)).shuffle(self.free)

    def come_back(self) -> None:
        with self.parts.lock:
            self.outbox.restore(self.pages.away_rows())
        self.run()

    def check_lost(self) -> None:
        before = self.content()
        assert before
        self.lose()
        self.come_back()
        after = self.content()
        assert before.keys() == after.keys()
        for frame, bits in before.items():
            np.testing.assert_array_equal(after[frame], bits, err_msg=f"frame {frame}")

    # --- as a guest --------------------------------------------------------------------------------

    def alloc(self, count: int) -> np.ndarray:
        return self.handlers.kv.alloc(count)

    def forward(self, pages: np.ndarray, kv_len: int, tokens: list[int], mask: np.ndarray = NONE) -> int:
        pass_ = self.handlers.forward.forward(self.queue, pages, kv_len, u32(*tokens), NONE, mask)
        return self.handlers.forward.sample(pass_, len(tokens) - 1, *GREEDY)

    def drawn(self, ticket: int) -> int:
        self.run()
        return int(self.handlers.tickets.take_tokens(ticket)[0])


def text(count: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 200, count)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 37, 130])
def test_a_prompt_in_one_pass(runner: ModelRunner, count: int) -> None:
    bench = ModelBench(runner)
    bench.forward(bench.alloc(40), 0, text(count))
    bench.run()
    bench.check_lost()


def test_a_prompt_in_passes_of_any_length(runner: ModelRunner) -> None:
    bench = ModelBench(runner)
    pages, kv_len = bench.alloc(40), 0
    for count in (7, 1, 1, 30, 2, 16, 64):
        bench.forward(pages, kv_len, text(count, kv_len))
        bench.run()
        kv_len += count
    bench.check_lost()


def test_tokens_that_were_drawn_one_by_one(runner: ModelRunner) -> None:
    bench = ModelBench(runner)
    pages, prompt = bench.alloc(40), text(37)
    token, kv_len = bench.drawn(bench.forward(pages, 0, prompt)), len(prompt)
    for _ in range(30):
        token, kv_len = bench.drawn(bench.forward(pages, kv_len, [token % 200])), kv_len + 1
    bench.check_lost()


def test_tokens_that_a_plan_has_drawn(runner: ModelRunner) -> None:
    bench = ModelBench(runner)
    plan = bench.plan(text(37), 60)
    bench.handlers.plans.start(plan)
    said = bench.all(plan)
    assert len(said) == 60
    bench.check_lost()


def test_a_plan_that_is_lost_in_its_middle_says_what_it_would_have(runner: ModelRunner) -> None:
    expected = None
    for when in (None, 3, 20):
        bench = ModelBench(runner)
        plan = bench.plan(text(37), 60)
        bench.handlers.plans.start(plan)
        if when is not None:
            for _ in range(when):
                bench.turn()
            with bench.parts.lock:
                bench.outbox.preempt(())
            bench.run()
            runner.pool.data.fill_(float("nan"))
        said = bench.all(plan)
        expected = expected or said
        assert said == expected


@pytest.mark.parametrize("num_others", [1, 7, 30])
def test_contexts_that_ran_in_the_same_steps_and_come_back_one_by_one(runner: ModelRunner, num_others: int) -> None:
    bench = ModelBench(runner)
    plans = []
    for number in range(num_others + 1):
        queue = bench.handlers.queues.create("")
        plans.append(bench.plan(text(5 + number % 9, number), 11 + number % 3, queue=queue))
        bench.handlers.plans.start(plans[-1])
    for plan in plans:
        bench.all(plan)
    bench.check_lost()


def test_masked_passes_and_copies(runner: ModelRunner) -> None:
    bench = ModelBench(runner)
    pages = bench.alloc(12)
    bench.forward(pages, 0, text(21))
    rows = np.tril(np.ones((6, 27), np.uint8), 21)
    rows[:, 3:9] = 0
    bits = np.packbits(rows.reshape(-1), bitorder="little")
    bench.forward(pages, 21, text(6, 2), np.frombuffer(bits.tobytes() + bytes(-len(bits) % 4), "<u4"))
    fork = bench.handlers.kv.fork(pages)
    bench.forward(fork, 26, text(5, 3))
    bench.run()
    bench.handlers.kv.copy(bench.queue, int(pages[1]), 1, int(pages[9]), 0, 3)
    bench.run()
    bench.check_lost()


def test_parts_of_a_text_that_are_lost_at_different_times(runner: ModelRunner) -> None:
    """What is there is read, the rest is computed behind it: that is another batch than the one of the prompt."""
    bench = ModelBench(runner)
    pages = bench.alloc(20)
    bench.forward(pages, 0, text(70))
    bench.run()
    before = bench.content()
    rows = bench.pages.rows_of(pages)
    swap = bench.outbox.swap
    with bench.parts.lock:
        released = swap._lose(rows[6:11])
    bench.handlers.tickets.flush()
    runner.pool.data[:, released] = float("nan")
    bench.free += released
    bench.come_back()
    after = bench.content()
    for frame, bits in before.items():
        np.testing.assert_array_equal(after[frame], bits, err_msg=f"frame {frame}")


@pytest.mark.parametrize("seed", seeds(6))
def test_random_contexts(runner: ModelRunner, seed: int) -> None:
    rng = random.Random(seed)
    bench = ModelBench(runner)
    contexts: list[tuple[np.ndarray, int]] = []
    for step in range(24):
        match rng.randrange(5) if contexts else 0:
            case 0:
                contexts.append((bench.alloc(30), 0))
            case 1 if len(contexts) < 5:
                pages, length = rng.choice(contexts)
                contexts.append((bench.handlers.kv.fork(pages), length))
            case 2 if contexts:
                place = rng.randrange(len(contexts))
                pages, length = contexts[place]
                count = min(rng.randint(1, 20), 110 - length)
                plan = bench.plan(
                    [rng.randrange(200)], count, pages=pages, kv_len=length, queue=bench.handlers.queues.create("")
                )
                bench.handlers.plans.start(plan)
                contexts[place] = pages, length + len(bench.all(plan))
            case _:
                for place in rng.sample(range(len(contexts)), rng.randint(1, len(contexts))):
                    pages, length = contexts[place]
                    count = rng.randint(1, 25)
                    if length + count <= 110:
                        bench.forward(pages, length, text(count, step))
                        contexts[place] = pages, length + count
                bench.run()
    bench.run()
    if bench.content():
        bench.check_lost()
