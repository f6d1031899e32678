"""LoRA on a running engine: what guests get through adapters is what merged weights give."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import assert_pages_return
from loras import TARGETS, as_bytes, as_folder, merged, random_lora
from programs import program

import pieray
from pieray.assets import model_folder
from pieray.errors import EngineError, Evicted, InvalidRequest, ModelError, NotFound, PierayError, QuotaExceeded
from pieray.messages import Logits
from pieray.models.batch import ForwardItem
from pieray.models.runner import ModelRunner
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

BASE = model_folder("pie-tiny")
PROMPT = "12+7="
LOGITS = program(
    """
import base64
from inferlet import adapters, forward, kv, model, queue, scratch, session

async def main(prompt, name="", data="", alpha=0.0):
    tokens = model.tokenize(prompt)
    adapter = None
    if data:
        scratch.write("mine.safetensors", base64.b64decode(data))
        adapter = await adapters.load("mine.safetensors", alpha)
    elif name:
        adapter = adapters.open(name)
    one = forward.forward(queue.create(), kv.alloc(2), 0, tokens, adapter=adapter)
    asked = one.logits()
    if adapter is not None:
        adapter.close()
    return await asked
""",
    "logits",
)


def expected_logits(folder: Path) -> np.ndarray:
    runner = ModelRunner.load(folder, dtype="float32", num_pages=4)
    tokens = np.array(Tokenizer(TokenizerSpec.from_folder(BASE)).encode(PROMPT), np.uint32)
    item = ForwardItem(np.arange(2, dtype=np.uint32), 0, tokens, np.arange(len(tokens), dtype=np.uint32))
    ((found,),) = runner.step([item], [[Logits()]])
    return found


@pytest.fixture(scope="module")
def loras() -> dict[str, Any]:
    return {
        "one": random_lora(BASE, 4, ("q_proj", "v_proj"), seed=1, size=0.5),
        "two": random_lora(BASE, 8, TARGETS, seed=2),
        "mine": random_lora(BASE, 16, ("down_proj", "gate_proj"), seed=3, size=0.5),
    }


@pytest.fixture(scope="module")
def expected(loras: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("merged")
    alphas = {"one": 8.0, "two": None, "mine": 4.0}
    made = {name: expected_logits(merged(BASE, lora, folder / name, alphas[name])) for name, lora in loras.items()}
    return {"": expected_logits(BASE), **made}


@pytest.fixture(scope="module")
def started(ray_cluster: None, loras: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = as_folder(loras["one"], tmp_path_factory.mktemp("one"), lora_alpha=8)
    settings = {"path": "pie-tiny", "adapters": {"one": str(folder)}}
    with pieray.start(namespace=f"adapters-{time.time_ns()}", model=settings) as engine:
        yield engine


@pytest.fixture
def engine(started: Any) -> Iterator[Any]:
    yield started
    assert_pages_return(started)
    for row in started.adapters():
        if row["owner"]:
            started.unload_adapter(row["name"], tenant=row["owner"])


def ask(engine: Any, **arguments: Any) -> np.ndarray:
    return np.array(engine.launch(LOGITS, prompt=PROMPT, **arguments).result(timeout=60))


def test_adapters_of_every_origin_share_batches_and_equal_merged_weights(
    engine: Any, loras: dict[str, Any], expected: dict[str, np.ndarray]
) -> None:
    facts = engine.load_adapter("two", as_bytes(loras["two"]))
    assert (facts["rank"], facts["alpha"], facts["owner"]) == (8, 8.0, "local")
    assert [row["name"] for row in engine.adapters()] == ["one", "two"]
    own = {"data": base64.b64encode(as_bytes(loras["mine"])).decode(), "alpha": 4.0}
    jobs = [("", {}), ("one", {"name": "one"}), ("two", {"name": "two"}), ("mine", own)] * 4
    running = [(name, engine.launch(LOGITS, prompt=PROMPT, **arguments)) for name, arguments in jobs]
    for name, process in running:
        np.testing.assert_allclose(process.result(timeout=60), expected[name], atol=1e-4, err_msg=name)
    assert min(np.abs(expected[""] - expected[name]).max() for name in ("one", "two", "mine")) > 0.1


FOLDER = program(
    """
import base64
from inferlet import adapters, forward, kv, model, queue, scratch

async def main(prompt, data, config):
    scratch.write("lora/adapter_model.safetensors", base64.b64decode(data))
    scratch.write("lora/adapter_config.json", config)
    adapter = await adapters.load("lora")
    return await forward.forward(queue.create(), kv.alloc(2), 0, model.tokenize(prompt), adapter=adapter).logits()
""",
    "folder",
)


def test_what_an_inferlet_loads_is_scaled_as_its_folder_says(
    engine: Any, loras: dict[str, Any], expected: dict[str, np.ndarray]
) -> None:
    data = base64.b64encode(as_bytes(loras["mine"])).decode()
    for config in ({"lora_alpha": 4}, {"lora_alpha": 1, "use_rslora": True}):  # of rank 16: 4 / 16 both
        written = json.dumps({"peft_type": "LORA", **config})
        found = engine.launch(FOLDER, prompt=PROMPT, data=data, config=written).result(timeout=60)
        np.testing.assert_allclose(found, expected["mine"], atol=1e-4)
    with pytest.raises(InvalidRequest, match=r"lora/adapter_config.json: layer_replication is \[\[0, 1\]\]"):
        engine.launch(FOLDER, prompt=PROMPT, data=data, config='{"layer_replication": [[0, 1]]}').result(timeout=60)


SNAPSHOT = program(
    """
import base64
from inferlet import Context, adapters, scratch

async def adapter_of(name, data, alpha):
    if not data:
        return adapters.open(name) if name else None
    scratch.write(name, base64.b64decode(data))
    return await adapters.load(name, alpha)

async def main(do, name="", data="", alpha=0.0):
    adapter = await adapter_of(name, data, alpha)
    if do == "save":
        async with Context("1+2=", adapter=adapter) as ctx:
            await ctx.save("kept")
    else:
        async with await Context.open("kept", adapter=adapter) as ctx:
            return await ctx.collect_text(4, stop_tokens=())
""",
    "snapshot",
)


def test_a_snapshot_is_opened_with_the_adapter_that_it_was_made_with_and_no_other_of_its_name(
    engine: Any, loras: dict[str, Any]
) -> None:
    def run(do: str, **arguments: Any) -> Any:
        return engine.launch(SNAPSHOT, do=do, **arguments).result(timeout=60)

    def refused(**arguments: Any) -> str:
        with pytest.raises(InvalidRequest, match="this snapshot was made with") as caught:
            run("open", **arguments)
        return str(caught.value)

    two, mine = as_bytes(loras["two"]), as_bytes(loras["mine"])
    digest = engine.load_adapter("two", two)["digest"]
    run("save", name="two")
    run("open", name="two")
    engine.unload_adapter("two")
    other = engine.load_adapter("two", mine)["digest"]
    assert refused(name="two").startswith(
        f"this snapshot was made with adapter 'two' of digest {digest[:16]}, and is opened with adapter 'two' of "
        f"digest {other[:16]}: open it with the same weights and scaling"
    )
    engine.unload_adapter("two")
    engine.load_adapter("two", two, alpha=3.0)
    refused(name="two")
    assert "and is opened with no adapter" in refused()
    run("open", name="another", data=base64.b64encode(two).decode())
    refused(name="two", data=base64.b64encode(two).decode(), alpha=3.0)
    run("save")
    assert "was made with no adapter" in refused(name="one")
    run("open")


def test_another_tenant_does_not_see_them(engine: Any, loras: dict[str, Any]) -> None:
    engine.load_adapter("two", as_bytes(loras["two"]), tenant="somebody else")
    with pytest.raises(NotFound, match="'two'; there are: one"):
        ask(engine, name="two")


def test_an_unloaded_adapter_is_not_found_and_open_handles_are_evicted(engine: Any, loras: dict[str, Any]) -> None:
    engine.load_adapter("two", as_bytes(loras["two"]))
    holder = program(
        """
from inferlet import Context, adapters, session
async def main():
    async with Context("1+1=", adapter=adapters.open("two")) as ctx:
        await ctx.generate(1)
        session.send("open")
        await session.receive()
        await ctx.generate(1)
"""
    )
    process = engine.launch(holder)
    assert next(iter(process)).text == "open"
    engine.unload_adapter("two")
    process.send("go")
    with pytest.raises(Evicted, match="not loaded any more"):
        process.result(timeout=30)
    with pytest.raises(NotFound):
        ask(engine, name="two")
    with pytest.raises(NotFound, match="two"):
        engine.unload_adapter("two")


def test_bad_adapters_are_refused_by_name(engine: Any, loras: dict[str, Any]) -> None:
    broken = dict(loras["one"])
    name = next(iter(broken))
    broken[name] = broken[name][:, :-1]
    data = as_bytes(broken)
    with pytest.raises(ModelError, match=f"'{name}' has shape"):
        engine.load_adapter("broken", data)
    with pytest.raises(InvalidRequest, match=f"'{name}' has shape"):
        ask(engine, data=base64.b64encode(data).decode())
    small = base64.b64encode(as_bytes(random_lora(BASE, 1, ("v_proj",), layers=[0]))).decode()
    with pytest.raises(QuotaExceeded, match="adapter_bytes: 1500 are left"):
        engine.launch(LOGITS, prompt=PROMPT, data=small, limits={"adapter_bytes": 1500}).result(timeout=60)
    engine.load_adapter("two", as_bytes(loras["two"]))
    with pytest.raises(InvalidRequest, match="'two' already"):
        engine.load_adapter("two", as_bytes(loras["two"]))


def test_what_inferlets_load_is_freed_when_they_end(engine: Any, loras: dict[str, Any]) -> None:
    data = base64.b64encode(as_bytes(loras["mine"])).decode()
    keeps = program(
        """
import base64
from inferlet import adapters, scratch
async def main(data):
    scratch.write("a", base64.b64decode(data))
    await adapters.load("a")
    return [one["name"] for one in [adapters.info(name) for name in adapters.names()]]
"""
    )
    assert engine.launch(keeps, data=data).result(timeout=60) == ["one"]
    deadline = time.monotonic() + 10
    while (found := batcher(engine)["adapter_bytes"]) != engine.adapters()[0]["num_bytes"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def batcher(engine: Any) -> dict[str, Any]:
    (found,) = [a for a in engine.status()["actors"] if a["role"] == "batcher"]
    return dict(found)


def test_lora_switch_answers_with_two_adapters_side_by_side(engine: Any, loras: dict[str, Any]) -> None:
    for name in ("two", "mine"):  # so strong that the text changes
        engine.load_adapter(name, as_bytes(loras[name]), alpha=400)
    texts = engine.launch("lora-switch", prompt=PROMPT, max_tokens=12).result(timeout=60)
    assert set(texts) == {"", "one", "two", "mine"}
    assert texts[""] == engine.launch("text-completion", prompt=PROMPT, max_tokens=12).result(timeout=60)["text"]
    for name in ("two", "mine"):
        alone = engine.launch("lora-switch", prompt=PROMPT, max_tokens=12, adapters_wanted=[name]).result(timeout=60)
        assert alone == {"": texts[""], name: texts[name]}
    assert len({texts[name] for name in ("", "two", "mine")}) == 3


ONE_GENERATION = program(
    """
from inferlet import Context, adapters

async def by_hand(ctx, n, adapter):
    for _ in range(n):
        step = ctx.forward(adapter=adapter)
        drawn = step.sample()
        await step
        ctx.append(await drawn)

async def main(prompt, n):
    two, found = adapters.open("two"), {}
    for name, options in {"plan": {}, "scored": {"logprobs": True}, "draft": {"drafter": lambda t: t[-2:]},
                          "ngram": {"drafter": "ngram"}}.items():
        async with Context(prompt) as ctx:
            generation = ctx.generate(n, adapter=two, stop_tokens=(), **options)
            await generation
            found[name] = [generation.is_plan, ctx.tokens]
    async with Context(prompt) as ctx:
        await by_hand(ctx, n, two)
        found["by hand"] = [False, ctx.tokens]
    async with Context(prompt, adapter=two) as ctx:
        await ctx.generate(n, stop_tokens=())
        found["context"] = [True, ctx.tokens]
    mixed = []
    for _ in range(2):  # the base's KV, the adapter's tokens, then the base's again
        async with Context(prompt) as ctx:
            await ctx.flush()
            if mixed:
                await by_hand(ctx, n, two)
                await by_hand(ctx, n, None)
            else:
                await ctx.generate(n, adapter=two, stop_tokens=())
                await ctx.generate(n, stop_tokens=())
            mixed.append(ctx.tokens)
    async with Context(prompt) as ctx:
        await ctx.generate(n, stop_tokens=())
        base = ctx.tokens
    return found, mixed, base
""",
    "one-generation",
)


def test_a_generation_through_an_adapter_is_forward_and_sample_through_it(engine: Any, loras: dict[str, Any]) -> None:
    engine.load_adapter("two", as_bytes(loras["two"]), alpha=400)
    found, mixed, base = engine.launch(ONE_GENERATION, prompt=PROMPT, n=12).result(timeout=60)
    expected = found["by hand"][1]
    assert expected != base
    assert {name: tokens for name, (_, tokens) in found.items()} == dict.fromkeys(found, expected)
    assert [found[name][0] for name in ("plan", "scored", "ngram", "draft")] == [True, True, True, False]
    assert mixed[0] == mixed[1] != base


def test_a_new_batcher_and_a_new_actor_have_the_adapters_again(
    engine: Any, loras: dict[str, Any], expected: dict[str, np.ndarray]
) -> None:
    engine.load_adapter("two", as_bytes(loras["two"]))
    for role in ("batcher", "inferlets"):
        pid = next(a["pid"] for a in engine.status()["actors"] if a["role"] == role)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert pid not in [a["pid"] for a in engine.status()["actors"]]
                found = [ask(engine, name=name) for name in ("one", "two")]
                break
            except (AssertionError, EngineError, PierayError):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        for name, logits in zip(("one", "two"), found, strict=True):
            np.testing.assert_allclose(logits, expected[name], atol=1e-4, err_msg=f"{name} after a new {role}")


def test_settings_that_name_a_bad_adapter_do_not_start(ray_cluster: None, tmp_path: Path) -> None:
    settings = {"path": "pie-tiny", "adapters": {"bad": str(tmp_path / "none.safetensors")}}
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        pieray.start(namespace=f"bad-{time.time_ns()}", model=settings)
