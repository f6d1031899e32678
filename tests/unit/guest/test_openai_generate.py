"""The inferlet openai-generate where pie-tiny has nothing to show: thoughts, calls among text, stops within them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import guest_install  # noqa: F401 - the SDK is importable
import pytest
from chat_families import QWEN, R1, Family

from inferlet import testing
from pieray.models.chat_parse import parse_reply, thought_tags

ROOT = Path(__file__).resolve().parents[3]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
ADD = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


class FamilyHost(testing.Host):
    """Says what it is told to, and takes replies apart as a family's template tells; texts and deltas in order."""

    def __init__(self, family: Family, reply: str) -> None:
        super().__init__(reply)
        self._family = family
        self.told: list[Any] = []

    def model_info(self, model: str) -> str:
        return json.dumps(
            {**json.loads(super().model_info(model)), "thought_tags": thought_tags(self._family.template)}
        )

    def chat_parse(self, model: str, text: str, is_over: bool) -> str:
        return parse_reply(self._family.template, text, is_over=is_over).to_json()

    def session_send(self, text: str) -> None:
        self.told.append({"content": text})

    def session_emit(self, name: str, value: str) -> None:
        assert name == "delta"
        self.told.append({key: one for key, one in json.loads(value).items() if key != "index"})


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("openai_generate", ROOT / "inferlets" / "openai-generate" / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(program: ModuleType, host: testing.Host, asked: dict[str, Any]) -> dict[str, Any]:
    async def main(request: dict[str, Any]) -> Any:  # `messages` are something else to `testing.run`
        return await program.main(**request)

    found: dict[str, Any] = testing.run(main, host=host, request=asked).result
    return found


def chat(program: ModuleType, family: Family, reply: str, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The only choice, and what the stream of it has told, key by key."""
    host = FamilyHost(family, reply)
    asked = {"messages": [{"role": "user", "content": "Q"}], "temperature": 0, "stream": True, **options}
    (choice,) = run(program, host, asked)["choices"]
    told: dict[str, str] = {}
    for delta in host.told:
        for key, value in delta.items():
            if isinstance(value, str):
                told[key] = told.get(key, "") + value
            elif key == "tool_calls":
                assert value == choice["tool_calls"]
    (whole,) = run(program, FamilyHost(family, reply), {**asked, "stream": False})["choices"]
    for one in (*whole["tool_calls"], *choice["tool_calls"]):
        one.pop("id")
    assert whole == choice, "streamed or not, the choice is the same"
    return choice, told


def test_a_thought_is_told_apart_from_the_answer(program: ModuleType) -> None:
    choice, told = chat(program, QWEN, "<think>\nhm, well\n</think>\n\nForty-two.")
    assert told == {"reasoning": choice["reasoning"], "content": "Forty-two."}
    assert (choice["reasoning"].strip(), choice["content"]) == ("hm, well", "Forty-two.")
    assert choice["finish_reason"] == "stop"


def test_a_thought_that_the_prompt_has_begun(program: ModuleType) -> None:
    choice, told = chat(program, R1, "hm</think>A1")
    assert (choice["reasoning"].strip(), choice["content"]) == ("hm", "A1")
    assert told == {"reasoning": choice["reasoning"], "content": "A1"}


def test_thoughts_are_left_out_if_nobody_wants_them(program: ModuleType) -> None:
    choice, told = chat(program, QWEN, "<think>\nhm\n</think>\n\nA1", include_reasoning=False)
    assert (choice["reasoning"], choice["content"], told) == ("", "A1", {"content": "A1"})


def test_calls_stand_among_text_and_thoughts(program: ModuleType) -> None:
    choice, told = chat(program, QWEN, f"<think>\nadd\n</think>\n\nLet me see.\n{CALL}\n{CALL}", tools=ADD)
    assert [call["function"] for call in choice["tool_calls"]] == [{"name": "add", "arguments": '{"a": 1}'}] * 2
    assert choice["content"].strip() == "Let me see."
    assert told["content"] == choice["content"]
    assert choice["finish_reason"] == "tool_calls"
    single, _ = chat(program, QWEN, f"{CALL}\n{CALL}", tools=ADD, parallel_tool_calls=False)
    assert len(single["tool_calls"]) == 1


def test_a_stop_text_is_in_no_part_of_the_reply(program: ModuleType) -> None:
    choice, told = chat(program, QWEN, "<think>\nhm\n</think>\n\nOne two three", stop=["two th"])
    assert (choice["content"], choice["stop_reason"], choice["finish_reason"]) == ("One", "two th", "stop")
    assert told["content"] == "One"


def test_a_reply_that_is_cut_is_told_as_far_as_it_came(program: ModuleType) -> None:
    choice, told = chat(program, QWEN, "<think>\nhm hm hm hm\n</think>\n\nA1", max_tokens=15)
    assert (choice["finish_reason"], choice["content"]) == ("length", "")
    assert "hm hm" in choice["reasoning"]
    assert told.get("content", "") == ""


@pytest.mark.parametrize("forced", ["add", "*"])
def test_a_forced_call_that_a_stop_text_cuts_is_told_as_text(program: ModuleType, forced: str) -> None:
    out = program.Out(SimpleNamespace(forced=forced, stream=False, most_calls=1), 0)
    out.finish(SimpleNamespace(finish_reason="stop", text='{"a": 1, ', stopped_by='"b"'))
    assert (out.calls, out.content) == ([], '{"a": 1, ')


def test_a_long_reply_is_not_taken_apart_for_each_token(program: ModuleType) -> None:
    class Counting(FamilyHost):
        num_parsed = 0

        def chat_parse(self, model: str, text: str, is_over: bool) -> str:
            self.num_parsed += len(text)
            return super().chat_parse(model, text, is_over)

    reply = "<think>\nhm\n</think>\n\n" + "word " * 200
    host = Counting(QWEN, reply)
    asked = {"messages": [{"role": "user", "content": "Q"}], "temperature": 0, "stream": True, "max_tokens": 10_000}
    (choice,) = run(program, host, asked)["choices"]
    assert choice["content"].strip() == ("word " * 200).strip()
    assert host.num_parsed < 100 * len(reply)  # at each token it would be half the square
