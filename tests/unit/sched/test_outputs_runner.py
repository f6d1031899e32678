"""What can be asked of a pass, from the wire to the answer: BatcherCore on the real runner and pie-tiny."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.config import ModelSettings
from pieray.host.samplers import SamplerSpec
from pieray.messages import LOGITS, SAMPLE, SAMPLE_WITH, Completed, Failed, Forward
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore

PROMPT = [int(token) for token in np.random.default_rng(7).integers(3, 200, 40)]


def packed(values: Any, kind: str = "<u4") -> bytes:
    return np.asarray(values, kind).tobytes()


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner.load(model_folder("pie-tiny"), dtype="float32", num_pages=64, page_size=16)


def ask(runner: ModelRunner, outputs: list[list[Any]], max_batch_tokens: int = 2048, **changes: Any) -> list[Any]:
    """Answers to outputs `[tag, row, ...]` of one pass over PROMPT: values, or Failed messages."""
    core = BatcherCore(runner, ModelSettings(max_batch_tokens=max_batch_tokens))
    fields = {"pages": packed(range(8, 16)), "kv_len": 0, "tokens": packed(PROMPT), "positions": b"", "mask": b""}
    wanted = [[100 + number, *output] for number, output in enumerate(outputs)]
    message = Forward(1, 1, 1, 0, **{**fields, "outputs": wanted, **changes})
    answers = core.submit("p", [message], 0.0)
    while core.has_work:
        answers += core.step(0.0)
    found = {m.ticket: m.value if isinstance(m, Completed) else m for _, m in answers}  # type: ignore[attr-defined]
    assert sorted(found) == [1, *(100 + number for number in range(len(outputs)))]
    return [found[100 + number] for number in range(len(outputs))]


def with_chain(row: int = 39, **fields: Any) -> list[Any]:
    return [SAMPLE_WITH, row, SamplerSpec(**fields).to_wire()]


def test_a_chain_draws_what_a_plain_sample_draws_and_its_bias_and_mask_rule(runner: ModelRunner) -> None:
    (raw,) = ask(runner, [[LOGITS, 39]])
    logits = np.frombuffer(raw, "<f4")
    best, second = np.argsort(-logits)[:2].tolist()
    ban = {"bias_tokens": packed([best]), "bias_values": packed([-np.inf], "<f4")}
    only = np.packbits(np.arange(len(logits)) == 77, bitorder="little").tobytes()
    outputs = [[SAMPLE, 39, 5.0, 50, 0.9, 0.01, seed] for seed in range(20)]
    outputs += [
        with_chain(temperature=5.0, top_k=50, top_p=0.9, min_p=0.01, seed=seed) for seed in range(20)
    ]
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
        [], [0.0] * 8, 5, SamplerSpec(allowed=b"x").to_wire(), SamplerSpec(top_p=7.0).to_wire(),
        SamplerSpec(bias_tokens=b"abc").to_wire(),
        SamplerSpec(bias_tokens=packed([1 << 30]), bias_values=packed([1], "<f4")).to_wire(),
    ],
)  # fmt: skip
def test_a_malformed_chain_fails_its_pass(runner: ModelRunner, wire: Any) -> None:
    (answer,) = ask(runner, [[SAMPLE_WITH, 0, wire]])
    assert isinstance(answer, Failed)
    assert answer.code == "invalid"
