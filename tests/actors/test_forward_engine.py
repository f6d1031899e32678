"""Passes, samplers and embeddings from a guest to the model and back, on a running engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from programs import program

from pieray.assets import model_folder

PROMPT = "Sort: 3 1 2 9"

OUTPUTS = program(
    """
from inferlet import embeds, forward, kv, model, queue

async def main(prompt):
    tokens, line = model.tokenize(prompt), queue.create()
    def fresh():
        return kv.alloc(-(-len(tokens) // kv.page_size()))
    run = forward.forward(line, fresh(), 0, tokens)
    text = embeds.text(tokens)
    asked = run.logits(), run.entropy(), run.hidden(), run.entropy(1), run.sample()
    over_text = forward.forward_embeds(line, fresh(), 0, [text]).logits()
    values = await text.values(line)
    assert len(values) == len(tokens) * model.info()["hidden_size"]
    own = embeds.put(values[: 2 * model.info()["hidden_size"]])
    over_values = forward.forward_embeds(line, fresh(), 0, [own, embeds.text(tokens[2:])]).logits()
    masked = forward.forward(line, fresh(), 0, tokens)
    for row in range(1, len(tokens)):
        masked.mask_runs(row, [1])  # nobody but the first token sees the first token
    rest = forward.forward(line, fresh(), 0, tokens[1:], positions=list(range(1, len(tokens))))
    masked, rest = masked.logits(), rest.logits()
    return {
        "logits": await asked[0], "entropy": await asked[1], "hidden": await asked[2], "second": await asked[3],
        "sample": await asked[4], "over_text": await over_text, "over_values": await over_values,
        "masked": await masked, "rest": await rest, "num_rows": [len(text), len(own)],
    }
""",
    "outputs",
)

SAMPLED = program(
    """
from inferlet import Context, Sampler

async def main(prompt, max_tokens=12, bias=None, allowed=None, **options):
    if bias is not None:
        options["logit_bias"] = {token: float(value) for token, value in bias}
    if allowed is not None:
        options = {"sampler": Sampler(allowed=allowed, **options)}
    async with Context(prompt) as ctx:
        generation = ctx.generate(max_tokens, stop_tokens=(), **options)
        await generation
        return generation.tokens
""",
    "sampled",
)

VERIFIED = program(
    """
from inferlet import Context, Sampler, forward, kv, model, queue

async def main(prompt, temperature, seed, num_drafts):
    sampler = Sampler(temperature, seed=seed)
    tokens = model.tokenize(prompt)
    async with Context(tokens) as ctx:
        plain = ctx.generate(num_drafts + 4, sampler=sampler, stop_tokens=())
        await plain
    said = plain.tokens
    pages = kv.alloc(-(-(len(tokens) + 3 * num_drafts + 4) // kv.page_size()))
    drafts, parents, node = [], [], 0
    for token in said[:num_drafts]:  # at each depth a wrong draft, then the right one
        drafts += [(token + 1) % 600, token]
        parents += [node, node]
        node = len(drafts)
    line = queue.create()
    first = await forward.verify(line, pages, 0, tokens, drafts, parents, sampler)
    kv_len = len(tokens) + len(first) - 1
    then = await forward.verify(line, pages, kv_len, first[-1:], [], [], sampler)
    after = await forward.forward(line, pages, kv_len + 1, then).sample(sampler=sampler)
    return {"plain": said, "verified": first + then + after}
""",
    "verified",
)

REFUSED = program(
    """
from inferlet import Error, Sampler, embeds, forward, kv, model, queue

async def main():
    line, found = queue.create(), []
    async def refused(make):
        try:
            await make()
        except Error as error:
            found.append([error.code, error.message])
        else:
            found.append(None)
    def run():
        return forward.forward(line, kv.alloc(1), 0, [5, 6])
    every = {token: float("-inf") for token in range(model.info()["vocab_size"])}
    async def draw(): return await run().sample(sampler=Sampler(logit_bias=every))
    async def verify(): return await forward.verify(line, kv.alloc(1), 0, [5], [6], [], Sampler(0.0, allowed=[]))
    async def nan(): return embeds.put([float("nan")] * model.info()["hidden_size"])
    async def narrow(): return embeds.put([1.0])
    async def forward_parent(): return await forward.verify(line, kv.alloc(1), 0, [5], [6, 7], [2, 0])
    async def closed():
        with embeds.text([5]) as one:
            pass
        return one.values(line)
    for make in (draw, verify, nan, narrow, forward_parent, closed):
        await refused(make)
    return found, await run().sample()
""",
    "refused",
)


def launch(engine: Any, source: Any, **arguments: object) -> Any:
    return engine.launch(source, arguments).result(timeout=60)


@pytest.fixture(scope="module")
def reference() -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder("pie-tiny")
    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


def test_outputs_and_embeddings_are_those_of_transformers(engine: Any, reference: Any) -> None:
    model, tokenizer = reference
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    with torch.inference_mode():
        want = model(ids, output_hidden_states=True)
    entropy = torch.distributions.Categorical(logits=want.logits[0]).entropy().tolist()
    got = launch(engine, OUTPUTS, prompt=PROMPT)
    np.testing.assert_allclose(got["logits"], want.logits[0, -1], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(got["hidden"], want.hidden_states[-1][0, -1], rtol=1e-3, atol=1e-3)
    assert [got["entropy"], got["second"]] == pytest.approx([entropy[-1], entropy[1]], abs=2e-3)
    assert got["sample"] == [int(want.logits[0, -1].argmax())]
    assert got["over_text"] == got["over_values"] == got["logits"]
    assert got["num_rows"] == [ids.shape[1], 2]
    np.testing.assert_allclose(got["masked"], got["rest"], rtol=1e-3, atol=1e-3)
    assert not np.allclose(got["masked"], got["logits"], atol=0.05)


def test_chains_shape_what_is_generated(engine: Any) -> None:
    plain = launch(engine, SAMPLED, prompt=PROMPT)
    banned = launch(engine, SAMPLED, prompt=PROMPT, bias=[[plain[0], "-inf"]])
    assert plain[0] not in banned
    assert launch(engine, SAMPLED, prompt=PROMPT, bias=[[77, 1000]]) == [77] * 12
    only = launch(engine, SAMPLED, prompt=PROMPT, allowed=[70, 71, 72], temperature=3.0, seed=1, max_tokens=40)
    assert len(only) == 40
    assert set(only) <= {70, 71, 72}
    typical = [launch(engine, SAMPLED, prompt="the", temperature=1.5, typical_p=p, seed=5) for p in (0.2, 0.2, 0.9999)]
    assert typical[0] == typical[1] != typical[2]


@pytest.mark.parametrize(("temperature", "seed"), [(0.0, 0), (1.5, 2), (1.5, 3)])
def test_a_verified_tree_goes_on_as_plain_decoding(engine: Any, temperature: float, seed: int) -> None:
    got = launch(engine, VERIFIED, prompt=PROMPT, temperature=temperature, seed=seed, num_drafts=5)
    assert len(got["verified"]) == 8
    assert got["verified"] == got["plain"][:8]


def test_what_cannot_be_is_an_error_of_that_request_alone(engine: Any) -> None:
    found, token = launch(engine, REFUSED)
    codes = [one and one[0] for one in found]
    assert codes == ["invalid", "invalid", "invalid", "invalid", "invalid", "bad-handle"]
    assert "allows no token" in found[0][1]
    assert "allows no token" in found[1][1]
    assert len(token) == 1
    assert math.isfinite(token[0])
