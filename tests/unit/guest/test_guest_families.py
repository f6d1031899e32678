"""A conversation with tools in each family's way: its text, turn by turn, is what the template makes of the whole."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chat_families import DEEPSEEK, FAMILIES, GEMMA2, GEMMA3, LLAMA3, MARKS, PLAIN, Family, FamilyHost
from guest_install import install

from inferlet import Context, InvalidRequest, tool
from inferlet.tools import run_tools
from pieray.models.chat_parse import parse_reply


@tool
def add(a: int, b: int) -> int:
    """Adds"""
    return a + b


class Talk:
    """A context, and all that has been said in it as messages."""

    def __init__(self, family: Family, *, system: bool) -> None:
        install(FamilyHost(family))
        self.family = family
        self.ctx = Context(tools=[add])
        self.messages: list[dict[str, Any]] = []
        if system:
            self.ctx.system("Be kind.")
            self.messages.append({"role": "system", "content": "Be kind."})

    def whole(self, *, cue: bool = True, messages: Any = None) -> str:
        return self.family.render(messages or self.messages, [add.spec], cue=cue, now=self.ctx._setting.now)

    def ask(self, text: str) -> None:
        self.ctx.user(text).cue()
        self.messages.append({"role": "user", "content": text})

    def reply(self, **message: Any) -> str:
        """The model says this, as the template would write it; the text, without its stop token."""
        message = {"role": "assistant", **message}
        prompt = self.whole()
        said = self.whole(cue=False, messages=[*self.messages, message])
        assert said.startswith(prompt)
        ends = [(at, stop) for stop in self.family.stops.split() if (at := said.find(stop, len(prompt))) >= 0]
        at, stop = min(ends)
        self.ctx.append(said[len(prompt) : at] + stop)
        self.messages.append(message)
        return said[len(prompt) : at]

    def answer(self, results: list[str], calls: list[dict[str, Any]]) -> None:
        self.ctx.tool_results(results).cue()
        self.messages += [
            {"role": "tool", "content": text, "tool_call_id": call["id"], "name": "add"}
            for text, call in zip(results, calls, strict=True)
        ]


def calls_of(family: Family, count: int, number: int) -> list[dict[str, Any]]:
    """As OpenAI has them, in the shape that the family's template takes."""
    calls = [
        {
            "id": f"call{number:03d}{at:02d}",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": at, "b": 2}},
        }
        for at in range(count)
    ]
    if family is DEEPSEEK:
        return [
            {**one, "function": {"name": "add", "arguments": f'{{"a": {at}, "b": 2}}'}} for at, one in enumerate(calls)
        ]
    return calls


MOVING = {"MISTRAL", "R1"}  # the tools go to the last question; made for one call (see test_guest_chat)
THINKING = {"DEEPSEEK"}


TALKS = [
    (name, system)
    for name in sorted(FAMILIES.keys() - MOVING - THINKING)
    for system in (True, False)
    if (name, system) not in (("GEMMA2", True), ("PHI4", False))
]
"""Gemma 2's takes no system message; Phi 4's shows tools in there alone."""


@pytest.mark.parametrize(("name", "system"), TALKS)
def test_a_conversation_with_tools_is_what_its_template_makes_of_the_whole(name: str, system: bool) -> None:
    family = FAMILIES[name]
    talk = Talk(family, system=system)
    talk.ask("Q1")
    for turn in range(2):
        assert talk.ctx.text == talk.whole()
        calls = calls_of(family, family.max_calls, len(talk.messages))
        text = talk.reply(content="", tool_calls=calls)
        found = parse_reply(family.template, text, is_over=True)
        assert [call["arguments"] for call in found.tool_calls] == [{"a": at, "b": 2} for at in range(family.max_calls)]
        assert (found.content, found.is_complete) == ("", True)
        assert parse_reply(family.template, text).tool_calls == found.tool_calls
        talk.answer(["3", "7"][: len(calls)], calls)
        assert talk.ctx.text == talk.whole()
        assert talk.reply(content=f"A{turn}") == f"A{turn}"
        talk.ask(f"Q{turn + 2}")
    assert talk.ctx.text == talk.whole()
    talk.ctx.close()


def test_deepseeks_marks_behind_a_thought_and_tools_that_its_template_does_not_show() -> None:
    talk = Talk(DEEPSEEK, system=True)
    talk.ask("Q1")
    prompt = talk.ctx.text
    assert prompt.startswith("<s>Be kind.\n\nYou may call tools.")
    assert '{"type": "function", "function": {"name": "add"' in prompt
    assert prompt.endswith(f"{MARKS['User']}Q1{MARKS['Assistant']}<think>\n")
    begin, end, sep = MARKS["tool call begin"], MARKS["tool call end"], MARKS["tool sep"]
    each = [f'{begin}function{sep}add\n```json\n{{"a": {at}, "b": 2}}\n```{end}' for at in (1, 5)]
    said = f"Add them.\n</think>\n\n{MARKS['tool calls begin']}{chr(10).join(each)}{MARKS['tool calls end']}"
    assert [call["arguments"]["a"] for call in parse_reply(DEEPSEEK.template, said).tool_calls] == [1, 5]
    stop = MARKS["end of sentence"]
    talk.ctx.append(said + stop).tool_results(["3", "7"]).cue().append("So.</think>A1" + stop).user("Q2").cue()
    results = "".join([MARKS["tool output begin"] + text + MARKS["tool output end"] for text in "37"])
    assert talk.ctx.text == (
        f"{prompt}{said}{stop}{MARKS['tool outputs begin']}{results}{MARKS['tool outputs end']}{MARKS['Assistant']}"
        f"<think>\nSo.</think>A1{stop}{MARKS['User']}Q2{MARKS['Assistant']}<think>\n"
    )


def test_gemma_2_is_told_its_tools_with_the_first_question_and_the_results_as_one() -> None:
    talk = Talk(GEMMA2, system=False)
    talk.ask("Q1")
    assert talk.ctx.text.startswith("<s><start_of_turn>user\nYou may call tools.")
    assert "\n[one_tool(parameter='value'), another_tool(parameter='value')]\n" in talk.ctx.text
    assert talk.ctx.text.endswith("\n\nQ1<end_of_turn>\n<start_of_turn>model\n")
    prompt, said = talk.ctx.text, "[add(a=1, b=2), add(a=5, b=2)]<end_of_turn>"
    talk.ctx.append(said).tool("3").tool("7").user("And now?").cue()
    assert talk.ctx.text == (
        f"{prompt}{said}\n<start_of_turn>user\n<tool_response>\n3\n</tool_response>\n<tool_response>\n7\n"
        "</tool_response>\n\nAnd now?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_a_template_without_tools_and_system_messages_waits_for_the_first_question() -> None:
    talk = Talk(GEMMA2, system=False)
    with pytest.raises(InvalidRequest, match="the tools are told with the first question"):
        talk.ctx.assistant("A")
    talk.ask("Q")
    assert talk.ctx.text.endswith("\n\nQ<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize("family", [GEMMA3, LLAMA3, PLAIN], ids=["gemma 3", "llama 3", "chatml"])
def test_parts_of_a_system_message_and_tools_told_behind_it(family: Family) -> None:
    install(FamilyHost(family))
    ctx = Context(tools=[add]).system([{"type": "text", "text": "Be kind."}]).user("Q")
    assert "Be kind." in ctx.text
    plain = Context().system([{"type": "text", "text": "Be kind."}]).user("Q")
    assert "tools" not in plain.text
    if family is not GEMMA3:  # which looks at the first part alone
        assert "Be kind.\n\nYou may call tools." in ctx.text


@pytest.mark.parametrize("family", [GEMMA2, GEMMA3, LLAMA3, PLAIN], ids=["gemma 2", "gemma 3", "llama 3", "chatml"])
def test_run_tools_where_the_template_shows_none(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(family, system=False)
    talk.ask("Q1")
    stop = family.stops.split()[0]
    calls = calls_of(family, 2, 1)
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    written = talk.whole(cue=False, messages=[*talk.messages, message])[len(talk.whole()) :].split(stop)[0]
    replies = iter([written, "It is 2 and 3."])
    host = FamilyHost(family)

    class Said:
        finish_reason = "stop"
        text = ""

        def __init__(self, ctx: Context) -> None:
            self.tokens = host.model_tokenize("", next(replies))
            ctx.cue().append([*self.tokens, *host.model_tokenize("", stop)])

        def __await__(self) -> Any:
            yield from ()
            return ""

    monkeypatch.setattr(Context, "generate", lambda ctx, *_, **__: Said(ctx))
    answer = asyncio.run(run_tools(talk.ctx, [add]))
    assert (answer.text, [step.results for step in answer.steps]) == ("It is 2 and 3.", [["2", "3"]])
