"""Steps of many sizes, run ahead, tell what a command costs from what its tokens do."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.errors import DeviceLost
from pieray.messages import Completed, PlanTokens, StartPlan
from pieray.messages.outputs import GREEDY
from pieray.model_settings import ModelSettings
from pieray.models.batch import ForwardItem
from pieray.models.draws import Drawn
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


class Device:
    """A device whose steps take what they are told to, on a clock of its own; what it draws is token 7."""

    step_s, commands_s, token_s, slot_s = 0.3e-3, 1.5e-3, 4e-5, 1e-7

    def __init__(self, runner: ModelRunner) -> None:
        self.config, self.pool = runner.config, runner.pool
        self.now = 0.0

    def decode(self, rows: Any, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Any]]) -> Any:
        kv_lens = [int(kv_len) for kv_len in rows.kv_lens] if len(rows) else []
        self.now += self.step_s + (self.commands_s if items else 0.0)
        self.now += sum(self.token_s + self.slot_s * (kv_len + 1) for kv_len in kv_lens)
        for item in items:
            count, context = len(item.tokens), int(item.positions[0])
            self.now += count * (self.token_s + self.slot_s * (context + count))
        return Drawn(np.full(len(rows), 7), np.zeros(0, np.float32), {}), self.step(items, outputs)

    def step(self, _items: Sequence[ForwardItem], outputs: Sequence[Sequence[Any]]) -> list[Any]:
        return [[7 for _ in wanted] for wanted in outputs]


def test_costs_of_commands_and_of_tokens_are_told_apart(runner: ModelRunner) -> None:
    device = Device(runner)
    costs = new_costs(runner)
    assert calibrate(device, ModelSettings(), SPEC, costs, clock=lambda: device.now) > 50
    s = costs.seconds
    assert 0.6 < (costs.tokens(64, 0, is_masked=False)) / (64 * (device.token_s + 64 * device.slot_s)) < 1.7
    assert 0.6 < costs.tokens(16, 400, is_masked=False) / (16 * (device.token_s + 416 * device.slot_s)) < 1.7
    assert 0.6 < (s[Kind.STEP] + s[Kind.COMMANDS] + s[Kind.ITEMS]) / (device.step_s + device.commands_s) < 1.7
    assert 0.6 < costs.bare / (device.step_s + device.token_s) < 1.7
    assert s[Kind.GREEDY] < 0.3 * costs.bare, "not what a step of one row takes"


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
