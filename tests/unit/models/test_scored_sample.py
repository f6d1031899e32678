"""A scored draw is the plain draw, with the log-probability that the model itself gives it."""

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.errors import InvalidRequest
from pieray.messages import Logprobs, Sample, Sampler
from pieray.models.batch import ForwardItem
from pieray.models.runner import ModelRunner


@pytest.fixture(scope="module")
def runner():
    return ModelRunner.load(model_folder("pie-tiny"), dtype="float32", num_pages=16, page_size=16)


def item(first: int) -> ForwardItem:
    tokens = np.arange(first, first + 5, dtype=np.uint32)
    return ForwardItem(np.array([first % 16], np.uint32), 0, tokens, np.arange(5, dtype=np.uint32))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_draw_and_its_score_in_a_batch(runner, temperature):
    given = [Sampler(temperature, 20, 0.9, seed=seed) for seed in range(6)]
    plain = runner.step([item(s) for s in range(6)], [[Sample(-1, params)] for params in given])
    scored = runner.step([item(s) for s in range(6)], [[Sample(-1, params, is_scored=True)] for params in given])
    drawn = [int(values[0][0][0]) for values in scored]
    assert drawn == [values[0] for values in plain]
    exact = runner.step([item(s) for s in range(6)], [[Logprobs(-1, token.to_bytes(4, "little"))] for token in drawn])
    np.testing.assert_allclose([v[0][1][0] for v in scored], [v[0][0] for v in exact], rtol=1e-5, atol=1e-5)


def test_what_allows_nothing_fails_alone(runner):
    nothing = bytes(-(-runner.config.vocab_size // 8))
    wanted = [[Sample(-1, Sampler(allowed=nothing), is_scored=True)], [Sample(-1, is_scored=True)]]
    (values, good) = runner.step([item(1), item(2)], wanted)
    assert isinstance(values[0], InvalidRequest)
    assert good[0][1].dtype == np.float32
