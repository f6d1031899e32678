"""The engine as its users see it, over each transport: texts, messages, limits, many at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from engines import assert_pages_return
from programs import ECHO, GENERATE, HOLD_PAGES, SPIN, program

from pieray.assets import model_folder
from pieray.errors import Cancelled, ConfigError, DeadlineExceeded, GuestFailed, InvalidRequest, NotFound, QuotaExceeded
from pieray.messages import Sample
from pieray.models.batch import ForwardItem
from pieray.models.runner import ModelRunner
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

PROMPTS = [f"{a}+{b}=" for a in range(10, 18) for b in range(21, 29)]


@pytest.fixture(params=["socket", "ray"])
def engine(request: pytest.FixtureRequest, engines: Callable[[str], Any]) -> Iterator[Any]:
    found = engines(request.param)
    yield found
    assert_pages_return(found)


def bare_greedy(prompts: list[str], num_tokens: int) -> list[list[int]]:
    """What the decoder alone gives for each prompt alone."""
    folder = model_folder("pie-tiny")
    runner = ModelRunner.load(folder, device="cpu", dtype="float32", num_pages=32, page_size=16, threads=1)
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    found = []
    for prompt in prompts:
        tokens = np.array(tokenizer.encode(prompt), np.uint32)
        kv_len, ids = 0, []
        for _ in range(num_tokens):
            positions = np.arange(kv_len, kv_len + len(tokens), dtype=np.uint32)
            item = ForwardItem(np.arange(32, dtype=np.uint32), kv_len, tokens, positions)
            ((token,),) = runner.step([item], [[Sample(-1)]])
            kv_len += len(tokens)
            tokens = np.array([token], np.uint32)
            ids.append(int(token))
        found.append(ids)
    return found


def test_sixty_four_inferlets_in_one_actor_give_what_each_gives_alone(engine: Any) -> None:
    expected = bare_greedy(PROMPTS, 24)
    processes = [engine.launch(GENERATE, prompt=prompt) for prompt in PROMPTS]
    assert [p.result(timeout=60) for p in processes] == expected
    assert len({tuple(ids) for ids in expected}) > 8  # the prompts do differ in what follows


def test_texts_stream_and_the_result_is_returned(engine: Any) -> None:
    process = engine.launch("text-completion", {"prompt": "12+7="}, max_tokens=8)
    texts = [event.text for event in process]
    result = process.result(timeout=30)
    assert "".join(texts) == result["text"]
    assert result["num_tokens"] >= 1


def test_a_seed_gives_the_same_text_alone_and_in_a_crowd(engine: Any) -> None:
    alone = engine.launch(GENERATE, prompt="a", temperature=1.0, seed=7).result(timeout=30)
    crowd = [engine.launch(GENERATE, prompt="a", temperature=1.0, seed=i) for i in range(16)]
    results = [p.result(timeout=60) for p in crowd]
    assert results[7] == alone
    assert len({tuple(r) for r in results}) > 8


def test_messages_go_both_ways_in_order(engine: Any) -> None:
    process = engine.launch(ECHO)
    for i in range(20):
        process.send(f"m{i}")
    process.send("end")
    assert [e.text for e in process] == [f"M{i}" for i in range(20)]
    assert process.result(timeout=10) == 20
    with pytest.raises(Cancelled):
        process.send("late")


def test_async_iteration(engine: Any) -> None:
    async def main() -> tuple[str, Any]:
        process = engine.launch("text-completion", prompt="12+7=", max_tokens=8)
        text = "".join([event.text async for event in process])
        return text, await process.wait(timeout=10)

    text, result = asyncio.run(main())
    assert text == result["text"]


def test_a_second_client_sees_the_whole_story(engine: Any) -> None:
    process = engine.launch(ECHO)
    process.send("a")
    other = engine.attach(process.id)
    process.send("end")
    assert other.result(timeout=10) == 1
    assert [e.text for e in other] == ["A"]
    with pytest.raises(NotFound, match="nobody"):
        engine.attach("nobody")


def test_killing_ends_a_spinning_inferlet_and_not_its_neighbour(engine: Any) -> None:
    spinning = engine.launch(SPIN)
    neighbour = engine.launch(GENERATE, prompt="12+7=")
    assert len(neighbour.result(timeout=30)) == 24
    spinning.kill("enough")
    with pytest.raises(Cancelled, match="enough"):
        spinning.result(timeout=10)


@pytest.mark.parametrize(
    ("source", "limits", "error", "text"),
    [
        (SPIN, {"cpu_time_s": 0.2}, QuotaExceeded, "cpu_time_s"),
        (ECHO, {"wall_time_s": 0.2}, DeadlineExceeded, "wall_time_s"),
        (HOLD_PAGES, {"pages": 3}, QuotaExceeded, "pages"),
        (program("def main():\n    raise ValueError('no luck')\n"), {}, GuestFailed, "ValueError: no luck"),
        (program("def main(x):\n    return x\n"), {}, InvalidRequest, "x"),
        (program("def main(:\n"), {}, GuestFailed, "SyntaxError"),
    ],
)
def test_failures_are_typed_and_name_what_went_wrong(
    engine: Any, source: Any, limits: dict[str, float], error: type[Exception], text: str
) -> None:
    process = engine.launch(source, limits=limits)
    with pytest.raises(error, match=text):
        process.result(timeout=30)


def test_launches_that_cannot_be_are_refused(engine: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean limits.pages"):
        engine.launch(ECHO, limits={"page": 1})
    with pytest.raises(InvalidRequest, match="JSON"):
        engine.launch(ECHO, x=object())
    with pytest.raises(QuotaExceeded, match="source_bytes"):
        engine.launch(ECHO, limits={"source_bytes": 10})
    with pytest.raises(InvalidRequest):
        engine.launch(type(ECHO)("bad", "bad.wasm", component=b"\0asm\x0d\0\x01\0garbage"))


def test_pages_held_by_one_make_another_wait_not_fail(engine: Any) -> None:
    total = engine.models()[0]["num_pages"]
    hold = [engine.launch(HOLD_PAGES, num_tokens=900) for _ in range(4)]
    for process in hold:
        assert next(iter(process)).text == "held"
    assert total > 4 * 57
    late = engine.launch(HOLD_PAGES, num_tokens=900)
    assert next(iter(late)).text == "held"
    for process in [*hold, late]:
        process.send("go")
        process.result(timeout=10)


def test_many_launches_from_many_threads(engine: Any) -> None:
    results: list[Any] = []

    def work() -> None:
        for _ in range(5):
            process = engine.launch("text-completion", prompt="3+4=", max_tokens=2)
            results.append(process.result(timeout=60))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(r == results[0] for r in results)


def test_an_inferlet_may_not_use_more_pages_than_there_are(engine: Any) -> None:
    total = engine.models()[0]["num_pages"]
    source = program(
        f"""
from inferlet import kv
def main():
    kv.alloc({total + 1})
"""
    )
    with pytest.raises(QuotaExceeded, match="pages"):
        engine.launch(source).result(timeout=30)
