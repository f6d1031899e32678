"""Tools: functions with a schema, called with what a model wrote; the loop around them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from fake_host import FakeHost

from inferlet import Context, _running, chat, run_tools, tool
from inferlet.errors import InvalidRequest
from inferlet.tools import Tool
from pieray.models.chat_parse import parse_reply


@dataclass
class Place:
    city: str
    zip: int | None = None


@tool
async def weather(place: Place, unit: Literal["C", "F"] = "C") -> dict[str, Any]:
    """The weather in a place.

    Slow, but sure.

    Args:
        place: where
        unit (str): of degrees
    """
    await asyncio.sleep(0)
    return {"degrees": 20, "unit": unit, "city": place.city}


@tool(name="sum", description="Adds")
def add(a: int, b: int) -> int:
    return a + b


@tool
def fail(message: str) -> str:
    """Raises."""
    raise RuntimeError(message)


def call(found: Tool, arguments: Any) -> str:
    result: str = _running.run(found.call(arguments))
    return result


def test_the_spec_tells_name_description_and_parameters() -> None:
    function = weather.spec["function"]
    assert (function["name"], function["description"]) == ("weather", "The weather in a place.\n\nSlow, but sure.")
    parameters = function["parameters"]
    assert parameters["required"] == ["place"]
    assert parameters["properties"]["unit"] == {"enum": ["C", "F"], "description": "of degrees"}
    assert parameters["properties"]["place"] == {"$ref": "#/$defs/Place", "description": "where"}
    assert parameters["$defs"]["Place"]["required"] == ["city"]
    assert add.spec["function"] == {
        "name": "sum",
        "description": "Adds",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    }


def test_a_tool_is_still_its_function() -> None:
    assert add(1, b=2) == 3


def test_a_call_gives_text(host: FakeHost) -> None:
    assert call(add, '{"a": 1, "b": 2}') == call(add, {"a": "1", "b": 2}) == "3"  # some models write texts
    assert json.loads(call(weather, {"place": {"city": "Bane"}, "unit": "F"})) == {
        "degrees": 20,
        "unit": "F",
        "city": "Bane",
    }


@pytest.mark.parametrize(
    ("found", "arguments", "message"),
    [
        (add, '{"a": 1}', "error: sum: missing: b"),
        (add, {"a": 1, "b": "two"}, 'error: sum: b: int expected; given "two"'),
        (add, {"a": 1, "b": 2, "c": 3}, "error: sum: there is no 'c'; there are: a, b"),
        (add, "[1]", "error: sum: an object expected; given [1]"),
        (add, '{"a": ', "error: sum: Expecting value"),
        (weather, {"place": {"zip": 1}}, "error: weather: place: missing: city"),
        (fail, {"message": "no"}, "error: RuntimeError: no"),
    ],
)
def test_a_mistake_is_a_text_for_the_model(host: FakeHost, found: Tool, arguments: Any, message: str) -> None:
    assert call(found, arguments).startswith(message)


def test_a_function_that_cannot_be_described_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the parameter 'a' of the tool <lambda> has no type"):
        tool(lambda a: a)

    def many(*numbers: int) -> int:
        return sum(numbers)

    with pytest.raises(InvalidRequest, match=r"many has \*numbers"):
        tool(many)


class Script:
    """A context whose model says what is written down; messages are recorded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replies: list[str]) -> None:
        self.context = Context()
        self.added: list[str] = []
        left = iter(replies)
        monkeypatch.setattr(self.context, "generate", lambda *_, **__: _Said(next(left)))
        monkeypatch.setattr(self.context, "tool_results", self.added.extend)
        template = "<tool_call></tool_call>"
        monkeypatch.setattr("inferlet.model.detokenize", lambda tokens, model: tokens)
        monkeypatch.setattr(
            chat,
            "parse",
            lambda text, model, is_over: chat.Reply(
                **json.loads(parse_reply(template, text, is_over=is_over).to_json())
            ),
        )


class _Said:
    def __init__(self, text: str) -> None:
        self.text = self.tokens = text
        self.finish_reason = "stop"

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.text


def asks(*calls: tuple[str, Any]) -> str:
    return "".join(f"<tool_call>{json.dumps({'name': n, 'arguments': a})}</tool_call>" for n, a in calls)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> Callable[[list[str]], Script]:
    return lambda replies: Script(monkeypatch, replies)


def test_the_loop_calls_until_there_is_an_answer(script: Callable[[list[str]], Script]) -> None:
    said = script(
        [
            f"Let me see. {asks(('sum', {'a': 1, 'b': 2}))}",
            asks(("nothing", {}), ("sum", {"a": "x", "b": 2})),
            "It is 3.",
        ]
    )
    answer = _running.run(run_tools(said.context, [add]))
    assert answer.text == "It is 3."
    assert answer.steps[0].content == "Let me see."
    assert said.added == [
        "3",
        "error: there is no tool 'nothing'; there are: sum",
        'error: sum: a: int expected; given "x"',
    ]


def test_the_calls_of_one_reply_run_at_once(script: Callable[[list[str]], Script]) -> None:
    both = asyncio.Barrier(2)

    async def meet(name: str) -> str:
        await both.wait()  # the first waits for the second
        return name

    said = script([asks(("meet", {"name": "a"}), ("meet", {"name": "b"})), "done"])
    answer = _running.run(run_tools(said.context, [meet]))
    assert answer.steps[0].results == ["a", "b"]
    assert said.added == ["a", "b"]


def test_the_loop_is_bounded(script: Callable[[list[str]], Script]) -> None:
    said = script([asks(("sum", {"a": 1, "b": 2}))] * 3)
    answer = _running.run(run_tools(said.context, [add], max_steps=3))
    assert answer.text is None
    assert len(answer.steps) == 3


def render(_model: str, messages: str, tools: str, add_generation_prompt: bool, _arguments: str, _now: int) -> str:
    """A template that shows the tools first, and who answered."""
    offered = "".join(f"[{one['function']['name']}]" for one in json.loads(tools or "[]"))
    said = [f"<{m['role']}{':' + m['name'] if 'name' in m else ''}>{m['content']}\n" for m in json.loads(messages)]
    return offered + "".join(said) + ("<assistant>" if add_generation_prompt else "")


def test_tools_are_shown_once_and_their_answers_are_messages(monkeypatch: pytest.MonkeyPatch, host: FakeHost) -> None:
    monkeypatch.setattr("inferlet._host.chat.render", render)
    with_spec = Context(tools=[add, weather.spec])
    with_spec.user("hello")
    assert with_spec.text == "[sum][weather]<user>hello\n"
    with_spec.tool("3", name="sum")
    assert with_spec.text == "[sum][weather]<user>hello\n<tool:sum>3\n"
    fork = with_spec.fork()
    fork.cue()
    assert fork.text == with_spec.text + "<assistant>"
    fresh = Context(tools=[add]).fork().user("a")
    assert fresh.text == "[sum]<user>a\n"
