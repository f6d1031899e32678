"""openai-python against the door: what its documentation shows, with another `base_url` and model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "pie-tiny"
SUM = "12+7=? Think step by step."
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"
TIMER = {
    "type": "function",
    "function": {
        "name": "timer",
        "description": "Set a timer.",
        "parameters": {
            "type": "object",
            "properties": {"minutes": {"type": "integer"}},
            "required": ["minutes"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture
def client(door: str, engine: Any) -> Iterator[OpenAI]:
    """`engine`: after each test its pages have come back."""
    with OpenAI(base_url=f"{door}/v1", api_key="nobody asks", max_retries=0, timeout=60) as made:
        yield made


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_a_chat_completion(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=user(SUM), temperature=0)
    (choice,) = done.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (13, 22, 35)
    assert (done.object, done.model, done.id[:9]) == ("chat.completion", MODEL, "chatcmpl-")


def test_a_stream_is_the_same_text_in_pieces(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=user(SUM), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert ("".join(pieces), len(pieces)) == (ANSWER, 21)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 22
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_async_client(door: str, engine: Any) -> None:
    async def several() -> list[str | None]:
        async with AsyncOpenAI(base_url=f"{door}/v1", api_key="x", max_retries=0) as made:
            asked = [made.chat.completions.create(model=MODEL, messages=user(SUM), temperature=0) for _ in range(8)]
            return [done.choices[0].message.content for done in await asyncio.gather(*asked)]

    assert asyncio.run(several()) == [ANSWER] * 8


def test_several_choices_are_those_of_their_seeds(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": user("Repeat: veki"), "temperature": 1.5, "max_tokens": 8}
    done = client.chat.completions.create(n=3, seed=5, **options)
    alone = [client.chat.completions.create(seed=seed, **options) for seed in (5, 6, 7)]
    assert [choice.message.content for choice in done.choices] == [one.choices[0].message.content for one in alone]
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(n=3, seed=5, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [texts[index] for index in range(3)] == [choice.message.content for choice in done.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_and_alternatives(client: OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": user(SUM), "temperature": 1, "seed": 3}
    options |= {"max_tokens": 6, "logprobs": True, "top_logprobs": 4}
    found = []
    if stream:
        for chunk in client.chat.completions.create(stream=True, **options):
            if chunk.choices[0].logprobs is not None:
                found += chunk.choices[0].logprobs.content or []
    else:
        logprobs = client.chat.completions.create(**options).choices[0].logprobs
        assert logprobs is not None
        found = logprobs.content or []
    assert len(found) >= 3
    for entry in found:
        top = {one.token: one.logprob for one in entry.top_logprobs}
        assert len(top) == 4
        assert sorted(top.values(), reverse=True) == list(top.values())
        assert sum(math.exp(value) for value in top.values()) <= 1.0001
        if entry.token in top:
            assert entry.logprob == pytest.approx(top[entry.token], abs=1e-3)
        assert entry.bytes == list(entry.token.encode())


def test_a_stop_text_a_bias_and_penalties(client: OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=user(SUM), temperature=0, stop=["answer"])
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("2+7+0=9; 1+0+0=1; ", "stop")
    assert done.choices[0].stop_reason == "answer"  # type: ignore[attr-defined]  # vLLM's
    banned = client.chat.completions.create(
        model=MODEL, messages=user(SUM), temperature=0, logit_bias={"23": -100}, max_tokens=8
    )
    assert not (banned.choices[0].message.content or "2").startswith("2")
    plain = client.chat.completions.create(
        model=MODEL, messages=user("Repeat: veki veki"), temperature=0, max_tokens=12
    )
    penalized = client.chat.completions.create(
        model=MODEL,
        messages=user("Repeat: veki veki"),
        temperature=0,
        max_tokens=12,
        frequency_penalty=2,
        presence_penalty=2,
        extra_body={"min_tokens": 12},
    )
    assert plain.choices[0].message.content != penalized.choices[0].message.content
    assert penalized.usage is not None
    assert penalized.usage.completion_tokens == 12


def test_a_tool_call_and_its_result(client: OpenAI) -> None:
    messages = user("Set a timer for 6 minutes.")
    tools: Any = [TIMER]
    done = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, temperature=0)
    (call,) = done.choices[0].message.tool_calls or []
    assert done.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("timer", {"minutes": 6})
    messages += [done.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    after = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, temperature=0)
    assert after.choices[0].message.content == "The result: done."
    assert after.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "timer"}}])
def test_tool_calls_come_in_a_stream_too(client: OpenAI, choice: Any) -> None:
    tools: Any = [TIMER]
    stream = client.chat.completions.create(
        model=MODEL,
        messages=user("Set a timer for 6 minutes."),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    calls, reasons = [], []
    for chunk in stream:
        calls += chunk.choices[0].delta.tool_calls or []
        reasons.append(chunk.choices[0].finish_reason)
        assert not chunk.choices[0].delta.content
    (call,) = calls
    assert call.function is not None
    assert (call.index, call.function.name) == (0, "timer")
    assert isinstance(json.loads(call.function.arguments or "")["minutes"], int)
    assert reasons[-1] == "tool_calls"


def test_without_a_choice_of_tools_what_looks_like_a_call_is_text(client: OpenAI) -> None:
    tools: Any = [TIMER]
    done = client.chat.completions.create(
        model=MODEL, messages=user("Set a timer for 6 minutes."), tools=tools, tool_choice="none", temperature=0
    )
    assert done.choices[0].message.content == '{"name": "timer", "arguments": {"minutes": 6}}'
    assert not done.choices[0].message.tool_calls


class Person(BaseModel):
    name: str
    age: int
    city: str


def test_structured_output_of_a_pydantic_model(client: OpenAI) -> None:
    done = client.chat.completions.parse(
        model=MODEL,
        messages=user("Extract JSON: In Vari lives Mavi, aged 89."),
        response_format=Person,
        temperature=0,
        max_tokens=64,
    )
    assert done.choices[0].message.parsed == Person(name="Mavi", age=89, city="Vari")


@pytest.mark.parametrize(
    ("extra", "texts"),
    [
        ({"guided_choice": ["red", "dark blue"]}, {"red", "dark blue"}),
        ({"guided_regex": "(yes|no)"}, {"yes", "no"}),
        ({"structured_outputs": {"grammar": 'start: "ab" | "cd"'}}, {"ab", "cd"}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}}}, {"1", "2"}),
    ],
)
def test_grammars_under_vllms_names(client: OpenAI, extra: dict[str, Any], texts: set[str]) -> None:
    done = client.chat.completions.create(model=MODEL, messages=user(SUM), extra_body=extra)
    assert done.choices[0].message.content in texts


def test_completions_of_texts_and_tokens(client: OpenAI) -> None:
    done = client.completions.create(model=MODEL, prompt=["12+7=", "9+7="], temperature=0, n=2)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in done.choices] == [
        (0, "19", "stop"),
        (1, "19", "stop"),
        (2, "16", "stop"),
        (3, "16", "stop"),
    ]
    of_tokens = client.completions.create(
        model=MODEL, prompt=[22, 23, 16, 28], temperature=0, max_tokens=3, extra_body={"return_token_ids": True}
    )
    assert of_tokens.choices[0].prompt_token_ids == [22, 23, 16, 28]  # type: ignore[attr-defined]  # vLLM's
    pieces = client.completions.create(model=MODEL, prompt="12+7=", temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == "19"


def test_an_echo_with_log_probabilities_scores_a_text(client: OpenAI) -> None:
    """What lm-eval asks for."""
    done = client.completions.create(model=MODEL, prompt="12+7=19", max_tokens=0, echo=True, logprobs=1)
    (choice,) = done.choices
    assert choice.text == "12+7=19"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list("12+7=19")
    assert choice.logprobs.text_offset == list(range(7))
    scores = choice.logprobs.token_logprobs or []
    assert scores[0] is None
    assert scores[5] > math.log(0.9) < scores[6]
    first, *tops = choice.logprobs.top_logprobs or []
    assert first is None
    assert all(max(top.values()) >= score for top, score in zip(tops, scores[1:], strict=True))


def test_prompt_logprobs_are_the_same_scores(client: OpenAI) -> None:
    told = client.completions.create(
        model=MODEL, prompt="12+7=19", max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 1}
    )
    scores = told.choices[0].prompt_logprobs  # type: ignore[attr-defined]  # vLLM's
    assert scores[0] is None
    assert scores[-1]["30"] == {"logprob": pytest.approx(0, abs=0.1), "rank": 1, "decoded_token": "9"}


def test_embeddings_in_both_encodings(client: OpenAI) -> None:
    packed = client.embeddings.create(model=MODEL, input=["12+7=", "12+8="])  # base64 on the way
    plain = client.embeddings.create(model=MODEL, input=["12+7=", "12+8="], encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1)
    assert packed.usage.prompt_tokens == 10


def test_models_are_listed_and_inferlets_among_them(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert {"text-completion", "agent-react", "best-of-n"} <= set(names)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_an_inferlet_runs_as_if_it_were_a_model(client: OpenAI) -> None:
    done = client.chat.completions.create(model="agent-react", messages=user("Compute 1 times 2."))
    assert (done.choices[0].message.content or "").endswith("Answer: 2")
    assert done.result["answer"] == "2"  # type: ignore[attr-defined]
    stream = client.chat.completions.create(
        model="text-completion", messages=user(SUM), stream=True, max_completion_tokens=40
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER
    silent = client.chat.completions.create(
        model="best-of-n", messages=user(SUM), n=2, extra_body={"max_tokens": 40, "temperature": 0.1}
    )
    assert silent.choices[0].message.content == ANSWER


def test_an_installed_program_is_a_model(client: OpenAI, engine: Any) -> None:
    from programs import program

    source = program("async def main(messages):\n    return messages[-1]['content'].upper()\n", "shouting")
    engine.install(source)
    try:
        done = client.chat.completions.create(model="shouting@0.0.0", messages=user("hello"))
        assert done.choices[0].message.content == "HELLO"
        assert "shouting@0.0.0" in [model.id for model in client.models.list()]
    finally:
        engine.uninstall("shouting")
    with pytest.raises(openai.NotFoundError, match="no model and no inferlet"):
        client.chat.completions.create(model="shouting@0.0.0", messages=user("hello"))


@pytest.mark.parametrize("name", ["gpt-4o", "../README.md", "/etc/passwd", "pieray/config.py", "tests", "a\x00b"])
def test_no_other_name_is_a_model_and_no_file(client: OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model=name, messages=user("hello"))
    assert refused.value.code == "model_not_found"


def test_what_an_inferlet_does_not_take_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="agent-react does not take it; it takes question"):
        client.chat.completions.create(model="agent-react", messages=user("hello"), temperature=0.5)
    with pytest.raises(openai.BadRequestError, match="one message of the user"):
        client.chat.completions.create(model="agent-react", messages=user("hello") * 2)


def test_faults_that_the_inferlet_finds_have_a_status(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the model's context is 1024 tokens; the prompt has 3000"):
        client.completions.create(model=MODEL, prompt="x" * 3000)
    with pytest.raises(openai.BadRequestError, match="context is 1024"):
        client.completions.create(model=MODEL, prompt="x" * 3000, stream=True)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=user("x"), extra_body={"guided_regex": "("})
