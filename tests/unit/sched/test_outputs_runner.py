"""What can be asked of a pass, from the wire to the answer: BatcherCore on the real runner and pie-tiny."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from pieray.assets import model_folder
from pieray.messages import (
    CancelInferlet,
    Completed,
    Distribution,
    EmbedTokens,
    Entropy,
    Failed,
    Forward,
    Hidden,
    Logits,
    Output,
    Sample,
    Sampler,
)
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore

PROMPT = [int(token) for token in np.random.default_rng(7).integers(3, 200, 40)]


def packed(values: Any, kind: str = "<u4") -> bytes:
    return np.asarray(values, kind).tobytes()


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner.load(model_folder("pie-tiny"), dtype="float32", num_pages=64, page_size=16)


def ask(runner: ModelRunner, outputs: list[Output], max_batch_tokens: int = 2048, **changes: Any) -> list[Any]:
    """Answers to outputs of one pass over PROMPT: values, or Failed messages."""
    core = BatcherCore(runner, ModelSettings(max_batch_tokens=max_batch_tokens))
    fields = {"pages": packed(range(8, 16)), "kv_len": 0, "tokens": packed(PROMPT), "positions": b"", "mask": b""}
    wanted = [dataclasses.replace(output, ticket=100 + number) for number, output in enumerate(outputs)]
    message = Forward(1, 1, 1, 0, **{**fields, "outputs": wanted, **changes})
    answers = core.submit("p", [message], 0.0)
    while core.has_work:
        answers += core.step(0.0)
    found = {m.ticket: m.value if isinstance(m, Completed) else m for _, m in answers}  # type: ignore[attr-defined]
    assert sorted(found) == [1, *(100 + number for number in range(len(outputs)))]
    return [found[100 + number] for number in range(len(outputs))]


def with_chain(row: int = 39, **fields: Any) -> Output:
    return Sample(row, Sampler(**fields))


def test_a_bias_of_nothing_changes_no_draw_and_bias_and_mask_rule(runner: ModelRunner) -> None:
    (raw,) = ask(runner, [Logits(39)])
    logits = np.frombuffer(raw, "<f4")
    best, second = np.argsort(-logits)[:2].tolist()
    ban = {"bias_tokens": packed([best]), "bias_values": packed([-np.inf], "<f4")}
    only = np.packbits(np.arange(len(logits)) == 77, bitorder="little").tobytes()
    outputs = [with_chain(temperature=5.0, top_k=50, top_p=0.9, min_p=0.01, seed=seed) for seed in range(20)]
    free = {"bias_tokens": packed([best]), "bias_values": packed([0], "<f4")}
    outputs += [with_chain(temperature=5.0, top_k=50, top_p=0.9, min_p=0.01, seed=seed, **free) for seed in range(20)]
    outputs += [with_chain(), with_chain(**ban), with_chain(allowed=only, temperature=1.0)]
    for answers in (ask(runner, outputs), ask(runner, outputs, max_batch_tokens=11)):
        tokens = [int.from_bytes(answer, "little") for answer in answers]
        assert tokens[:20] == tokens[20:40]
        assert len(set(tokens[:20])) > 3
        assert tokens[40:] == [best, second, 77]


def test_a_chain_without_a_token_fails_its_ticket_alone(runner: ModelRunner) -> None:
    num_bytes = -(-runner.config.vocab_size // 8)
    dead, good = ask(runner, [with_chain(allowed=bytes(num_bytes), temperature=1.0), with_chain()])
    assert isinstance(dead, Failed)
    assert dead.code == "invalid"
    assert "allows no token" in dead.message
    assert isinstance(good, bytes)


@pytest.mark.parametrize(
    "wire",
    [
        Sampler(allowed=b"x"),
        Sampler(bias_tokens=b"abc"),
        Sampler(bias_tokens=packed([1 << 30]), bias_values=packed([1], "<f4")),
    ],
)
def test_a_malformed_chain_fails_its_pass(runner: ModelRunner, wire: Any) -> None:
    (answer,) = ask(runner, [Sample(0, wire)])
    assert isinstance(answer, Failed)
    assert answer.code == "invalid"


def floats(answer: Any) -> np.ndarray:
    assert isinstance(answer, bytes), answer
    return np.frombuffer(answer, "<f4")


@pytest.mark.parametrize("max_batch_tokens", [2048, 11])
def test_several_outputs_of_one_row_come_from_one_pass(runner: ModelRunner, max_batch_tokens: int) -> None:
    outputs = [kind(row) for row in (39, 3) for kind in (Logits, Entropy, Hidden)] + [Distribution(39, 5)]
    answers = ask(runner, outputs, max_batch_tokens)
    head = runner.decoder.embeddings(torch.arange(runner.config.vocab_size)).numpy()  # pie-tiny ties its head to it
    for logits, entropy, hidden in (map(floats, answers[:3]), map(floats, answers[3:6])):
        probs = torch.from_numpy(logits.copy()).double().softmax(-1).numpy()
        assert entropy.tolist() == pytest.approx([-(probs * np.log(probs)).sum()], abs=1e-5)
        assert hidden.shape == (runner.config.hidden_size,)
        np.testing.assert_allclose(head @ hidden, logits, rtol=1e-3, atol=1e-3)
    assert np.frombuffer(answers[6][0], "<u4")[0] == floats(answers[0]).argmax()


def look_up(core: BatcherCore, *tokens: list[int], inferlet: int = 1) -> list[Any]:
    messages = [EmbedTokens(50 + number, inferlet, packed(ids)) for number, ids in enumerate(tokens)]
    answers = core.submit("p", messages, 0.0)
    while core.has_work:
        answers += core.step(0.0)
    return [m for _, m in answers]


@pytest.mark.parametrize("max_batch_tokens", [2048, 11])
def test_embeddings_in_place_of_tokens_give_the_same_logits(runner: ModelRunner, max_batch_tokens: int) -> None:
    (found,) = look_up(BatcherCore(runner, ModelSettings()), PROMPT)
    values = np.frombuffer(found.value, "<f4").reshape(len(PROMPT), -1)
    outputs = [Logits(row) for row in (0, 12, 39)]
    want = ask(runner, outputs, max_batch_tokens)
    rows = [1, 5, 10, 11, 30, 39]
    some = [0 if row in rows else token for row, token in enumerate(PROMPT)]
    embeds = [packed(rows), values[rows].tobytes()]
    assert ask(runner, outputs, max_batch_tokens, tokens=packed(some), embeds=embeds) == want
    every = [packed(range(40)), values.tobytes()]
    assert ask(runner, outputs, max_batch_tokens, tokens=packed([0] * 40), embeds=every) == want
    assert ask(runner, outputs, max_batch_tokens, tokens=packed(some)) != want


@pytest.mark.parametrize(
    "embeds",
    [
        [packed([40]), bytes(4 * 96)],
        [packed([1, 1]), bytes(8 * 96)],
        [packed([1]), bytes(12)],
        [packed([]), b""],
        [packed([1]), packed([0x7FC00000] * 96)],
        [b"abc", b""],
    ],
)
def test_bad_embeddings_fail_their_pass(runner: ModelRunner, embeds: list[bytes]) -> None:
    (answer,) = ask(runner, [Logits(0)], embeds=embeds)
    assert isinstance(answer, Failed)
    assert answer.code == "invalid"


def test_lookups_are_answered_a_bounded_number_at_a_time_and_dropped_with_their_inferlet(runner: ModelRunner) -> None:
    core = BatcherCore(runner, ModelSettings())
    core.submit("p", [EmbedTokens(n, 1 + n % 2, packed([5] * 600)) for n in range(4)], 0.0)
    assert [m.ticket for _, m in core.step(0.0)] == [0, 1]  # type: ignore[attr-defined]
    (ack,) = core.submit("p", [CancelInferlet(9, 1)], 0.0)
    assert ack == ("p", Completed(9, None))
    assert [m.ticket for _, m in core.step(0.0)] == [3]  # type: ignore[attr-defined]
    assert not core.has_work
    assert [type(m) for m in look_up(core, [1 << 30], [7])] == [Failed, Completed]
    core.submit("p", [EmbedTokens(3, 1, b"abc")], 0.0)
    ((_, malformed),) = core.step(0.0)
    assert isinstance(malformed, Failed)
    assert malformed.code == "invalid"
