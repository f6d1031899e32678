"""A vocabulary of 151,936 on a running engine: large results are bounded up front, and are in no neighbour's way."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from engines import assert_pages_return
from programs import program

import pieray
from pieray.assets import model_folder
from pieray.errors import GuestFailed, PierayError, QuotaExceeded
from tests.unit.models.families import make_model

VOCAB = 151_936
ROWS = 128

LOGITS = program(
    """
from inferlet import forward, kv, queue

async def main(rows, repeat=1):
    line, pages = queue.create(), kv.alloc(-(-rows // 16))
    sums = []
    for _ in range(repeat):
        asked = forward.forward(line, pages, 0, [n % 50 + 3 for n in range(rows)])
        tickets = [asked.logits(row) for row in range(rows)]
        sums = []
        for ticket in tickets:
            values = await ticket
            assert len(values) == 151_936, len(values)
            sums.append(sum(values[:64]))
    return sums
""",
    "logits",
)

DISTRIBUTION = program(
    """
from inferlet import forward, kv, queue

async def main(rows):
    line, pages = queue.create(), kv.alloc(-(-rows // 16))
    asked = forward.forward(line, pages, 0, [n % 50 + 3 for n in range(rows)])
    tickets = [asked.distribution(151_936, row) for row in range(rows)]
    total = 0.0
    for ticket in tickets:
        _, probabilities = await ticket
        total += sum(probabilities)
    return total
""",
    "distribution",
)

NEIGHBOUR = program(
    """
from inferlet import forward, kv, queue

async def main(count):
    line, pages = queue.create(), kv.alloc(1)
    for n in range(count):
        ticket = forward.forward(line, pages, 0, [n % 50 + 3]).sample()
        await ticket
    return count
""",
    "neighbour",
)


@pytest.fixture(scope="module")
def engine(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("large-vocabulary")
    make_model(
        "llama",
        folder,
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        tie_word_embeddings=True,
    )
    for path in model_folder("pie-tiny").glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    limits = {"pass_bytes": 256 << 20, "memory_bytes": 1 << 30}
    model = {"path": str(folder), "num_pages": 256}
    with pieray.start(model, namespace=f"large-{time.time_ns()}", limits=limits) as started:
        yield started


def results(engine: Any, count: int = 20) -> list[Any]:
    """Of launches behind what was before."""
    processes = [engine.launch(NEIGHBOUR, count=3) for _ in range(count)]
    return [process.result(timeout=120) for process in processes]


def test_logits_of_128_rows_are_refused_up_front_over_the_default_limit(engine: Any) -> None:
    for launched in (
        engine.launch(LOGITS, rows=ROWS, limits={"pass_bytes": 64 << 20}),
        engine.launch(DISTRIBUTION, rows=ROWS, limits={"pass_bytes": 64 << 20}),
    ):
        with pytest.raises(QuotaExceeded, match=r"pass_bytes: the limit is 67108864; \d+ are under way"):
            launched.result(timeout=120)
    assert results(engine) == [3] * 20
    assert_pages_return(engine)


def test_logits_of_128_rows_arrive_whole_while_neighbours_go_on(engine: Any) -> None:
    neighbour = engine.launch(NEIGHBOUR, count=60)
    large = [engine.launch(LOGITS, rows=ROWS) for _ in range(2)]
    assert neighbour.result(timeout=120) == 60
    first, second = [process.result(timeout=240) for process in large]
    assert len(first) == ROWS
    assert first == second
    assert results(engine) == [3] * 20
    links = [link for actor in engine.status()["actors"] for link in actor.get("links", {}).values()]
    assert links
    assert all(link["is_up"] for link in links)
    hosts = [actor for actor in engine.status()["actors"] if actor["role"] == "inferlets"]
    assert [host["links"]["device"]["num_sessions"] for host in hosts] == [1] * len(hosts)  # no link ever broke
    (batcher,) = [actor for actor in engine.status()["actors"] if actor["role"] == "batcher"]
    assert batcher["answer_bytes"] == 0
    assert_pages_return(engine)


def test_whole_distributions_of_a_chunked_pass_arrive(engine: Any) -> None:
    total = engine.launch(DISTRIBUTION, rows=40).result(timeout=240)
    assert total == pytest.approx(40.0, abs=1e-2)


def test_results_that_nobody_takes_fail_their_owner_alone(engine: Any) -> None:
    hoarder = program(
        """
from inferlet import forward, kv, queue

async def main():
    line, pages, held = queue.create(), kv.alloc(1), []
    while True:
        held.append(forward.forward(line, pages, 0, [3]).logits())
        queue.flush(line)
""",
        "hoarder",
    )
    with pytest.raises(PierayError, match="pass_bytes: the limit is") as found:
        engine.launch(hoarder).result(timeout=240)
    assert isinstance(found.value, (QuotaExceeded, GuestFailed))
    assert results(engine, 5) == [3] * 5
    assert_pages_return(engine)
