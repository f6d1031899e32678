"""A model whose tokenizer falls back on bytes: no stream of tokens ends anything, texts of generations join."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import program

import pieray
from pieray.assets import model_folder
from tests.support.byte_fallback import byte_fallback_json

WRITES = program(
    """
from inferlet import Context, model, session

async def main(seed, stop=(), parts=(7, 9, 4), how="iterate"):
    async with Context() as ctx:
        ctx.append([1, 260])
        start, said, reasons = ctx.position, [], []
        for number, count in enumerate(parts):
            options = {"temperature": 20.0, "seed": 100 * seed + number, "stop": stop, "stop_tokens": (),
                       "logit_bias": {token: 100.0 for token in (*range(0xA0, 0xF8), *range(259, 307))}}
            generation = ctx.generate(count, **options)
            if how == "stream":
                await session.stream(generation)
            elif how == "iterate":
                async for _ in generation:
                    pass
            else:
                await generation
            said.append(generation.text)
            reasons.append(generation.finish_reason)
        drawn = ctx.tokens[start:]
        whole = model.detokenize(ctx.tokens, skip_special=True)
        first = model.detokenize(ctx.tokens[:start], skip_special=True)
        return said, reasons, drawn, whole[len(first):]
""",
    "writes",
)


@pytest.fixture(scope="module")
def engine(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One whose model is the embedded one with another tokenizer: bytes are most of what it draws."""
    folder = tmp_path_factory.mktemp("model") / "foreign"
    shutil.copytree(Path(model_folder("pie-tiny")), folder)
    (folder / "tokenizer.json").write_bytes(byte_fallback_json())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pieray.start(namespace="foreign", model=str(folder)) as started:
        yield started


@pytest.mark.parametrize("how", ["await", "iterate", "stream"])
def test_texts_of_consecutive_generations_are_that_of_the_whole(engine: Any, how: str) -> None:
    processes = [engine.launch(WRITES, seed=seed, how=how) for seed in range(12)]
    num_blank = num_bad = 0
    for process in processes:
        said, reasons, drawn, whole = process.result(timeout=60)
        assert reasons == ["length"] * 3
        assert len(drawn) == 20
        joined = "".join(said)
        assert whole in (joined, joined + "\ufffd")  # a character that the last one ends within is not out yet
        num_blank += sum(text.startswith(" ") for text in said)
        num_bad += whole.count("\ufffd")
    assert num_bad > 20, "these were to be broken characters"
    assert num_blank


def test_stop_texts_among_broken_characters_end_their_plan_alone(engine: Any) -> None:
    processes = [engine.launch(WRITES, seed=seed, stop=["a", "\ufffd\ufffd", "ing"], parts=[60]) for seed in range(24)]
    found = [process.result(timeout=60) for process in processes]
    assert {reasons[0] for _, reasons, _, _ in found} == {"stop"}
    for said, _, _, whole in found:
        assert not any(stop in said[0] for stop in ("a", "\ufffd\ufffd", "ing"))
        assert whole.startswith(said[0])
    assert engine.status()["num_restarts"] == 0


def test_a_stop_string_that_a_special_token_spells_is_that_token(engine: Any) -> None:
    source = """
from inferlet import Context

async def main():
    async with Context() as ctx:
        ctx.append([1, 260])
        generation = ctx.generate(40, logit_bias={2: 100.0}, stop=["</s>"], stop_tokens=())
        await generation
        return generation.finish_reason, generation.stopped_by, generation.num_tokens
"""
    assert engine.launch(program(source)).result(timeout=60) == ["stop", 2, 0]


GEMMA = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('Roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim + '<|end|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""

CALLS = program(
    '''
import re
from inferlet import Context, Grammar, run_tools, tool

@tool
def add(a: int, b: int) -> int:
    """Adds"""
    return a + b

async def main(said):
    async with Context(tools=[add]) as ctx:
        ctx.user("Q1")
        answer = await run_tools(ctx, [add], max_steps=1, schema=Grammar.regex(re.escape(said)))
        await ctx.generate(8, schema=Grammar.regex("It is so"))
        return answer.steps[0].results, ctx.user("Q2").cue().text
''',
    "calls",
)


def test_tools_with_a_template_that_knows_of_none(ray_cluster: None, tmp_path: Path) -> None:
    """Gemma 2's way: no tools, no system message, turns that alternate."""
    folder = tmp_path / "gemma"
    shutil.copytree(Path(model_folder("pie-tiny")), folder)
    (folder / "chat_template.jinja").write_text(GEMMA)
    said = "[add(a=1, b=2), add(a=3, b=4)]"
    with pieray.start(namespace="gemma", model=str(folder)) as engine:
        results, text = engine.launch(CALLS, said=said).result(timeout=60)
        assert engine.status()["num_restarts"] == 0
    assert results == ["3", "7"]
    assert text.startswith("<start_of_turn>user\nYou may call tools.")
    assert text.endswith(
        f"\n\nQ1<|end|>\n<start_of_turn>model\n{said}<|end|>\n<start_of_turn>user\n<tool_response>\n3\n"
        "</tool_response>\n<tool_response>\n7\n</tool_response><|end|>\n<start_of_turn>model\nIt is so<|end|>\n"
        "<start_of_turn>user\nQ2<|end|>\n<start_of_turn>model\n"
    )
