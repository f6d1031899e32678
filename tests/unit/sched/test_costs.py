"""CostModel: what steps cost is learned from their times, whatever the device."""

import math
import random

import pytest

from pieray.messages import Distribution, Hidden, Logits, Logprobs
from pieray.sched.costs import CostModel, Kind, no_work


def device(speed: float) -> list[float]:
    """Costs of a made-up device."""
    seconds = [1e-9] * len(Kind)
    seconds[Kind.STEP], seconds[Kind.ITEMS], seconds[Kind.TOKENS] = 8e-4 * speed, 2e-5 * speed, 5e-5 * speed
    seconds[Kind.GREEDY], seconds[Kind.LOGITS], seconds[Kind.ATTENTION] = 1e-5 * speed, 4e-4 * speed, 1e-7 * speed
    return seconds


@pytest.mark.parametrize("speed", [0.02, 1.0, 30.0])
def test_costs_are_learned_on_fast_and_slow_devices_through_noise_and_stalls(speed):
    rng = random.Random(1)
    real, model = CostModel(seconds=device(speed)), CostModel(640)
    for step in range(600):
        work = no_work()
        work[Kind.STEP] = 1
        work[Kind.ITEMS] = work[Kind.GREEDY] = rng.randint(1, 8)
        work[Kind.TOKENS] = work[Kind.ITEMS] + rng.choice([0, 0, 16, 64])
        work[Kind.ATTENTION] = work[Kind.TOKENS] * rng.randint(10, 500)
        work[Kind.LOGITS] = rng.choice([0, 0, 4])
        stall = 20.0 if step % 37 == 0 else 1.0
        model.learn(work, real.predict(work) * rng.lognormvariate(0.0, 0.2) * stall)
    for tokens, rows in ((1, 0), (64, 0), (1, 4), (64, 8)):
        work = no_work()
        work[Kind.STEP], work[Kind.ITEMS], work[Kind.TOKENS], work[Kind.LOGITS] = 1, 1, tokens, rows
        work[Kind.ATTENTION] = 200 * tokens
        assert 0.6 < model.predict(work) / real.predict(work) < 1.7


def test_a_new_kind_of_work_is_learned_while_what_is_known_stays():
    real, model = CostModel(seconds=device(1.0)), CostModel(640)
    work = no_work()
    work[Kind.STEP] = work[Kind.ITEMS] = work[Kind.TOKENS] = work[Kind.GREEDY] = 1
    for _ in range(200):
        model.learn(work, real.predict(work))
    bare = model.bare
    assert bare == pytest.approx(real.bare, rel=0.05)
    work[Kind.LOGITS] = 8
    for _ in range(30):
        model.learn(work, real.predict(work))
    assert model.bare == pytest.approx(bare, rel=0.25)
    assert model.seconds[Kind.LOGITS] == pytest.approx(real.seconds[Kind.LOGITS], rel=0.25)


def test_one_stalled_step_teaches_little():
    model = CostModel(640)
    work = no_work()
    work[Kind.STEP] = work[Kind.TOKENS] = 1
    for _ in range(100):
        model.learn(work, 1e-3)
    model.learn(work, 10.0)
    assert model.predict(work) == pytest.approx(1e-3, rel=0.1)


def test_tokens_within_is_the_inverse_of_their_cost():
    model = CostModel(640)
    for context in (0, 100, 100_000):
        for seconds in (1e-3, 1e-2, 1.0):
            for is_masked in (False, True):
                count = model.tokens_within(seconds, context, is_masked=is_masked)
                assert model.tokens(count, context, is_masked=is_masked) <= seconds * (1 + 1e-9)
                assert model.tokens(count + 1, context, is_masked=is_masked) > seconds
    assert model.tokens_within(math.inf, 0, is_masked=False) > 1 << 20


def test_outputs_are_charged_for_their_size():
    model = CostModel(vocab_size=1000, hidden_size=64)
    few, many = Logprobs(0, bytes(4)), Logprobs(0, bytes(400_000))
    assert model.output(many) > 50 * model.output(few)
    assert model.output(Distribution(0, 1000)) > 1.5 * model.output(Distribution(0, 1))
    assert model.output(Logits(0)) > model.output(Hidden(0))
