"""An engine that serves two models: programs use either, or both at once, and each stands and falls for itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from doors import hosted
from engines import assert_pages_return, run
from programs import program
from small_models import VOCAB, greedy, random_llama

import pieray
from pieray.assets import model_folder
from pieray.errors import DeviceLost, NotFound
from pieray.models.tokenizer import Tokenizer, TokenizerSpec
from pieray.server.guard import Guard

PROMPT = "Sort: 3 1 2 9"

BOTH = program(
    """
import asyncio
from inferlet import Context, model

async def said(name, prompt, max_tokens, temperature):
    async with Context(prompt, model=name) as ctx:
        async with ctx.fork() as fork:
            first, second = (each.generate(max_tokens, stop_tokens=(), temperature=temperature, seed=7)
                             for each in (ctx, fork))
            await asyncio.gather(first, second)
            assert first.tokens == second.tokens
            return first.tokens

async def main(prompt, max_tokens=24, names=("", "small"), temperature=0.0):
    return await asyncio.gather(*(said(name, prompt, max_tokens, temperature) for name in names))
""",
    "both",
)

FACTS = program(
    """
from inferlet import kv, model

async def main():
    return [model.names(), [model.info(name)["page_size"] for name in model.names()], kv.page_size("small")]
""",
    "facts",
)

RAW = program(
    """
from inferlet import embeds, forward, kv, queue
from inferlet.errors import BadHandle, InvalidRequest

async def main(tokens):
    line, ours = queue.create("small"), queue.create()
    def fresh():
        return kv.alloc(-(-len(tokens) // kv.page_size("small")), model="small")
    plain = await forward.forward(line, fresh(), 0, tokens).logits()
    with embeds.text(tokens, model="small") as rows:
        looked_up = await forward.forward_embeds(line, fresh(), 0, [rows]).logits()
        values = await rows.values(line)
    with embeds.put(values, model="small") as rows:
        given = await forward.forward_embeds(line, fresh(), 0, [rows]).logits()
        try:
            forward.forward_embeds(ours, kv.alloc(1), 0, [rows])
            raise AssertionError("embeddings of one model were read by the other")
        except InvalidRequest:
            pass
    try:
        forward.forward(ours, fresh(), 0, tokens[:1])
        raise AssertionError("pages of one model were used by the other")
    except BadHandle:
        pass
    return [len(plain), plain == looked_up, plain == given, max(range(len(plain)), key=plain.__getitem__)]
""",
    "raw",
)

GRAMMARS = program(
    """
from inferlet import Context, grammar
from inferlet.errors import InvalidRequest

async def main():
    found = []
    for name in ("", "small"):
        async with Context("A number: ", model=name) as ctx:
            generation = ctx.generate(6, grammar=grammar.Grammar.regex("[0-9]{4}"))
            found.append(await generation)
    return found
""",
    "grammars",
)

SNAPSHOTS = program(
    """
from inferlet import Context
from inferlet.errors import NotFound

async def main(prompt):
    async with Context(prompt, model="small") as ctx:
        await ctx.flush()
        await ctx.save("said")
        straight = await ctx.generate(12, stop_tokens=())
    names = [await Context.names(model=name) for name in ("", "small")]
    try:
        await Context.open("said")
        raise AssertionError("a snapshot of one model was opened on the other")
    except NotFound:
        pass
    async with await Context.take("said", model="small") as ctx:
        opened = await ctx.generate(12, stop_tokens=())
    return [names, await Context.names(model="small"), straight == opened, ctx.model]
""",
    "snapshots",
)

PARENT = program(
    """
from inferlet import children, model

async def main(source, input):
    child = children.launch(source=source, input=input)
    return [model.names(), await child]
""",
    "parent",
)

LONG = program(
    """
from inferlet import Context, session

async def main(name, prompt):
    async with Context(prompt, model=name) as ctx:
        await ctx.flush()
        session.send("begun")
        for _ in range(100000):
            await ctx.generate(16, stop_tokens=())
            ctx.truncate(1)
""",
    "long",
)


def tokens_of(text: str) -> list[int]:
    return Tokenizer(TokenizerSpec.from_folder(model_folder("pie-tiny"))).encode(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def started(ray_cluster: None, folder: Path) -> Iterator[Any]:
    small = {"path": str(folder), "num_pages": 128, "page_size": 8}
    with pieray.start(namespace=f"models-{time.time_ns()}", models={"small": small}) as engine:
        yield engine


@pytest.fixture
def engine(started: Any) -> Iterator[Any]:
    yield started
    assert_pages_return(started)


def test_programs_see_all_models_by_name(engine: Any) -> None:
    assert run(engine, FACTS) == [["pie-tiny", "small"], [16, 8], 8]
    facts = {one["name"]: one for one in engine.models()}
    assert list(facts) == ["pie-tiny", "small"]
    assert (facts["small"]["num_pages"], facts["small"]["replicas"], facts["small"]["vocab_size"]) == (128, 1, VOCAB)
    groups = {(row["model"], row["group"]) for row in engine.status()["actors"] if row["role"] == "batcher"}
    assert groups == {("pie-tiny", 0), ("small", 1)}


def test_each_says_what_it_says_alone_also_at_the_same_time(engine: Any, folder: Path) -> None:
    (alone,) = run(engine, BOTH, prompt=PROMPT, names=[""])
    expected = greedy(folder, tokens_of(PROMPT), 24)
    assert run(engine, BOTH, prompt=PROMPT) == [alone, expected]
    processes = [engine.launch(BOTH, prompt=PROMPT) for _ in range(6)]
    assert [process.result(timeout=60) for process in processes] == [[alone, expected]] * 6
    sampled = run(engine, BOTH, prompt=PROMPT, temperature=1.0)
    assert sampled == run(engine, BOTH, prompt=PROMPT, temperature=1.0)
    assert sampled != [alone, expected]


def test_passes_embeddings_and_pages_are_of_one_model(engine: Any, folder: Path) -> None:
    tokens = tokens_of(PROMPT)
    assert run(engine, RAW, tokens=tokens) == [VOCAB, True, True, greedy(folder, tokens, 1)[0]]


def test_grammars_are_of_the_models_tokenizer(engine: Any) -> None:
    found = run(engine, GRAMMARS)
    assert all(len(text) == 4 and text.isdigit() for text in found)


def test_each_model_has_snapshots_of_its_own(engine: Any) -> None:
    assert run(engine, SNAPSHOTS, prompt=PROMPT) == [[[], ["said"]], [], True, "small"]


def test_a_program_that_names_no_model_runs_on_the_one_of_its_launch(engine: Any, folder: Path) -> None:
    expected = greedy(folder, tokens_of(PROMPT), 24)
    names = ["", "pie-tiny"]
    mine, theirs = engine.launch(BOTH, prompt=PROMPT, names=names, on_model="small").result(timeout=60)
    assert (mine, [theirs]) == (expected, run(engine, BOTH, prompt=PROMPT, names=[""]))
    found = engine.launch(
        PARENT, {"source": BOTH.source, "input": {"prompt": PROMPT, "names": names}}, on_model="small"
    )
    assert found.result(timeout=60) == [["small", "pie-tiny"], [mine, theirs]]  # its children use it too
    assert engine.launch(FACTS, on_model="pie-tiny").result(timeout=60) == run(engine, FACTS)
    with pytest.raises(NotFound, match="no model is named 'large'; served: pie-tiny, small"):
        engine.launch(BOTH, prompt=PROMPT, on_model="large")


def test_the_door_serves_each_under_its_name(engine: Any, folder: Path) -> None:
    tokens = tokens_of(PROMPT)
    with hosted(engine, Guard(), others=["small"]) as url, httpx.Client(base_url=url, timeout=60) as http:
        listed = {one["id"]: one for one in http.get("/v1/models").json()["data"]}
        assert (listed["small"]["max_model_len"], list(listed)[:2]) == (512, ["pie-tiny", "small"])
        asked = {"prompt": tokens, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        found = http.post("/v1/completions", json={**asked, "model": "small"}).json()
        assert found["model"] == "small"
        assert found["choices"][0]["token_ids"] == greedy(folder, tokens, 12)
        assert http.post("/v1/completions", json=asked).json()["model"] == "pie-tiny"
        assert http.post("/v1/completions", json={**asked, "model": "large"}).status_code == 404
        sizes = {
            name: len(http.post("/v1/embeddings", json={"model": name, "input": PROMPT}).json()["data"][0]["embedding"])
            for name in ("pie-tiny", "small")
        }
        assert sizes["small"] == 64 != sizes["pie-tiny"]
        run_ = {"input": {"prompt": PROMPT, "names": [""]}, "model": "small"}
        engine.install(BOTH)
        try:
            assert http.post("/v1/inferlets/both/runs", json=run_).json()["result"] == [greedy(folder, tokens, 24)]
            refused = http.post("/v1/inferlets/both/runs", json={**run_, "model": "large"})
            assert (refused.status_code, "no model is named" in refused.text) == (404, True)
        finally:
            engine.uninstall("both")
        counted = http.get("/metrics").text
    for name in ("pie-tiny", "small"):
        assert f'vllm:request_success_total{{engine="0",finished_reason="length",model_name="{name}"}} 1.0' in counted
        assert f'vllm:generation_tokens_total{{engine="0",model_name="{name}"}} 12.0' in counted
    assert 'pieray:device_groups{group="1",model="small"} 1.0' in counted


def test_a_model_whose_device_dies_fails_its_own_programs_alone(engine: Any) -> None:
    processes = {name: engine.launch(LONG, name=name, prompt=PROMPT) for name in ("", "small")}
    for process in processes.values():
        assert next(iter(process)).text == "begun"
    (pid,) = [row["pid"] for row in engine.status()["actors"] if row["role"] == "batcher" and row["model"] == "small"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DeviceLost):
        processes["small"].result(timeout=30)
    assert run(engine, BOTH, prompt=PROMPT, names=[""]) == run(engine, BOTH, prompt=PROMPT, names=["pie-tiny"])
    deadline = time.monotonic() + 60
    while True:  # it is replaced, while the other one serves
        try:
            run(engine, BOTH, prompt=PROMPT, names=["small"])
            break
        except DeviceLost:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert not processes[""].is_done
    processes[""].kill()


def test_a_model_is_scaled_by_its_name(engine: Any) -> None:
    with pytest.raises(NotFound, match="no model is named 'large'; served: pie-tiny, small"):
        engine.scale(2, model="large")
    assert [one["replicas"] for one in engine.scale(2, model="small")] == [1, 2]
    expected = run(engine, BOTH, prompt=PROMPT)
    processes = [engine.launch(BOTH, prompt=PROMPT) for _ in range(8)]
    assert [process.result(timeout=60) for process in processes] == [expected] * 8
    assert [one["replicas"] for one in engine.scale(1, model="small")] == [1, 1]
    assert run(engine, BOTH, prompt=PROMPT) == expected
