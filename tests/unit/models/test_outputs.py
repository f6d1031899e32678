"""Hidden states, entropies and embeddings as input, in both decoders, against transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from families import Sequence, make_model, u32

from pieray.assets import model_folder
from pieray.errors import InvalidRequest, Unsupported
from pieray.messages import Distribution, Entropy, Hidden, Logits, Logprobs, Sample
from pieray.models.batch import ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.sampler import entropies
from pieray.models.weights import load_weights

PROMPT = np.random.default_rng(3).integers(3, 96, 21)


def runner_of(folder: Path, kind: str) -> ModelRunner:
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, torch.float32, "cpu")
    decoder = CpuDecoder(config, weights) if kind == "c" else Decoder(config, weights)
    return ModelRunner(config, decoder, KvPool(config, 64, 8, torch.float32, "cpu"))


@pytest.fixture(scope="module", params=["c", "torch"])
def tiny(request: pytest.FixtureRequest) -> ModelRunner:
    return runner_of(model_folder("pie-tiny"), request.param)


@pytest.fixture(scope="module", params=["c", "torch"])
def untied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    folder = tmp_path_factory.mktemp("model")
    make_model("llama", folder, head_dim=16)  # what the C decoder computes
    runner = runner_of(folder, request.param)
    runner.folder = folder  # type: ignore[attr-defined]
    return runner


@pytest.mark.slow
def test_all_outputs_of_some_rows_equal_transformers(tiny: ModelRunner) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder("pie-tiny"), dtype=torch.float32).eval()
    with torch.inference_mode():
        want = model(torch.from_numpy(PROMPT)[None], output_hidden_states=True)
    logits, states = want.logits[0], want.hidden_states[-1][0]
    rows = [20, 4, 11]
    wanted = [kind(row) for row in rows for kind in (Hidden, Entropy, Logits, Sample)]
    other = Sequence(tiny, 8, 4).item(PROMPT[5:9])
    (_, got) = tiny.step([other, Sequence(tiny, 0, 4).item(PROMPT)], [[Sample(), Logits(1)], wanted])
    assert isinstance(got, list)
    for place, row in enumerate(rows):
        hidden, entropy, values, token = got[4 * place : 4 * place + 4]
        np.testing.assert_allclose(hidden, states[row].numpy(), rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(values, logits[row].numpy(), rtol=2e-3, atol=2e-3)
        exact = torch.distributions.Categorical(logits=logits[row].double()).entropy()
        assert entropy.shape == (1,)
        assert entropy.dtype == hidden.dtype == np.float32
        assert float(entropy[0]) == pytest.approx(float(exact), abs=1e-3)
        assert token == int(logits[row].argmax())


def test_entropy_runs_from_certain_to_uniform() -> None:
    rows = torch.zeros(3, 1000)
    rows[1, 7] = 1e4
    rows[2, :2] = 60
    assert entropies(rows).tolist() == pytest.approx([np.log(1000), 0.0, np.log(2)], abs=1e-6)


def test_a_hidden_state_times_the_head_is_the_logits(untied: ModelRunner) -> None:
    wanted = [Hidden(), Logits(), Logprobs(-1, u32([4]).tobytes()), Distribution(k=2), Entropy()]
    (got,) = untied.step([Sequence(untied, 0, 4).item(PROMPT)], [wanted])
    assert isinstance(got, list)
    head = load_weights(untied.folder, untied.config, torch.float32, "cpu").lm_head.numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(head @ got[0], got[1], rtol=1e-4, atol=1e-4)


def logits_of(runner: ModelRunner, items: list[ForwardItem]) -> list[np.ndarray]:
    results = runner.step(items, [[Logits(row) for row in range(len(item.tokens))] for item in items])
    assert all(isinstance(result, list) for result in results), results
    return [np.stack(result) for result in results]


def test_a_pass_over_the_embeddings_of_tokens_is_a_pass_over_the_tokens(untied: ModelRunner) -> None:
    values = untied.embed(u32(PROMPT))
    assert values.shape == (21, 48)
    (want,) = logits_of(untied, [Sequence(untied, 0, 4).item(PROMPT)])
    rows = np.array([0, 3, 4, 20])
    some = PROMPT.copy()
    some[rows] = 0
    mixed = dataclasses.replace(Sequence(untied, 4, 4).item(some), embeds=(u32(rows), values[rows]))
    every = dataclasses.replace(Sequence(untied, 8, 4).item(PROMPT * 0), embeds=(u32(range(21)), values))
    plain = Sequence(untied, 12, 4).item(PROMPT[:7])
    got = logits_of(untied, [plain, mixed, every])
    assert np.array_equal(got[1], want)
    assert np.array_equal(got[2], want)
    np.testing.assert_allclose(got[0], want[:7], rtol=1e-4, atol=1e-5)
    (ruined,) = logits_of(untied, [Sequence(untied, 16, 4).item(some)])
    assert not np.allclose(ruined, want, atol=0.1)  # so the rows did count


@pytest.mark.parametrize(
    ("rows", "values", "says"),
    [
        ([21], np.zeros((1, 48)), "below 21"),
        ([3, 3], np.zeros((2, 48)), "distinct"),
        ([3], np.zeros((1, 47)), "1 x 48"),
        ([3], np.zeros((2, 48)), "1 x 48"),
        ([3], np.full((1, 48), np.nan), "finite"),
        ([3], np.full((1, 48), np.inf), "finite"),
    ],
)
def test_bad_embeddings_fail_their_item(untied: ModelRunner, rows: list[int], values: np.ndarray, says: str) -> None:
    item = dataclasses.replace(Sequence(untied, 0, 4).item(PROMPT), embeds=(u32(rows), values.astype(np.float32)))
    bad, good = untied.step([item, Sequence(untied, 4, 4).item(PROMPT)], [[Sample()], [Sample()]])
    assert isinstance(bad, InvalidRequest)
    assert says in bad.message
    assert isinstance(good, list)
    with pytest.raises(InvalidRequest, match="96"):
        untied.embed(u32([96]))


def test_trees_of_drafts_need_a_model_without_windows(tmp_path: Path, untied: ModelRunner) -> None:
    make_model("mistral", tmp_path, sliding_window=8, head_dim=16)
    with pytest.raises(Unsupported, match="sliding windows"):
        runner_of(tmp_path, "c").require_trees()
    untied.require_trees()
