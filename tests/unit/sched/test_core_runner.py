"""BatcherCore, PageSpace and the real runner together: chunks, forks and batches change no token."""

from collections.abc import Callable

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.messages import Completed, CopyTokens, Forward, Logits, Message, Output, Sample, Sampler
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.pages.space import PageSpace
from pieray.sched.core import BatcherCore

PROMPT = [int(token) for token in np.random.default_rng(7).integers(0, 200, 50)]


@pytest.fixture(scope="module")
def runner():
    return ModelRunner.load(model_folder("pie-tiny"), dtype="float32", num_pages=64, page_size=16)


class Guest:
    """One inferlet, straight on a core."""

    def __init__(self, core: BatcherCore, number: int) -> None:
        self.core, self.number, self.ticket = core, number, 0
        self.space = PageSpace(16, 64)
        self.space.grant(list(range(8 * number, 8 * number + 8)))

    def messages(self, handles, kv_len, tokens, ask: Callable[[int, int], Output]) -> list[Message]:
        prepared = self.space.stager.forward(handles, kv_len, len(tokens))
        assert self.space.stager.bind(prepared)
        self.space.stager.finish(prepared)
        self.ticket += 3
        out: list[Message] = []
        if prepared.copies:
            out.append(CopyTokens(0, self.number, 1, 0, [list(copy) for copy in prepared.copies]))
        output = ask(len(tokens) - 1, self.ticket + 1)
        packed = np.array(tokens, "<u4").tobytes()
        out.append(
            Forward(self.ticket, self.number, 1, 0, prepared.pages.tobytes(), kv_len, packed, b"", b"", [output])
        )
        return out

    def ask(self, *args) -> bytes:
        answers = self.core.submit(f"p{self.number}", self.messages(*args), 0.0)
        while self.core.has_work:
            answers += self.core.step(0.0)
        assert all(isinstance(answer, Completed) for _, answer in answers), answers
        return next(answer.value for _, answer in answers if answer.ticket == self.ticket + 1)

    def logits(self, handles, kv_len, tokens) -> np.ndarray:
        return np.frombuffer(self.ask(handles, kv_len, tokens, Logits), "<f4")


def test_chunked_prefill_gives_the_logits_of_one_pass(runner):
    whole = Guest(BatcherCore(runner, ModelSettings()), 0)
    chunked = Guest(BatcherCore(runner, ModelSettings(max_batch_tokens=7)), 1)
    expected = whole.logits(whole.space.alloc(4), 0, PROMPT)
    np.testing.assert_allclose(chunked.logits(chunked.space.alloc(4), 0, PROMPT), expected, rtol=1e-3, atol=1e-3)
    assert (whole.core.stats()["steps"], chunked.core.stats()["steps"]) == (1, 8)


def test_fork_sees_the_same_context_and_leaves_the_parent_alone(runner):
    guest = Guest(BatcherCore(runner, ModelSettings()), 2)
    parent = guest.space.alloc(4)
    guest.logits(parent, 0, PROMPT)
    child = guest.space.fork(parent)
    ours = guest.logits(child, 50, [9])
    np.testing.assert_allclose(guest.logits(parent, 50, [9]), ours, rtol=1e-3, atol=1e-3)
    assert guest.space.frame_ids(child)[3] != guest.space.frame_ids(parent)[3]


def test_seeded_samples_do_not_depend_on_the_batch(runner):
    def tokens(numbers: list[int]) -> list[bytes]:
        core = BatcherCore(runner, ModelSettings())
        guests = [Guest(core, number) for number in numbers]
        answers = []
        for guest in guests:
            prompt = PROMPT[guest.number :]
            chain = Sampler(1.0, seed=2**64 - 1)
            ask = (guest.space.alloc(4), 0, prompt, lambda row, ticket, chain=chain: Sample(row, chain, ticket))
            answers += core.submit(f"p{guest.number}", guest.messages(*ask), 0.0)
        answers += core.step(0.0)
        assert not core.has_work
        return [next(m.value for p, m in answers if p == f"p{g.number}" and m.value) for g in guests]

    together = tokens([3, 4, 5])
    assert [tokens([number])[0] for number in (3, 4, 5)] == together
