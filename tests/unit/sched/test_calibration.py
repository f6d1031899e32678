"""Steps of many sizes, run ahead on a real model, tell what a command costs from what its tokens do."""

import time

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.config import ModelSettings
from pieray.errors import DeviceLost
from pieray.messages import Completed, Forward, PlanTokens, StartPlan
from pieray.messages.outputs import GREEDY
from pieray.models.runner import ModelRunner
from pieray.models.tokenizer import TokenizerSpec
from pieray.sched.calibration import PEER, calibrate
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel, Kind

SPEC = TokenizerSpec.from_folder(model_folder("pie-tiny"))


def load(num_pages: int = 64) -> ModelRunner:
    return ModelRunner.load(model_folder("pie-tiny"), device="cpu", dtype="float32", num_pages=num_pages)


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return load()


def new_costs(runner: ModelRunner) -> CostModel:
    return CostModel(runner.config.vocab_size, runner.config.hidden_size)


def took_s(runner: ModelRunner, num_tokens: int) -> float:
    """The least time of a step with one pass of so many tokens, its host's part included."""
    core, least = BatcherCore(runner, ModelSettings(), tokenizer=SPEC), 1.0
    pages, tokens = np.arange(8, dtype="<u4").tobytes(), np.zeros(num_tokens, "<u4").tobytes()
    for number in range(1, 30):
        core.submit("p", [Forward(1 << 32 | number, 1, 1, 0, pages, 0, tokens, b"", b"", [])], 0.0)
        began = time.thread_time()
        core.step(0.0)
        least = min(least, time.thread_time() - began)
    return least


def test_costs_of_commands_and_of_tokens_are_told_apart(runner: ModelRunner) -> None:
    costs = new_costs(runner)
    assert calibrate(runner, ModelSettings(), SPEC, costs) > 50
    s = costs.seconds
    few, many = took_s(runner, 4), took_s(runner, 68)
    assert 0.3 < costs.tokens(64, 36, is_masked=False) / (many - few) < 4.0
    of_any = s[Kind.STEP] + s[Kind.COMMANDS] + s[Kind.ITEMS]
    assert 0.3 < of_any / (few - (many - few) / 16) < 4.0
    assert s[Kind.GREEDY] < 0.2 * costs.bare, "not what a step of one row takes"


def test_it_ends_within_its_budget(runner: ModelRunner) -> None:
    began = time.monotonic()
    num_steps = calibrate(runner, ModelSettings(), SPEC, new_costs(runner), budget_s=0.03)
    assert 0 < num_steps < 160
    assert time.monotonic() - began < 1.0
    assert calibrate(runner, ModelSettings(), SPEC, new_costs(runner), budget_s=0.0) == 0


def test_a_small_pool_has_the_steps_that_fit_in_it() -> None:
    small = load(num_pages=2)
    costs = new_costs(small)
    assert calibrate(small, ModelSettings(), SPEC, costs) > 10
    assert all(second > 0.0 for second in costs.seconds)


def test_nothing_of_it_is_left_and_texts_are_as_without(runner: ModelRunner) -> None:
    def drawn(model: ModelRunner) -> list[int]:
        core = BatcherCore(model, ModelSettings(), tokenizer=SPEC)
        core.plans.vocab_size = model.config.vocab_size
        assert not core.is_busy((PEER, 1))
        pages, tokens = np.arange(4, dtype="<u4").tobytes(), np.arange(5, 15, dtype="<u4").tobytes()
        start = StartPlan(1 << 32 | 1, 1, 1, 0, pages, 0, tokens, 20, GREEDY, b"", [], [], 0, 0, b"", b"", False, b"")
        core.submit("p", [start], 0.0)
        found: list[int] = []
        for _ in range(40):
            for _, answer in core.step(0.0):
                assert not isinstance(answer, Completed)
                if isinstance(answer, PlanTokens):
                    found += np.frombuffer(answer.tokens, "<u4").tolist()
        return found

    fresh = load()
    before = drawn(fresh)
    calibrate(fresh, ModelSettings(), SPEC, new_costs(fresh))
    assert len(before) == 20
    assert drawn(fresh) == before


def test_a_device_that_dies_of_it_is_lost(runner: ModelRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_args: object) -> None:
        raise DeviceLost("an illegal memory access")

    monkeypatch.setattr(ModelRunner, "decode", dies)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        calibrate(runner, ModelSettings(), SPEC, new_costs(runner))
