"""Replies taken apart: by each format, at every prefix, broken ones too."""

from __future__ import annotations

import json
from keyword import iskeyword
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.assets import model_folder
from pieray.models.call_formats import FORMATS, format_of
from pieray.models.call_json import MAX_BLOCKS
from pieray.models.chat_parse import parse_reply
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
CODER = QWEN + "{{ '<function=' + name + '>' }}"
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
GEMMA = "{% for message in messages %}<start_of_turn>{{ message.role }}{{ message.content }}{% endfor %}"
PYTHON = GEMMA + "func_name1()"
GRANITE = "{% for message in messages %}{{ message.content }}<|tool_call|>{% endfor %}"
DEEPSEEK = "{% for message in messages %}{{ message.content }}<\uff5ctool\u2581call\u2581begin\uff5c>{% endfor %}"
PIE_TINY = TokenizerSpec.from_folder(model_folder("pie-tiny")).chat_template

CALL = {
    "name": "weather",
    "arguments": {"city": 'Bane "x"</tool_call>', "days": [1, 2.5, None, True], "deep": {"a": {}}},
}
WRITTEN = json.dumps(CALL)
PARAMETERS = WRITTEN.replace('"arguments"', '"parameters"')


def parts(template: str | None, text: str, *, is_over: bool = False) -> tuple[str, str, list[dict[str, Any]], bool]:
    reply = json.loads(parse_reply(template, text, is_over=is_over).to_json())
    return reply["content"], reply["reasoning"], reply["tool_calls"], reply["is_complete"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (QWEN, "hermes"),
        (QWEN3, "hermes"),
        (CODER, "coder"),
        (MISTRAL, "mistral"),
        (LLAMA, "llama"),
        (PIE_TINY, "json"),
        (GEMMA, "gemma"),
        (GRANITE, "granite"),
        (DEEPSEEK, "deepseek"),
        (PLAIN, "plain"),
        (None, "none"),
    ],
)
def test_the_format_is_told_from_the_template(template: str | None, name: str) -> None:
    assert format_of(template).name == name


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


F, G = {"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}
PERSON = '{"name": "Ada", "age": 36}'
F_TEXT = {"name": "f", "arguments": {"x": "1"}}
WAYS = {
    "hermes": (
        QWEN,
        {
            "a person is no call": (f"<tool_call>{PERSON}</tool_call>", f"<tool_call>{PERSON}</tool_call>", []),
            "no arguments": ('<tool_call>{"name": "g"}</tool_call>', "", [G]),
            "null": ('<tool_call>{"name": "g", "arguments": null}</tool_call>', "", [G]),
            "empty text": ('<tool_call>{"name": "g", "arguments": ""}</tool_call>', "", [G]),
            "JSON in a text": ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', "", [F]),
            "as OpenAI has it": (
                '<tool_call>{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\\"x\\": 1}"}}'
                "</tool_call>",
                "",
                [{**F, "id": "c1"}],
            ),
            "text everywhere": (
                f"a <tool_call>{json.dumps(F)}</tool_call> b <tool_call>{json.dumps(G)}</tool_call> c",
                "a  b  c",
                [F, G],
            ),
            "several in a block": (f"<tool_call>{json.dumps(F)}\n{json.dumps(G)}</tool_call>", "", [F, G]),
            "a list in a block": (f"<tool_call>[{json.dumps(F)}, {json.dumps(G)}]</tool_call>", "", [F, G]),
            "a person in a list": (f"<tool_call>[{PERSON}]</tool_call>", f"<tool_call>[{PERSON}]</tool_call>", []),
            "no closing tag between": (f"<tool_call>{json.dumps(F)}<tool_call>{json.dumps(G)}</tool_call>", "", [F, G]),
        },
    ),
    "coder": (
        CODER,
        {
            "one": (
                "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
                "",
                [F_TEXT],
            ),
            "lines": (
                "<tool_call><function=f><parameter=x>\na\n\nb\n</parameter></function></tool_call>",
                "",
                [{"name": "f", "arguments": {"x": "a\n\nb"}}],
            ),
            "none": ("Hm.\n<tool_call>\n<function=g>\n</function>\n</tool_call>", "Hm.", [G]),
            "no outer tag": ("<function=f><parameter=x>1</parameter></function> then", "then", [F_TEXT]),
            "several": (
                "a <tool_call><function=f><parameter=x>1</parameter></function></tool_call> b <tool_call>"
                "<function=g></function></tool_call> c",
                "a  b  c",
                [F_TEXT, G],
            ),
            "a parameter without its end": (
                "<function=h><parameter=x>1<parameter=y>2</parameter></function>",
                "",
                [{"name": "h", "arguments": {"x": "1", "y": "2"}}],
            ),
        },
    ),
    "mistral": (
        MISTRAL,
        {
            "with an id": ('[TOOL_CALLS]f[CALL_ID]abc123DEF[ARGS]{"x": 1}', "", [{**F, "id": "abc123DEF"}]),
            "without ARGS": ('[TOOL_CALLS]f{"x": 1}', "", [F]),
            "several": ('so [TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', "so", [F, G]),
            "ids in a list": (
                '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "abc123DEF"}]',
                "",
                [{**F, "id": "abc123DEF"}],
            ),
            "no list": (f"[TOOL_CALLS]{json.dumps(F)}", "", [F]),
            "a person is no call": (f"[TOOL_CALLS][{PERSON}]", f"{PERSON}]", []),
        },
    ),
    "llama": (
        LLAMA,
        {
            "a person is no call": (PERSON, PERSON, []),
            "a function's name": ('{"type": "function", "function": "f", "parameters": {"x": 1}}', "", [F]),
            "a function without arguments is none": ('{"function": "f"}', '{"function": "f"}', []),
            "the tag anywhere": ('Let me see. <|python_tag|>{"name": "f", "parameters": {"x": 1}}', "Let me see.", [F]),
            "text before and after": (
                'Well:\n{"name": "f", "parameters": {"x": 1}}\nThat was it.',
                "Well:\n\nThat was it.",
                [F],
            ),
            "a list": (f"[{json.dumps(F)}, {json.dumps(G)}]", "", [F, G]),
            "Python": ("[f(x=1), g()]", "", [F, G]),
            "Python's values": (
                "[h(a='it\\'s (', b=[1, -2.5, True, None], c={'k': \"v\"}, d=false)]",
                "",
                [{"name": "h", "arguments": {"a": "it's (", "b": [1, -2.5, True, None], "c": {"k": "v"}, "d": False}}],
            ),
            "Python behind the tag": (
                '<|python_tag|>search.call(query="pie")',
                "",
                [{"name": "search", "arguments": {"query": "pie"}}],
            ),
            "Python, but no call": ("[f(1)]", "[f(1)]", []),
            "Python that is run": ('[f(x=__import__("os").getcwd())]', '[f(x=__import__("os").getcwd())]', []),
            "numbers": ("[1, 2]", "[1, 2]", []),
        },
    ),
}
CALLS, ENDS, BEGIN, END, SEP = (
    f"<\uff5ctool\u2581{words}\uff5c>"
    for words in ("calls\u2581begin", "calls\u2581end", "call\u2581begin", "call\u2581end", "sep")
)
R1_F, R1_G = (
    f"{BEGIN}function{SEP}{name}\n```json\n{arguments}\n```{END}"
    for name, arguments in (("f", '{"x": 1}'), ("g", "{}"))
)
WAYS |= {
    "deepseek": (
        DEEPSEEK,
        {
            "one": (f"{CALLS}{R1_F}{ENDS}", "", [F]),
            "several among text": (f"So: {CALLS}{R1_F}\n{R1_G}{ENDS} Then.", "So:  Then.", [F, G]),
            "without the outer marks": (f"{R1_F}{R1_G}", "", [F, G]),
            "the name first": (f'{CALLS}{BEGIN}f{SEP}{{"x": 1}}{END}{BEGIN}g{SEP}{{}}{END}{ENDS}', "", [F, G]),
            "the mark in a text": (
                f'{BEGIN}function{SEP}f\n```json\n{{"x": "{END}"}}\n```{END}',
                "",
                [{"name": "f", "arguments": {"x": END}}],
            ),
            "no JSON": (f"{BEGIN}function{SEP}f\nx = 1{END} a", f"{BEGIN}function{SEP}f\nx = 1{END} a", []),
            "no name": (f"{BEGIN}{SEP}{{}}{END}{R1_G}", f"{BEGIN}{SEP}{{}}{END}", [G]),
            "a list of arguments": (f"{BEGIN}f{SEP}[1]{END}", f"{BEGIN}f{SEP}[1]{END}", []),
        },
    ),
    "granite": (
        GRANITE,
        {
            "a list": (f"<|tool_call|>[{json.dumps(F)}, {json.dumps(G)}]", "", [F, G]),
            "with its end, behind text": (f"So <|tool_call|> [{json.dumps(F)}]<|/tool_call|>", "So", [F]),
            "parameters": ('<|tool_call|>[{"name": "f", "parameters": {"x": 1}}]<|/tool_call|>', "", [F]),
            "no list": (f"<|tool_call|>{json.dumps(F)}<|tool_call|>{json.dumps(G)}", "", [F, G]),
            "a person is no call": (f"<|tool_call|>[{PERSON}]", f"{PERSON}]", []),
        },
    ),
    "gemma": (
        GEMMA,
        {
            "Python": ("[f(x=1), g()]", "", [F, G]),
            "fenced": ("```tool_code\n[f(x=1), g()]\n```", "", [F, G]),
            "fenced, without a list": ("```tool_code\nf(x=1)\ng()\n```\n", "", [F, G]),
            "JSON": (f"```json\n[{json.dumps(F)}, {json.dumps(G)}]\n```", "", [F, G]),
            "objects": (f"{json.dumps(F)}\n{json.dumps(G)}", "", [F, G]),
            "in tags": (f"So <tool_call>{json.dumps(F)}</tool_call>", "So", [F]),
            "code further down is none": ("See:\n[f(x=1)]\n", "See:\n[f(x=1)]\n", []),
            "code that is fenced is none": ("```python\nf(x=1)\n```", "```python\nf(x=1)\n```", []),
            "JSON that is no call": ('```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', []),
            "a person is no call": (PERSON, PERSON, []),
            "numbers": ("[1, 2]", "[1, 2]", []),
        },
    ),
    "plain": (
        PLAIN,
        {
            "in tags": (
                f"So <tool_call>{json.dumps(F)}</tool_call>\n<tool_call>\n{json.dumps(G)}\n</tool_call>",
                "So",
                [F, G],
            ),
            "JSON is none": (json.dumps(F), json.dumps(F), []),
            "Python is none": ("[f(x=1)]", "[f(x=1)]", []),
        },
    ),
}
CASES = [
    pytest.param(template, *case, id=f"{way}: {name}")
    for way, (template, cases) in WAYS.items()
    for name, case in cases.items()
]


@pytest.mark.parametrize(("template", "text", "content", "calls"), CASES)
def test_ways_in_which_models_write_calls(template: str, text: str, content: str, calls: list[Any]) -> None:
    for is_over in (False, True):
        assert parts(template, text, is_over=is_over) == (content, "", calls, True)
    seen: list[Any] = []
    for end in range(len(text) + 1):
        found = parts(template, text[:end])[2]
        assert found[: len(seen)] == seen, "a completed call changed"
        seen = found
    assert seen == calls


@pytest.mark.parametrize(
    ("template", "text", "calls"),
    [
        (QWEN, f"<tool_call>{json.dumps(F)}", [F]),
        (QWEN, f"<tool_call>{json.dumps(G)}</tool_call><tool_call>\n{json.dumps(F)}\n</tool", [G, F]),
        (CODER, "<tool_call><function=f><parameter=x>1</parameter>", [F_TEXT]),
        (MISTRAL, f"[TOOL_CALLS][{json.dumps(F)}", [F]),
        (GRANITE, f"<|tool_call|>[{json.dumps(F)}", [F]),
        (DEEPSEEK, f"{CALLS}{R1_F.removesuffix(END)}", [F]),
        (DEEPSEEK, f"{CALLS}{R1_G}{R1_F[:-3]}", [G, F]),
        (DEEPSEEK, f'{BEGIN}f{SEP}{{"x": 1}}', [F]),
    ],
)
def test_a_last_call_without_its_closing_tag_counts_once_the_reply_is_over(
    template: str, text: str, calls: list[Any]
) -> None:
    assert parts(template, text)[3] is False
    content, _, found, _ = parts(template, text, is_over=True)
    assert (content, found) == ("", calls)


@pytest.mark.parametrize("text", ["a <", "a <tool", "1 <t"])
def test_half_a_tag_is_content_once_the_reply_is_over(text: str) -> None:
    assert parts(QWEN, text, is_over=True) == (text, "", [], True)


def test_a_call_that_is_cut_is_none_when_the_reply_is_over() -> None:
    assert parts(QWEN, 'a <tool_call>{"name": "f", "arg', is_over=True) == ("a", "", [], False)


def test_thoughts_without_a_tag() -> None:
    assert parts(QWEN3, "So it is.</think>\n19") == ("19", "So it is.", [], True)
    assert parts(QWEN3, f"So.</think><tool_call>{json.dumps(F)}</tool_call>") == ("", "So.", [F], True)
    assert parts(THINKING, "I was thi", is_over=True) == ("", "I was thi", [], False)
    assert parts(QWEN3, "<think>I was thi</th", is_over=True) == ("", "I was thi</th", [], False)


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
            "[CALL_ID]",
            "<function=f>",
            "<parameter=x>",
            "</parameter>",
            "</function>",
            "[f(x=1)]",
            "```json\n",
            "```tool_code\n",
            "```",
            "<|tool_call|>",
            "<|/tool_call|>",
            *(CALLS, ENDS, BEGIN, END, SEP, R1_G),
            "f(",
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
@given(
    PIECES,
    st.sampled_from([QWEN, QWEN3, THINKING, CODER, MISTRAL, LLAMA, PIE_TINY, GEMMA, GRANITE, DEEPSEEK, PLAIN, None]),
)
def test_every_prefix_of_anything_parses_and_completed_calls_never_change(text: str, template: str | None) -> None:
    seen: list[Any] = []
    for end in range(len(text) + 1):
        _, _, calls, _ = parts(template, text[:end])
        assert calls[: len(seen)] == seen
        seen = calls
        assert parts(template, text[:end], is_over=True)[2][: len(seen)] == seen


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


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,6}", fullmatch=True).filter(lambda name: not iskeyword(name))
WRITABLE = st.lists(
    st.fixed_dictionaries({"name": NAMES, "arguments": st.dictionaries(NAMES, VALUES, max_size=3)}),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("template", [QWEN, MISTRAL, LLAMA, PIE_TINY, GEMMA, GRANITE, DEEPSEEK, PLAIN, PYTHON])
@settings(max_examples=examples(20))
@given(calls=WRITABLE)
def test_calls_are_read_as_they_are_written(template: str, calls: list[Any]) -> None:
    text = format_of(template).write(calls)
    assert parts(template, text, is_over=True) == ("", "", calls, True)
    assert parts(template, text) == ("", "", calls, True)


def test_each_format_has_a_way_to_be_written() -> None:
    assert [one.name for one in FORMATS if not one.write([F, G])] == []
    assert parts(CODER, format_of(CODER).write([F_TEXT, G]), is_over=True) == ("", "", [F_TEXT, G], True)
