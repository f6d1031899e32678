"""The batcher's adapters: scoped, bounded, and never let go under a command that runs through them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from pieray.errors import Evicted, ModelError, QuotaExceeded
from pieray.messages import PRIVATE, CancelInferlet, Completed, Failed, Forward, LoadAdapter, Logits, UnloadAdapter
from pieray.model_settings import ModelSettings
from pieray.models.adapter_file import AdapterFile
from pieray.sched.core import BatcherCore
from pieray.sched.loaded_adapters import LoadedAdapters
from tests.support.rows import RowsAsItems


@dataclass(eq=False)
class FakeAdapter:
    name: str
    num_bytes: int
    rank: int = 1
    alpha: float = 1.0
    targets: tuple[str, ...] = ("q_proj",)


class FakeRunner(RowsAsItems):
    """An adapter's size is what its data says."""

    def __init__(self) -> None:
        self.ran: list[tuple[list[int], str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def read_adapter(self, file: AdapterFile, max_bytes: int) -> FakeAdapter:
        assert self.gate.wait(5)
        if file.data == b"bad":
            raise ModelError(f"adapter {file.name!r}: 'x' has shape (1, 2)")
        if file.data == b"bug":
            raise RuntimeError("a fault")
        if int(file.data) > max_bytes:
            raise QuotaExceeded(f"adapter_bytes: {max_bytes} are left")
        return FakeAdapter(file.name, int(file.data))

    def step(self, items, outputs):
        self.ran += [(item.tokens.tolist(), item.adapter.name if item.adapter else "") for item in items]
        return [[np.zeros(3, np.float32) for _ in wanted] for wanted in outputs]

    def copy_tokens(self, ranges) -> None: ...


class Bed:
    def __init__(self) -> None:
        self.runner = FakeRunner()
        self.core = BatcherCore(self.runner, ModelSettings(page_size=4, adapter_bytes=100))
        self.desk: LoadedAdapters = self.core.adapters
        self.came = threading.Semaphore(0)
        self.later: list = []
        self.desk.send = self._take

    def _take(self, answers) -> None:
        self.later += answers
        self.came.release()

    def load(self, data: bytes, inferlet: int = 1, number: int = PRIVATE, limit: int = 60, ticket: int = 5) -> object:
        """The answer to a load."""
        message = LoadAdapter(ticket, inferlet, number, "own", data, 0.0, False, limit)
        assert self.core.submit("p", [message], 0.0) == []
        assert self.came.acquire(timeout=5)
        return self.later.pop()[1]

    def forward(self, adapter: int, inferlet: int = 1, token: int = 7, page: int = 0, ticket: int = 20) -> list:
        pages, tokens = (np.array([value], "<u4").tobytes() for value in (page, token))
        outputs = [Logits(0, ticket + 1)]
        message = Forward(ticket, inferlet, 1, 0, pages, 0, tokens, b"", b"", outputs, adapter)
        return self.core.submit("p", [message], 0.0)


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    yield made
    made.desk.close()


def test_a_pass_runs_through_the_adapter_of_its_number(bed: Bed) -> None:
    facts = bed.desk.add(3, AdapterFile("ours", b"10"), "me")
    assert (facts.number, facts.num_bytes, facts.owner) == (3, 10, "me")
    assert facts.digest == AdapterFile("other name", b"10").digest()
    assert bed.load(b"20") == Completed(5, AdapterFile("own", b"20").digest())
    assert bed.forward(3, token=1, ticket=20) == bed.forward(PRIVATE, token=2, page=1, ticket=30) == []
    assert bed.forward(0, token=3, ticket=40, inferlet=2) == []
    bed.core.step(0.0)
    assert sorted(bed.runner.ran) == [([1], "ours"), ([2], "own"), ([3], "")]


def test_an_inferlets_own_adapter_is_its_own(bed: Bed) -> None:
    bed.load(b"20")
    failed = bed.forward(PRIVATE, inferlet=2)
    assert [(type(m), m.ticket, m.code) for _, m in failed] == [(Failed, 20, "evicted"), (Failed, 21, "evicted")]
    with pytest.raises(Evicted):
        bed.desk.find(("q", 1), PRIVATE)


def test_what_reads_a_pass_without_its_adapter_fails_with_it(bed: Bed) -> None:
    bed.forward(9, ticket=20)
    behind = Forward(30, 1, 1, 0, np.array([0], "<u4").tobytes(), 1, np.array([5], "<u4").tobytes(), b"", b"", [])
    ((_, answer),) = bed.core.submit("p", [behind], 0.0)
    assert (answer.ticket, answer.code) == (30, "cancelled")


def test_an_unloaded_adapter_lasts_for_what_was_enqueued_and_counts_so_long(bed: Bed) -> None:
    bed.load(b"40")
    bed.forward(PRIVATE)
    assert bed.core.submit("p", [UnloadAdapter(8, 1, PRIVATE)], 0.0) == [("p", Completed(8, None))]
    assert bed.load(b"40", number=PRIVATE + 1).code == "quota"  # 60 is its limit, and the first is still in use
    assert bed.forward(PRIVATE, ticket=50)[0][1].code == "evicted"
    bed.core.step(0.0)
    assert bed.runner.ran == [([7], "own")]
    gc.collect()
    assert bed.desk.num_bytes == 0
    assert bed.load(b"40", number=PRIVATE + 1) == Completed(5, AdapterFile("x", b"40").digest())


def test_the_engine_unloads_its_adapter_without_harm_to_what_runs(bed: Bed) -> None:
    bed.desk.add(3, AdapterFile("ours", b"90"))
    bed.forward(3)
    bed.desk.remove(3)
    bed.desk.remove(3)
    with pytest.raises(QuotaExceeded):
        bed.desk.add(4, AdapterFile("next", b"90"))
    bed.core.step(0.0)
    assert bed.runner.ran == [([7], "ours")]
    gc.collect()
    bed.desk.add(4, AdapterFile("next", b"90"))


@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_the_end_of_an_inferlet_frees_what_it_loaded(bed: Bed, how: str) -> None:
    bed.load(b"40")
    bed.load(b"15", inferlet=2)
    if how == "cancel":
        assert bed.core.submit("p", [CancelInferlet(9, 1)], 0.0) == [("p", Completed(9, None))]
        assert bed.desk.num_bytes == 15
    else:
        bed.core.drop_peer("p")
        assert bed.desk.num_bytes == 0


def test_a_load_that_comes_after_the_end_is_dropped(bed: Bed) -> None:
    bed.runner.gate.clear()
    bed.core.submit("p", [LoadAdapter(5, 1, PRIVATE, "own", b"40", 0.0, False, 60)], 0.0)
    bed.core.submit("p", [CancelInferlet(9, 1)], 0.0)
    bed.runner.gate.set()
    bed.load(b"1", inferlet=2)  # behind the first
    assert bed.desk.num_bytes == 1


@pytest.mark.parametrize(
    ("data", "limit", "code", "text"),
    [
        (b"bad", 60, "invalid", r"adapter 'own': 'x' has shape"),
        (b"61", 60, "quota", "60 are left"),
        (b"101", 200, "quota", "100 are left"),
        (b"bug", 60, "internal", "a fault"),
    ],
)
def test_a_load_fails_with_its_reason_and_alone(bed: Bed, data: bytes, limit: int, code: str, text: str) -> None:
    failed = bed.load(data, limit=limit)
    assert isinstance(failed, Failed)
    assert (failed.code, text in failed.message) == (code, True)
    assert bed.load(b"60", ticket=6) == Completed(6, AdapterFile("", b"60").digest())
