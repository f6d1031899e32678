"""openai-python's documented examples, with another `base_url` and model: `python with_openai.py URL`."""

from __future__ import annotations

import asyncio
import json
import sys

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

URL = sys.argv[1]
MODEL = "pie-tiny"
SUM = "12+7=? Think step by step."
ANSWER = "2+7+0=9; 1+0+0=1; answer 19"

client = OpenAI(base_url=f"{URL}/v1", api_key="none")

# "Usage": the Responses API, then Chat Completions
response = client.responses.create(model=MODEL, instructions="You are a coding assistant.", input=SUM, temperature=0)
assert response.output_text, response
assert client.responses.create(model=MODEL, input=SUM, temperature=0).output_text == ANSWER
completion = client.chat.completions.create(
    model=MODEL,
    messages=[
        {"role": "developer", "content": "Talk like a pirate."},
        {"role": "user", "content": "How do I check if a Python object is an instance of a class?"},
    ],
    max_completion_tokens=20,
)
assert completion.choices[0].message.role == "assistant"

# "Streaming responses"
stream = client.responses.create(model=MODEL, input=SUM, temperature=0, stream=True)
assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == ANSWER


# "Async usage"
async def main() -> None:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as aclient:
        done = await aclient.responses.create(model=MODEL, input=SUM, temperature=0)
        assert done.output_text == ANSWER
        text = ""
        async for event in await aclient.responses.create(model=MODEL, input=SUM, temperature=0, stream=True):
            text += event.delta if event.type == "response.output_text.delta" else ""
        assert text == ANSWER


asyncio.run(main())


# "Auto-parsing response content with Pydantic models", and of a stream
class Person(BaseModel):
    name: str
    age: int
    city: str


WHO = "Extract JSON: In Vari lives Mavi, aged 89."
parsed = client.chat.completions.parse(
    model=MODEL, messages=[{"role": "user", "content": WHO}], response_format=Person, temperature=0, max_tokens=64
)
assert parsed.choices[0].message.parsed == Person(name="Mavi", age=89, city="Vari")
with client.chat.completions.stream(
    model=MODEL, messages=[{"role": "user", "content": WHO}], response_format=Person, temperature=0, max_tokens=64
) as events:
    kinds = {event.type for event in events}
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert events.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed
of_responses = client.responses.parse(
    model=MODEL, input=WHO, text_format=Person, temperature=0, max_output_tokens=64
).output_parsed
assert of_responses == parsed.choices[0].message.parsed


# "Auto-parsing function tool calls"
class timer(BaseModel):
    """Set a timer."""

    minutes: int


called = client.chat.completions.parse(
    model=MODEL,
    messages=[{"role": "user", "content": "Set a timer for 6 minutes."}],
    tools=[openai.pydantic_function_tool(timer)],
    temperature=0,
    max_tokens=64,
)
calls = called.choices[0].message.tool_calls
assert calls is not None
assert calls[0].function.parsed_arguments == timer(minutes=6)
with client.chat.completions.stream(
    model=MODEL,
    messages=[{"role": "user", "content": "Set a timer for 6 minutes."}],
    tools=[openai.pydantic_function_tool(timer)],
    temperature=0,
    max_tokens=64,
) as events:
    final = events.get_final_completion().choices[0].message
assert final.tool_calls is not None
assert json.loads(final.tool_calls[0].function.arguments) == {"minutes": 6}

# "Pagination", "Handling errors", "Request IDs", "Retries", "Timeouts", "Accessing raw response data"
assert next(iter(client.models.list())).id == MODEL
try:
    client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
except openai.NotFoundError as error:
    assert error.status_code == 404  # noqa: PT017
    assert error.code == "model_not_found"  # noqa: PT017
else:
    raise AssertionError("refused")
brief = client.with_options(max_retries=0, timeout=0.01)
try:
    brief.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": SUM}], extra_body={"ignore_eos": True}
    )
except openai.APITimeoutError:
    pass
else:
    raise AssertionError("timed out")
raw = client.chat.completions.with_raw_response.create(
    model=MODEL, messages=[{"role": "user", "content": SUM}], temperature=0
)
assert raw.headers["x-pieray-run"]
assert raw.parse().choices[0].message.content == ANSWER
with client.chat.completions.with_streaming_response.create(
    model=MODEL, messages=[{"role": "user", "content": SUM}], temperature=0
) as lines:
    assert "answer 19" in "".join(lines.iter_lines())

# the embeddings guide
vectors = client.embeddings.create(model=MODEL, input=["12+7=", "12+8="]).data
assert len(vectors) == 2
print("openai", openai.__version__)
