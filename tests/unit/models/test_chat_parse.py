"""Replies taken apart: by each format, at every prefix, broken ones too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.assets import model_folder
from pieray.models.chat_parse import MAX_BLOCKS, format_name, parse_reply
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

QWEN = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for tool_call in message.tool_calls or [] %}
{{- '<tool_call>\\n{\\"name\\": \\"' + tool_call.name + '\\", \\"arguments\\": ' }}
{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
QWEN3 = QWEN + "{# message.content.split('</think>') #}"
THINKING = QWEN.replace("<|im_start|>assistant\\n", "<|im_start|>assistant\\n<think>\\n")
MISTRAL = """{%- for message in messages %}{%- if message.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- endif %}
{{- message.content }}{%- endfor %}"""
LLAMA = """{%- for message in messages %}{{- '<|start_header_id|>' + message.role }}{{- message.content }}
{%- if message.tool_calls %}{{- '{"name": "' + message.tool_calls[0].name + '", ' }}{{- '"parameters": ' }}{%- endif %}
{%- endfor %}"""
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
PIE_TINY = TokenizerSpec.from_folder(model_folder("pie-tiny")).chat_template

CALL = {
    "name": "weather",
    "arguments": {"city": 'Bane "x"</tool_call>', "days": [1, 2.5, None, True], "deep": {"a": {}}},
}
WRITTEN = json.dumps(CALL)
PARAMETERS = WRITTEN.replace('"arguments"', '"parameters"')


def parts(template: str | None, text: str) -> tuple[str, str, list[dict[str, Any]], bool]:
    reply = json.loads(parse_reply(template, text).to_json())
    return reply["content"], reply["reasoning"], reply["tool_calls"], reply["is_complete"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (QWEN, "hermes"),
        (QWEN3, "hermes"),
        (MISTRAL, "mistral"),
        (LLAMA, "llama"),
        (PIE_TINY, "json"),
        (PLAIN, "plain"),
        (None, "plain"),
    ],
)
def test_the_format_is_told_from_the_template(template: str | None, name: str) -> None:
    assert format_name(template) == name


GOOD = [
    (QWEN, f"<tool_call>\n{WRITTEN}\n</tool_call>", "", "", [CALL]),
    (
        QWEN,
        f"Let me see.\n<tool_call>{WRITTEN}</tool_call>\n<tool_call>\n{WRITTEN}\n</tool_call>",
        "Let me see.",
        "",
        [CALL, CALL],
    ),
    (
        QWEN3,
        f"<think>\nHm <tool_call>\n</think>\n\nYes.<tool_call>{WRITTEN}</tool_call>",
        "Yes.",
        "Hm <tool_call>",
        [CALL],
    ),
    (THINKING, "I think.\n</think>\n\nThe answer", "The answer", "I think.", []),
    (THINKING, "<think>I think.</think>The answer", "The answer", "I think.", []),
    (MISTRAL, f"[TOOL_CALLS] [{WRITTEN}, {WRITTEN}]", "", "", [CALL, CALL]),
    (MISTRAL, f"[TOOL_CALLS]weather[ARGS]{json.dumps(CALL['arguments'])}", "", "", [CALL]),
    (LLAMA, PARAMETERS, "", "", [CALL]),
    (LLAMA, f"<|python_tag|>{PARAMETERS}; {PARAMETERS}", "", "", [CALL, CALL]),
    (PIE_TINY, WRITTEN, "", "", [CALL]),
    (PIE_TINY, json.dumps({"name": "f", "arguments": "{}"}), "", "", [{"name": "f", "arguments": {}}]),
]


@pytest.mark.parametrize(("template", "text", "content", "reasoning", "calls"), GOOD)
def test_calls_thoughts_and_content_are_told_apart(
    template: str, text: str, content: str, reasoning: str, calls: list[Any]
) -> None:
    assert parts(template, text) == (content, reasoning, calls, True)


@pytest.mark.parametrize(
    "text",
    ["12 < 13", 'He said {"name": 1}', "a\n b ", "{not json}", '{"answer": 3}', "[1, 2]", "", "<", "{", "\ud83d"],
)
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert parts(PLAIN, text) == (text, "", [], True)
    if text != "{":
        assert parts(PIE_TINY, text) == (text, "", [], True)


@pytest.mark.parametrize(("template", "text", "content", "reasoning", "calls"), GOOD)
def test_a_reply_that_is_cut_within_a_call_or_thought_is_not_complete(
    template: str, text: str, content: str, reasoning: str, calls: list[Any]
) -> None:
    seen: list[Any] = []
    for end in range(len(text) + 1):
        found_content, _, found, is_complete = parts(template, text[:end])
        assert found[: len(seen)] == seen, "a completed call changed"
        seen = found
        if end < len(text) and calls:
            assert '"name"' not in found_content, "an unfinished call is no content"
            assert is_complete or len(found) <= len(calls)
    assert seen == calls
    if calls:
        assert parts(template, text[:-1])[2:] == (calls[:-1], False) or template in (LLAMA, MISTRAL, PIE_TINY)
    if reasoning:
        assert parts(template, text[: text.index("</think>") + 4]) == ("", reasoning, [], False)


BROKEN = [
    '{"name": "f"',
    '{"name": }',
    "nonsense",
    '{"name": 3, "arguments": {}}',
    '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": {"x": NaN}}',
    '{"name": "f", "arguments": {"x": 1e999}}',
    "[" * 100_000,
    '{"name": "f", "arguments": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
]


@pytest.mark.parametrize("broken", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_call_becomes_content_and_the_next_one_counts(broken: str) -> None:
    text = f"a <tool_call>{broken}</tool_call> b <tool_call>{WRITTEN}</tool_call>"
    if broken == '{"name": "f"':  # `<` cannot follow: the call has ended, broken
        assert parts(QWEN, text)[2] == [CALL]
        return
    content, _, calls, is_complete = parts(QWEN, text)
    assert (content, calls, is_complete) == (f"a <tool_call>{broken}</tool_call> b", [CALL], True)


def test_the_number_of_calls_is_bounded() -> None:
    text = f"<tool_call>{WRITTEN}</tool_call>" * (MAX_BLOCKS + 1)
    content, _, calls, _ = parts(QWEN, text)
    assert len(calls) == MAX_BLOCKS
    assert content == f"<tool_call>{WRITTEN}</tool_call>"


PIECES = st.lists(
    st.sampled_from(
        [
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "<|python_tag|>",
            WRITTEN,
            PARAMETERS,
            "[",
            "]",
            "{",
            "}",
            '"',
            "\\",
            ",",
            ";",
            " ",
            "\n",
            "<",
            "weather",
            '{"name": "',
            '"arguments": ',
        ]
    )
    | st.text(max_size=5),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("template", [LLAMA, PIE_TINY])
def test_bare_json_is_not_complete_before_its_end(template: str) -> None:
    written = PARAMETERS if template == LLAMA else WRITTEN
    for end in range(1, len(written)):
        assert parts(template, written[:end]) == ("", "", [], False)


@settings(max_examples=examples(50))
@given(PIECES, st.sampled_from([QWEN, QWEN3, THINKING, MISTRAL, LLAMA, PIE_TINY, PLAIN, None]))
def test_every_prefix_of_anything_parses_and_completed_calls_never_change(text: str, template: str | None) -> None:
    seen: list[Any] = []
    for end in range(len(text) + 1):
        _, _, calls, _ = parts(template, text[:end])
        assert calls[: len(seen)] == seen
        seen = calls


def test_what_a_template_renders_is_parsed_back() -> None:
    tokenizer = Tokenizer(TokenizerSpec(b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}', QWEN))
    tools = [{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": {}}}]
    asked = [{"role": "user", "content": "And tomorrow?"}]
    prompt = tokenizer.render_chat(asked, tools=tools)
    assert json.dumps(tools[0]) in prompt
    said = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}
    whole = tokenizer.render_chat([*asked, said], tools=tools, add_generation_prompt=False)
    assert whole.startswith(prompt)
    assert parts(QWEN, whole[len(prompt) :].removesuffix("<|im_end|>\n")) == ("Let me see.", "", [CALL], True)
