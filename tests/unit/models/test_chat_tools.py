"""Tools for templates that know of none: told in text, and only there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pieray.errors import InvalidRequest
from pieray.models.chat import reads_name, render_chat
from pieray.models.chat_tools import render_with_tools
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

TOOL = {"type": "function", "function": {"name": "sum", "description": "Añade", "parameters": {"type": "object"}}}
ASKED = [{"role": "user", "content": "Q"}]
TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
SHOWS = "{% if tools %}{{ tools | length }} tools {% endif %}" + TURNS
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
CALL = {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": {"a": 1}}}


def told(template: str, messages: Any = ASKED, **options: Any) -> str:
    return render_with_tools(template, messages, [TOOL], **options)


@pytest.mark.parametrize(
    ("template", "name", "reads"),
    [
        (SHOWS, "tools", True),
        (TURNS, "tools", False),
        (TURNS + "{# tools #}{{ 'tools' }}{{ m.tools }}", "tools", False),
        ("{% set tools = none %}" + TURNS, "tools", False),
        ("{% if tools is defined %}{% endif %}", "tools", True),
        ("{% macro f() %}{{ tools }}{% endmacro %}{% generation %}{% endgeneration %}", "tools", True),
        ("{% broken", "tools", True),
    ],
)
def test_whether_a_template_reads_its_tools(template: str, name: str, reads: bool) -> None:
    assert reads_name(template, name) is reads


def test_a_template_that_reads_tools_is_left_alone() -> None:
    assert told(SHOWS) == render_chat(SHOWS, ASKED, tools=[TOOL]) == "1 tools [user]Q"
    assert render_with_tools(TURNS, ASKED) == render_with_tools(TURNS, ASKED, []) == "[user]Q"


@pytest.mark.parametrize(("template", "place"), [(TURNS, "[system]"), (NO_SYSTEM, "[user]"), (DROPS_SYSTEM, "[user]")])
def test_tools_are_told_where_the_template_shows_them(template: str, place: str) -> None:
    text = told(template)
    assert text.startswith(f"{place}You may call tools.")
    assert f"\n{json.dumps(TOOL, ensure_ascii=False)}\n" in text
    assert text.endswith("\n\nQ" if place == "[user]" else "[user]Q")
    assert text.count("You may call tools.") == 1


def test_tools_are_told_behind_a_system_message() -> None:
    text = told(TURNS, [{"role": "system", "content": "Be kind."}, *ASKED])
    assert text.startswith("[system]Be kind.\n\nYou may call tools.")
    assert text.endswith("[user]Q")
    assert told(TURNS, [{"role": "system", "content": None}, *ASKED]) == told(TURNS)


@pytest.mark.parametrize(
    ("mark", "example"),
    [
        ("", '<tool_call>\n{"name": "one_tool", "arguments": {"parameter": "value"}}\n</tool_call>'),
        ("[TOOL_CALLS]", '[TOOL_CALLS] [{"name": "one_tool", "arguments": {"parameter": "value"}}, '),
        ("<|python_tag|>", '{"name": "one_tool", "parameters": {"parameter": "value"}}; '),
        ("<start_of_turn>", "[one_tool(parameter='value'), another_tool(parameter='value')]"),
    ],
)
def test_the_model_is_told_to_write_calls_as_its_replies_are_read(mark: str, example: str) -> None:
    assert f"\n{example}" in told(TURNS + "{# " + mark + " #}")


def test_calls_and_results_are_shown_as_text() -> None:
    flat = {"id": "c2", "name": "sum", "arguments": '{"a": 2}'}
    turns = [
        *ASKED,
        {"role": "assistant", "content": "So:", "tool_calls": [CALL, flat]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "7"}]},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "R"},
        {"role": "user", "content": "S"},
    ]
    text = told(TURNS, turns)
    assert text[text.index("[user]Q") :] == (
        '[user]Q[assistant]So:\n<tool_call>\n{"name": "sum", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
        '{"name": "sum", "arguments": {"a": 2}}\n</tool_call>[user]<tool_response>\n3\n</tool_response>\n'
        "<tool_response>\n7\n</tool_response>[assistant]A[user]R[user]S"
    )


def test_a_template_that_shows_calls_itself_shows_them() -> None:
    shows = TURNS + "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.name }}{% endfor %}"
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    text = told(shows, [*ASKED, called, {"role": "tool", "content": "1"}])
    assert text.endswith("[user]Q[assistant][tool]1sum")


@pytest.mark.parametrize("calls", [[3], [{}], [{"function": "x"}], [{"function": {"name": 3}}], "x"])
def test_calls_that_are_none_are_refused(calls: Any) -> None:
    with pytest.raises(InvalidRequest, match="tool_calls are"):
        told(TURNS, [*ASKED, {"role": "assistant", "content": "", "tool_calls": calls}])


def test_without_a_question_there_is_nowhere_to_tell_them() -> None:
    with pytest.raises(InvalidRequest, match="there is none yet"):
        told(NO_SYSTEM, [{"role": "assistant", "content": "A"}])


def test_the_template_for_tools_is_asked_first() -> None:
    json_of = b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}'
    tokenizer = Tokenizer(TokenizerSpec(json_of, TURNS, tool_template=SHOWS))
    assert tokenizer.render_chat(ASKED, tools=[TOOL]) == "1 tools [user]Q"
    assert "You may call tools" in Tokenizer(TokenizerSpec(json_of, TURNS)).render_chat(ASKED, tools=[TOOL])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content | dictsort }}",
        "{{ 'a'.join(3) }}",
        "{{ [1, 2] | sort(attribute='x') | first.y }}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ 'a' * 3 % 2 }}",
        "{{ {}['a'].b }}",
        "{{ 1 // 0 }}",
    ],
)
def test_whatever_a_template_throws_is_a_refusal(template: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template refuses these messages"):
        render_chat(template, ASKED)
