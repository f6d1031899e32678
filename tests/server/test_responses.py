"""/v1/responses with openai-python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from programs import program
from pydantic import BaseModel

MODEL = "pie-tiny"
SUM = "12+7=? Think step by step."
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"
TIMER: Any = {
    "type": "function",
    "name": "timer",
    "description": "Set a timer.",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
    "strict": False,
}


@pytest.fixture
def client(door: str, engine: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{door}/v1", api_key="nobody asks", max_retries=0, timeout=60) as made:
        yield made


def test_a_response(client: OpenAI) -> None:
    done = client.responses.create(model=MODEL, input=SUM, temperature=0, metadata={"a": "b"})
    assert (done.status, done.output_text, done.object) == ("completed", ANSWER, "response")
    assert (done.temperature, done.metadata, done.error) == (0, {"a": "b"}, None)
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (13, 22, 35)


def test_one_that_is_cut_is_incomplete(client: OpenAI) -> None:
    done = client.responses.create(model=MODEL, input=SUM, temperature=0, max_output_tokens=3)
    assert (done.status, done.output_text) == ("incomplete", "2+7")
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"


def test_a_stream_has_all_events_in_order(client: OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input=SUM, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == ANSWER


def test_the_helper_that_gathers_a_stream(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_call_and_its_output(client: OpenAI, stream: bool) -> None:
    asked: list[Any] = [{"role": "user", "content": "Set a timer for 6 minutes."}]
    options: dict[str, Any] = {"model": MODEL, "tools": [TIMER], "temperature": 0}
    if stream:
        events = list(client.responses.create(input=asked, stream=True, **options))
        assert "response.function_call_arguments.done" in [event.type for event in events]
        last = events[-1]
        assert last.type == "response.completed"
        done = last.response
    else:
        done = client.responses.create(input=asked, **options)
    (call,) = done.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("timer", {"minutes": 6})
    asked += [*done.output, {"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    assert client.responses.create(input=asked, **options).output_text == "The result: done."


def test_instructions_and_a_conversation(client: OpenAI) -> None:
    done = client.responses.create(model=MODEL, instructions="You are pie-tiny.", input=SUM, temperature=0)
    assert done.instructions == "You are pie-tiny."
    assert done.usage is not None
    assert done.usage.input_tokens > 13


class Person(BaseModel):
    name: str
    age: int
    city: str


def test_structured_output(client: OpenAI) -> None:
    done = client.responses.parse(
        model=MODEL,
        input="Extract JSON: In Vari lives Mavi, aged 89.",
        text_format=Person,
        temperature=0,
        max_output_tokens=64,
    )
    assert done.output_parsed == Person(name="Mavi", age=89, city="Vari")


def test_log_probabilities(client: OpenAI) -> None:
    done = client.responses.create(
        model=MODEL, input=SUM, temperature=0, include=["message.output_text.logprobs"], top_logprobs=2
    )
    (message,) = done.output
    assert message.type == "message"
    part = message.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert "".join(entry.token for entry in part.logprobs) == ANSWER
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_what_it_does_not_serve_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model=MODEL, input="a", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="no model and no inferlet"):
        client.responses.create(model="gpt-4o", input="a")
    with pytest.raises(openai.BadRequestError, match="context is 1024"):
        client.responses.create(model=MODEL, input="x" * 3000, stream=True)


def test_an_inferlet_answers_in_place_of_the_model(client: OpenAI) -> None:
    done = client.responses.create(
        model="text-completion", input=SUM, max_output_tokens=40, temperature=0, metadata={"a": "b"}
    )
    assert (done.output_text, done.status, done.model) == (ANSWER, "completed", "text-completion")
    assert (done.max_output_tokens, done.metadata, done.temperature) == (40, {"a": "b"}, 0)
    assert done.result["text"] == ANSWER  # type: ignore[attr-defined]
    stream = client.responses.create(model="text-completion", input=SUM, max_output_tokens=40, stream=True)
    assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == ANSWER
    agent = client.responses.create(model="agent-react", input="Compute 1 times 2.")
    assert agent.output_text.endswith("Answer: 2")


def test_items_and_instructions_are_its_messages(client: OpenAI, engine: Any) -> None:
    source = program("async def main(messages):\n    return [[m['role'], m['content']] for m in messages]\n", "telling")
    engine.install(source)
    try:
        items: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        done = client.responses.create(model="telling", instructions="be brief", input=items)
        assert done.result == [  # type: ignore[attr-defined]
            ["system", "be brief"],
            ["user", "a"],
            ["assistant", "b"],
            ["user", "c"],
        ]
        with pytest.raises(openai.BadRequestError, match="temperature: telling does not take it"):
            client.responses.create(model="telling", input="a", temperature=0)
        with pytest.raises(openai.BadRequestError, match="input: is missing"):
            client.responses.create(model="telling")
    finally:
        engine.uninstall("telling")
