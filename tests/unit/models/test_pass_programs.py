"""Tensor programs inside of passes, in both decoders: steering, pages that are not read, what was attended to."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model

from pieray.assets import model_folder
from pieray.errors import Unsupported
from pieray.messages import Logits, Sample
from pieray.models.batch import ForwardItem
from pieray.models.config import ModelConfig
from pieray.models.decoder import Decoder
from pieray.models.decoder_cpu import CpuDecoder
from pieray.models.kv_pool import KvPool
from pieray.models.runner import ModelRunner
from pieray.models.tensor_programs import ProgramInstance
from pieray.models.weights import load_weights
from pieray.tensor.program import Bounds

BOUNDS = Bounds(256, 1 << 20, 1 << 28)
PROMPT = np.random.default_rng(3).integers(3, 200, 53).astype(np.uint32)
SIZE = 8  # slots of a page


def runner_of(folder: Path, kind: str) -> ModelRunner:
    config = ModelConfig.from_folder(folder)
    weights = load_weights(folder, config, torch.float32, "cpu")
    decoder = CpuDecoder(config, weights) if kind == "c" else Decoder(config, weights)
    return ModelRunner(config, decoder, KvPool(config, 64, SIZE, torch.float32, "cpu"))


@pytest.fixture(params=["c", "torch"])
def runner(request: pytest.FixtureRequest) -> ModelRunner:
    return runner_of(model_folder("pie-tiny"), request.param)


def program(runner: ModelRunner, stage: str, ops: list[Any], result: int | None, **more: Any) -> ProgramInstance:
    code = {"stage": stage, "ops": ops, "result": result, **more}
    return runner.load_program(json.dumps(code).encode(), BOUNDS, [])


def quest(runner: ModelRunner, num_pages: int, layers: list[int] | None = None) -> ProgramInstance:
    ops = [
        ["input", "bound"],
        ["max", 0, -1, False],
        ["rank", 1, True],
        ["const", [], "int", _int(num_pages)],
        ["lt", 2, 3],
    ]
    return program(runner, "pages", ops, 4, layers=layers)


def added(runner: ModelRunner, vector: np.ndarray, layer: int) -> ProgramInstance:
    ops = [["input", "hidden"], ["const", ["H"], "float", _b64(vector.astype("<f4"))], ["add", 0, 1]]
    return program(runner, "hidden", ops, 2, layers=[layer])


def _b64(values: np.ndarray) -> str:
    import base64

    return base64.b64encode(values.tobytes()).decode()


def _int(value: int) -> str:
    return _b64(np.array(value, "<i4"))


def item(tokens: Any, kv_len: int, first_page: int = 0, **more: Any) -> ForwardItem:
    tokens = np.atleast_1d(np.asarray(tokens, np.uint32))
    num_pages = -(-(kv_len + len(tokens)) // SIZE)
    positions = np.arange(kv_len, kv_len + len(tokens), dtype=np.uint32)
    return ForwardItem(
        np.arange(first_page, first_page + num_pages, dtype=np.uint32), kv_len, tokens, positions, **more
    )


def logits(runner: ModelRunner, one: ForwardItem, others: list[ForwardItem] = ()) -> np.ndarray:  # type: ignore[assignment]
    results = runner.step([one, *others], [[Logits()]] + [[Logits()] for _ in others])
    value = results[0]
    assert isinstance(value, list), value
    return np.asarray(value[0])


def greedy(runner: ModelRunner, count: int, programs: Callable[[], list[ProgramInstance]] = list) -> list[int]:
    """A text from the prompt on, its tokens run one by one through the programs."""
    found = programs()
    (value,) = runner.step([item(PROMPT, 0, programs=found)], [[Sample()]])
    tokens = [int(value[0])]  # type: ignore[index]
    for place in range(count - 1):
        (value,) = runner.step([item(tokens[-1], len(PROMPT) + place, programs=found)], [[Sample()]])
        tokens.append(int(value[0]))  # type: ignore[index]
    return tokens


def test_all_pages_are_full_attention(runner: ModelRunner) -> None:
    """Token for token, and to the last bit."""
    asked = quest(runner, 1000)
    assert greedy(runner, 40, lambda: [asked]) == greedy(runner, 40)
    assert asked.counts["pages_read"] == asked.counts["pages_held"] > 0
    plain = logits(runner, item(PROMPT[-1], 52))
    assert logits(runner, item(PROMPT[-1], 52, programs=[quest(runner, 1000)])).tobytes() == plain.tobytes()


def test_pages_left_out_are_not_read(runner: ModelRunner) -> None:
    """Where a page that is left out holds NaN, the logits are those that they were: nobody has read it."""
    logits(runner, item(PROMPT, 0))
    num_layers = runner.config.num_layers
    masks = [["iota", "P"], ["const", [], "int", _int(2)], ["ge", 0, 1]]
    behind = program(runner, "pages", masks, 2)  # the first two pages are left out
    sparse = logits(runner, item(PROMPT[-1], 52, programs=[behind]))
    assert behind.counts == {"rows": num_layers, "pages_held": 7 * num_layers, "pages_read": 5 * num_layers}
    shorter = item(PROMPT[-1], 52)
    shorter.pages, shorter.kv_len = shorter.pages[2:], 52 - 2 * SIZE
    np.testing.assert_allclose(sparse, logits(runner, shorter), rtol=1e-5, atol=1e-5)
    assert not np.allclose(sparse, logits(runner, item(PROMPT[-1], 52)), atol=1e-3)
    kept = runner.pool.data[:, :2].clone()
    runner.pool.data[:, :2] = float("nan")
    assert logits(runner, item(PROMPT[-1], 52, programs=[behind])).tobytes() == sparse.tobytes()
    runner.pool.data[:, :2] = kept


@pytest.mark.parametrize("products", ["float32", "auto"])
def test_few_pages_in_bfloat16_are_a_shorter_text(products: str) -> None:
    """Where attention goes by tiles too: nothing of the pages that are left out is read."""
    runner = ModelRunner.load(
        model_folder("pie-tiny"), dtype="bfloat16", num_pages=64, page_size=SIZE, bf16_products=products
    )
    logits(runner, item(PROMPT, 0))
    ops = [["iota", "P"], ["const", [], "int", _int(2)], ["ge", 0, 1]]
    sparse = logits(runner, item(PROMPT[-1], 52, programs=[program(runner, "pages", ops, 2)]))
    shorter = item(PROMPT[-1], 52)
    shorter.pages, shorter.kv_len = shorter.pages[2:], 52 - 2 * SIZE
    assert logits(runner, shorter).tobytes() == sparse.tobytes()
    runner.pool.data[:, :2] = float("nan")
    assert (
        logits(runner, item(PROMPT[-1], 52, programs=[program(runner, "pages", ops, 2)])).tobytes() == sparse.tobytes()
    )


def test_bounds_are_of_the_keys_and_follow_what_is_written(runner: ModelRunner) -> None:
    """Quest's choice is that of a reference that looks at all keys, also when pages get other content."""
    for shift in (0, 11):
        tokens = np.roll(PROMPT, shift)
        logits(runner, item(tokens, 0))
        for layer in range(runner.config.num_layers):
            bounds = runner.pool.key_bounds()
            bounds.users.add(one := quest(runner, 2, [layer]))
            least, greatest = bounds.of(layer, torch.arange(6), SIZE).unbind(2)
            keys = runner.pool.layers[layer][:6, 0]
            torch.testing.assert_close(least, keys.amin(2), rtol=0, atol=0)
            torch.testing.assert_close(greatest, keys.amax(2), rtol=0, atol=0)
            logits(runner, item(tokens[-1], 52, programs=[one]))
            assert one.counts["pages_read"] in (2, 3)  # two, and the last
    runner.copy_tokens([(0, 0, 3, 0, SIZE)])
    bounds = runner.pool.key_bounds().of(0, torch.tensor([3, 4]), SIZE)
    torch.testing.assert_close(bounds[0, :, 0], runner.pool.layers[0][0, 0].amin(1), rtol=0, atol=0)


def test_bounds_are_given_up_with_the_programs_that_use_them(runner: ModelRunner) -> None:
    assert not runner.pool.keeps_bounds
    asked = quest(runner, 2)
    logits(runner, item(PROMPT, 0, programs=[asked]))
    assert not runner.pool.keeps_bounds, "a prompt reads all pages"
    logits(runner, item(PROMPT[-1], 52, programs=[asked]))
    assert runner.pool.keeps_bounds
    del asked
    assert not runner.pool.keeps_bounds


def test_a_zero_vector_changes_no_bit_and_others_what_they_say(runner: ModelRunner) -> None:
    """In front of each layer; with the last layer's input the effect on logits is known from the decoder itself."""
    hidden = runner.config.hidden_size
    plain = logits(runner, item(PROMPT, 0))
    for layer in range(runner.config.num_layers):
        zero = added(runner, np.zeros(hidden), layer)
        assert logits(runner, item(PROMPT, 0, programs=[zero])).tobytes() == plain.tobytes()
    vector = np.random.default_rng(1).normal(0, 1, hidden)
    steered = [logits(runner, item(PROMPT, 0, programs=[added(runner, vector, layer)])) for layer in range(2)]
    assert not np.allclose(steered[0], plain, atol=1e-2)
    assert not np.allclose(steered[0], steered[1], atol=1e-2)
    twice = [added(runner, vector / 2, 1), added(runner, vector / 2, 1)]
    np.testing.assert_allclose(logits(runner, item(PROMPT, 0, programs=twice)), steered[1], rtol=1e-3, atol=1e-3)


def test_a_vector_in_front_of_the_first_layer_is_one_added_to_the_embeddings(runner: ModelRunner) -> None:
    vector = np.random.default_rng(1).normal(0, 0.1, runner.config.hidden_size).astype(np.float32)
    rows = runner.embed(PROMPT) + vector
    wanted = logits(runner, item(PROMPT, 0, embeds=(np.arange(len(PROMPT), dtype=np.uint32), rows)))
    steered = logits(runner, item(PROMPT, 0, programs=[added(runner, vector, 0)]))
    np.testing.assert_allclose(steered, wanted, rtol=1e-4, atol=1e-4)


def test_a_pass_has_the_same_bits_alone_and_beside_others() -> None:
    """In C, which promises that of all passes."""
    runner = runner_of(model_folder("pie-tiny"), "c")
    vector = np.random.default_rng(1).normal(0, 0.5, runner.config.hidden_size)
    for first in (0, 10, 20):
        logits(runner, item(np.roll(PROMPT, first), 0, first))

    def one(first: int) -> ForwardItem:
        programs = [quest(runner, 3), added(runner, vector * (first + 1), 1)]
        return item(np.roll(PROMPT, first)[-1], 52, first, programs=programs)

    alone = logits(runner, one(0))
    plain = item(np.roll(PROMPT, 20)[-1], 52, 20)
    assert logits(runner, one(0), [one(10), plain]).tobytes() == alone.tobytes()
    beside = runner.step([one(0), plain], [[Logits()], [Logits()]])[1]
    assert np.asarray(beside[0]).tobytes() == logits(runner, plain).tobytes()  # type: ignore[index]


def test_mass_is_the_weights_of_attention(runner: ModelRunner) -> None:
    """Those of transformers, by page, and each token gives 1 in all."""
    from transformers import AutoModelForCausalLM

    ops = [["state", 0], ["input", "mass"], ["add", 0, 1]]
    seen = program(runner, "attention", ops, None, states=[[["P"], None]], updates=[2])
    logits(runner, item(PROMPT[:40], 0, programs=[seen]))
    np.testing.assert_allclose(seen.states[0].sum(), 40, rtol=1e-4)
    logits(runner, item(PROMPT[40:], 40, programs=[seen]))
    found = seen.states[0].numpy()
    assert found.shape == (7,)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder("pie-tiny"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.inference_mode():
        given = model(torch.from_numpy(PROMPT.astype(np.int64))[None], output_attentions=True).attentions
    weights = torch.stack(given).mean((0, 1, 2)).sum(0)  # by slot, over all tokens
    wanted = torch.nn.functional.pad(weights, (0, 7 * SIZE - len(PROMPT))).view(7, SIZE).sum(1)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-3, atol=1e-3)


def test_layers_with_windows_read_as_they_do(tmp_path: Path) -> None:
    make_model("mistral", tmp_path, sliding_window=8, head_dim=16)
    runner = runner_of(tmp_path, "torch")
    tokens = PROMPT % 96
    plain = logits(runner, item(tokens, 0))
    asked = quest(runner, 1)
    logits(runner, item(tokens, 0))
    assert (
        logits(runner, item(tokens[-1], 52, programs=[asked])).tobytes()
        == logits(runner, item(tokens[-1], 52)).tobytes()
    )
    assert asked.counts["rows"] == 0
    assert plain.shape == (96,)


def test_a_hosted_model_refuses_programs_inside_of_passes(tmp_path: Path) -> None:
    make_model("gemma", tmp_path, head_dim=16)
    runner = ModelRunner.load(tmp_path, num_pages=8, page_size=SIZE)
    with pytest.raises(Unsupported, match="stage pages need a native decoder"):
        quest(runner, 1)
    program(runner, "logits", [["input", "logits"]], 0)


def test_texts_of_different_length_share_what_a_program_has_seen(runner: ModelRunner) -> None:
    """In one step: the second begins with what the first has left, on as many pages as it has."""
    ops = [["input", "mass"], ["state", 0], ["add", 0, 1]]
    watch = program(runner, "attention", ops, None, states=[[["P"], None]], updates=[2])
    items = [item(PROMPT[:20], 0, programs=[watch]), item(PROMPT, 0, first_page=10, programs=[watch])]
    values = runner.step(items, [[Logits(19)], [Logits(52)]])
    assert all(isinstance(one, list) for one in values), values
    assert len(watch.states[0]) == 7
    assert float(watch.states[0].sum()) == pytest.approx(20 + 53, rel=1e-4)


def test_constants_are_given_up_with_the_last_program_that_has_them(runner: ModelRunner) -> None:
    made = [added(runner, np.full(runner.config.hidden_size, 0.5), 1) for _ in range(2)]
    assert made[0].code is made[1].code
    gone = weakref.ref(made[0].code)
    made.pop()
    assert gone() is not None
    made.clear()
    gc.collect()
    assert gone() is None
