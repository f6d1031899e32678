"""Verification of drafts on the real runner: what comes out is what plain decoding gives, and so is the KV."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loras import as_bytes, random_lora
from rounds import examples

from pieray.assets import model_folder
from pieray.errors import Unsupported
from pieray.messages import Completed, Failed, Forward, Logits, Output, Sample, Sampler, Verify
from pieray.model_settings import ModelSettings
from pieray.models.adapter_file import AdapterFile
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore

PAGES = np.random.default_rng(1).permutation(64).astype("<u4")
PROMPT = [int(token) for token in np.random.default_rng(7).integers(3, 200, 23)]
RUNNER = ModelRunner.load(model_folder("pie-tiny"), dtype="float32", num_pages=64, page_size=16)


def packed(values: Any) -> bytes:
    return np.asarray(values, "<u4").tobytes()


class Line:
    """One sequence of tokens on a core of its own."""

    def __init__(self, spec: Sampler, max_batch_tokens: int = 2048) -> None:
        self.core = BatcherCore(RUNNER, ModelSettings(max_batch_tokens=max_batch_tokens))
        self.wire = spec

    def run(self, message: Forward | Verify) -> dict[int, Any]:
        answers = self.core.submit("p", [message], 0.0)
        while self.core.has_work:
            answers += self.core.step(0.0)
        return {m.ticket: m.value if isinstance(m, Completed) else m for _, m in answers}  # type: ignore[attr-defined]

    def forward(self, kv_len: int, tokens: list[int], output: Output) -> Any:
        return self.run(Forward(1, 1, 1, 0, PAGES.tobytes(), kv_len, packed(tokens), b"", b"", [output]))[2]

    def decode(self, kv_len: int, tokens: list[int], count: int) -> list[int]:
        drawn: list[int] = []
        for _ in range(count):
            token = int.from_bytes(self.forward(kv_len, tokens, Sample(len(tokens) - 1, self.wire, 2)), "little")
            kv_len += len(tokens)
            tokens = [token]
            drawn.append(token)
        return drawn

    def logits(self, kv_len: int, token: int) -> np.ndarray:
        return np.frombuffer(self.forward(kv_len, [token], Logits(0, 2)), "<f4")

    def verify(self, kv_len: int, tokens: list[int], drafts: list[int], parents: list[int] | None) -> Any:
        tree = b"" if parents is None else packed(parents)
        message = Verify(1, 1, 1, 0, PAGES.tobytes(), kv_len, packed(tokens), packed(drafts), tree, self.wire)
        (answer,) = self.run(message).values()
        return answer if isinstance(answer, Failed) else np.frombuffer(answer, "<u4").tolist()


CHAINS = st.builds(
    Sampler,
    temperature=st.sampled_from([0.0, 0.7, 3.0]),
    top_k=st.sampled_from([0, 5]),
    typical_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 2**64 - 1),
)


@pytest.mark.slow
@settings(max_examples=examples(20))
@given(data=st.data(), spec=CHAINS, chunk=st.sampled_from([3, 9, 2048]), split=st.integers(0, len(PROMPT) - 1))
def test_verified_trees_give_the_tokens_of_plain_decoding(
    data: st.DataObject, spec: Sampler, chunk: int, split: int
) -> None:
    """Random trees, with the true continuation woven in; then the KV is that of the accepted text."""
    line = Line(spec, chunk)
    plain = line.decode(0, PROMPT, 8)
    num_drafts = data.draw(st.integers(0, 12))
    parents, drafts, depths = [], [], [0]
    for draft in range(num_drafts):
        parent = data.draw(st.integers(0, draft))
        parents.append(parent)
        depths.append(depths[parent] + 1)
        is_true = data.draw(st.booleans()) and depths[-1] <= len(plain)
        drafts.append(plain[depths[-1] - 1] if is_true else data.draw(st.integers(3, 200)))
    if split:
        line.decode(0, PROMPT[:split], 1)
    got = line.verify(split, PROMPT[split:], drafts, parents)
    true = plain + line.decode(len(PROMPT) + 7, plain[-1:], 6)
    assert got == true[: len(got)]
    assert len(got) == 1 + accepted(drafts, parents, true)
    line.verify(split, PROMPT[split:], drafts, parents)  # its KV again, behind that of plain decoding
    kv_len = len(PROMPT) + len(got) - 1
    after = line.logits(kv_len, 77)
    fresh = line.decode(0, PROMPT + got[:-1], 1)
    assert fresh == got[-1:]
    np.testing.assert_allclose(after, line.logits(kv_len, 77), rtol=1e-3, atol=1e-3)


def accepted(drafts: list[int], parents: list[int], true: list[int]) -> int:
    """How far the true text can be followed through a tree, at each node by the first draft that has its token."""
    node, count = 0, 0
    while True:
        children = [d for d, parent in enumerate(parents) if parent == node and drafts[d] == true[count]]
        if not children:
            return count
        node, count = children[0] + 1, count + 1


@pytest.mark.parametrize("spec", [Sampler(), Sampler(temperature=2.0, seed=5)])
def test_a_chain_that_is_right_is_accepted_whole_in_one_step(spec: Sampler) -> None:
    line = Line(spec)
    plain = line.decode(0, PROMPT, 6)
    steps = line.core.stats()["steps"]
    assert line.verify(0, PROMPT, plain[:5], None) == plain
    assert line.core.stats()["steps"] == steps + 1
    wrong = [plain[0], plain[1], plain[2] + 1, plain[3]]
    assert line.verify(0, PROMPT, wrong, None) == plain[:3]
    assert line.verify(0, PROMPT, [], None) == plain[:1]


@pytest.mark.parametrize(
    "changes",
    [
        {"parents": packed([2, 0])},
        {"parents": packed([0])},
        {"parents": b"abc"},
        {"tokens": b""},
        {"kv_len": -1},
        {"pages": PAGES[:1].tobytes()},
        {"drafts": packed([1 << 30, 1])},
        {"sampler": Sampler(allowed=bytes(-(-RUNNER.config.vocab_size // 8)))},
    ],
)
def test_a_bad_verify_fails_once_and_alone(changes: dict[str, Any]) -> None:
    fields = {
        "pages": PAGES.tobytes(),
        "kv_len": 0,
        "tokens": packed(PROMPT),
        "drafts": packed([5, 6]),
        "parents": b"",
        "sampler": Sampler(),
    }
    line = Line(Sampler())
    answers = line.run(Verify(1, 1, 1, 0, **{**fields, **changes}))
    assert list(answers) == [1]
    assert isinstance(answers[1], Failed)
    assert answers[1].code == "invalid"
    assert line.decode(0, PROMPT, 1)


def test_a_tree_on_a_model_with_sliding_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windowed:
        def require_trees(self) -> None:
            raise Unsupported("drafts as a tree need a model without sliding windows")

    line = Line(Sampler())
    monkeypatch.setattr(RUNNER, "require_trees", Windowed().require_trees)
    refused = line.verify(0, PROMPT, [5, 6], [0, 0])
    assert isinstance(refused, Failed)
    assert refused.code == "unsupported"
    assert line.verify(0, PROMPT, [5, 6], None)


@pytest.mark.parametrize("parents", [None, [0, 0, 1, 2]])
@pytest.mark.parametrize("chunk", [3, 2048])
def test_hidden_tokens_are_hidden_from_all_rows(parents: list[int] | None, chunk: int) -> None:
    """The KV of 20 tokens, some of them hidden: what is drawn is what a masked pass, token by token, draws."""
    line = Line(Sampler(temperature=1.5, seed=9), chunk)
    kv_len, tokens = 20, PROMPT[20:]
    line.decode(0, PROMPT[:kv_len], 1)
    seen = np.arange(kv_len) % 3 != 1
    drawn, at, pending = [], kv_len, tokens
    for _ in range(4):
        bits = np.tri(len(pending), at + len(pending), at, dtype=np.uint8)
        bits[:, :kv_len] &= seen
        mask = np.packbits(bits, bitorder="little").tobytes()
        output = Sample(len(pending) - 1, line.wire, 2)
        answer = line.run(Forward(1, 1, 1, 0, PAGES.tobytes(), at, packed(pending), b"", mask, [output]))[2]
        at, pending = at + len(pending), np.frombuffer(answer, "<u4").tolist()
        drawn += pending
    drafts = drawn[:3] if parents is None else [drawn[0] + 1, drawn[0], 7, drawn[1]]
    tree = b"" if parents is None else packed(parents)
    message = Verify(
        1,
        1,
        1,
        0,
        PAGES.tobytes(),
        kv_len,
        packed(tokens),
        packed(drafts),
        tree,
        line.wire,
        0,
        np.packbits(seen, bitorder="little").tobytes(),
    )
    (answer,) = line.run(message).values()
    assert np.frombuffer(answer, "<u4").tolist() == drawn[: 4 if parents is None else 3]
    assert drawn != line.decode(kv_len, tokens, 4)  # so hiding did count


def test_drafts_run_through_an_adapter() -> None:
    line = Line(Sampler())
    tensors = random_lora(model_folder("pie-tiny"), 4, size=0.5)
    line.core.adapters.add(7, AdapterFile("lora", as_bytes(tensors)))

    def adapted(kv_len: int, tokens: list[int]) -> int:
        output = Sample(len(tokens) - 1, line.wire, 2)
        message = Forward(1, 1, 1, 0, PAGES.tobytes(), kv_len, packed(tokens), b"", b"", [output], 7)
        return int.from_bytes(line.run(message)[2], "little")

    drawn = [adapted(0, PROMPT)]
    for place in range(4):
        drawn.append(adapted(len(PROMPT) + place, drawn[-1:]))
    message = Verify(1, 1, 1, 0, PAGES.tobytes(), 0, packed(PROMPT), packed(drawn[:4]), b"", line.wire, 7)
    (answer,) = line.run(message).values()
    assert np.frombuffer(answer, "<u4").tolist() == drawn
    assert drawn != line.decode(0, PROMPT, 5)
    (refused,) = line.run(Verify(1, 1, 1, 0, PAGES.tobytes(), 0, packed(PROMPT), b"", b"", line.wire, 8)).values()
    assert isinstance(refused, Failed)
    assert refused.code == "evicted"
