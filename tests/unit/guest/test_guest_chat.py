"""Conversations in the ways of model families: each turn goes on from the last reply, whatever a template rewrites.

The templates have the traits of the families' own, in short; tokens are characters, and the special ones.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from fake_host import FakeHost
from guest_install import install

from inferlet import Context, InvalidRequest, Unsupported, tool
from pieray.models.chat import json_object, json_objects, render_chat
from pieray.models.chat_parse import parse_reply


@tool
def add(a: int, b: int) -> int:
    """Adds"""
    return a + b


class FamilyHost(FakeHost):
    """A host whose model has a chat template, special tokens, and those that end a turn."""

    def __init__(self, template: str, special: str, stops: str, bos: str = "") -> None:
        super().__init__()
        self.template, self.special, self.stops, self.bos = template, special.split(), stops.split(), bos

    def model_info(self, model: str) -> str:
        return json.dumps({**json.loads(super().model_info(model)), "bos_tokens": self.model_tokenize("", self.bos)})

    def model_tokenize(self, model: str, text: str) -> list[int]:
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        return [token for part in parts for token in (
            [0x110000 + self.special.index(part)] if part in self.special else map(ord, part))]  # fmt: skip

    def model_detokenize(self, model: str, tokens: Any, skip_special: bool) -> str:
        return "".join([chr(t) if t < 0x110000 else "" if skip_special else self.special[t - 0x110000] for t in tokens])

    def model_stop_tokens(self, model: str) -> list[int]:
        return [token for stop in self.stops for token in self.model_tokenize("", stop)]

    def chat_render(
        self, model: str, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
    ) -> str:
        names = {"bos_token": "<s>", "eos_token": "</s>", **(json_object("arguments", arguments) if arguments else {})}
        return render_chat(self.template, json_objects("messages", messages, ""), names=names, now=now,
                           tools=json_objects("tools", tools, "") if tools else None,
                           add_generation_prompt=add_generation_prompt)  # fmt: skip

    def chat_parse(self, model: str, text: str, is_over: bool) -> str:
        return parse_reply(self.template, text, is_over=is_over).to_json()


QWEN = """{%- if tools %}{{- '<|im_start|>tools: ' + tools[0].function.name + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>' + m.content + '</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + (m.content or '').split('</think>')[-1].lstrip() }}
{%- for c in m.tool_calls or [] %}{{- '\\n<tool_call>\\n{"name": "' + c.function.name + '", "arguments": ' }}
{{- c.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{% endif %}"""
CHATML = ("<|im_start|> <|im_end|> <|endoftext|>", "<|im_end|> <|endoftext|>")
TWO = [{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "add", "arguments": {"a": 3, "b": 4}}]
WRITTEN = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in TWO)


def test_qwen_has_results_in_one_block_and_thoughts_stay() -> None:
    install(FamilyHost(QWEN, *CHATML))
    ctx = Context(tools=[add]).system("S").user("Q1").cue()
    ctx.append(f"<think>\nadd\n</think>\n\n{WRITTEN}<|im_end|>")
    ctx.tool("3", name="add").tool("7", name="add").cue().append("<think>\nwell\n</think>\n\nA1<|im_end|>")
    ctx.user("Q2").cue().append("A2")  # cut before its end
    ctx.user("Q3").cue()
    assert ctx.text == (
        "<|im_start|>tools: add<|im_end|>\n<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nadd\n</think>\n\n{WRITTEN}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>3</tool_response>\n<tool_response>7</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nwell\n</think>\n\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n"
        "<|im_start|>user\nQ3<|im_end|>\n<|im_start|>assistant\n"
    )
    ctx.close()


def test_template_arguments_reach_the_template() -> None:
    install(FamilyHost(QWEN, *CHATML))
    ctx = Context(template={"enable_thinking": False}).user("Q").cue()
    assert ctx.text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ctx.append("A<|im_end|>")
    assert ctx.fork().user("R").cue().text == ctx.text + (
        "\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


R1 = """{{- bos_token }}{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<User>' + m.content }}
{%- elif m.role == 'tool' %}{{- '<output>' + m.content + '</output>' }}
{%- else %}{%- for c in m.tool_calls or [] %}{{- '<Assistant><call>' + c.function.name + c.function.arguments }}
{{- '</call></s>' }}{% endfor %}
{%- if m.content is not none %}{{- '<Assistant>' + m.content.split('</think>')[-1] + '</s>' }}{% endif %}{% endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<Assistant><think>\\n' }}{% endif %}{# <tool_call> #}"""


def test_a_prompt_that_opens_the_thought_and_arguments_as_text() -> None:
    install(FamilyHost(R1, "<User> <Assistant> <s> </s>", "</s>"))
    ctx = Context().user("Q1").cue().append("Let me think.</think>A1</s>").user("Q2").cue()
    assert ctx.text == "<s><User>Q1<Assistant><think>\nLet me think.</think>A1</s><User>Q2<Assistant><think>\n"
    ctx.append(f"Hm.</think><tool_call>{json.dumps(TWO[0])}</tool_call></s>").tool("3").cue()
    assert ctx.text.endswith("</tool_call></s><output>3</output><Assistant><think>\n")
    ctx.close()


LLAMA = """{{- bos_token }}{%- if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}
{%- set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}
{{- '<|system|>' + 'Today: ' + strftime_now('%d %b %Y %H:%M:%S') + '\\n' + said + '<|eot_id|>' }}
{%- if tools %}
{%- if not messages %}{{- raise_exception('no first user message') }}{% endif %}
{{- '<|user|>' + tools[0].function.name + ' or: {"name": .., "parameters": ..}\\n' + messages[0].content }}
{{- '<|eot_id|>' }}
{%- set messages = messages[1:] %}{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}{{- '<|ipython|>' + m.content + '<|eot_id|>' }}
{%- elif 'tool_calls' in m %}
{%- if m.tool_calls | length != 1 %}{{- raise_exception('single tool-calls only') }}{% endif %}
{%- set c = m.tool_calls[0].function %}
{{- '<|assistant|>{"name": "' + c.name + '", "parameters": ' }}{{- c.arguments | tojson }}{{- '}<|eot_id|>' }}
{%- else %}{{- '<|' + m.role + '|>' + m.content + '<|eot_id|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""
LLAMA_TOKENS = ("<|user|> <|assistant|> <|system|> <|ipython|> <|eot_id|> <|eom_id|> <|python_tag|> <s>",
                "<|eot_id|> <|eom_id|>")  # fmt: skip


def test_llama_shows_tools_with_the_first_question_takes_one_call_and_tells_one_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(FamilyHost(LLAMA, *LLAMA_TOKENS))
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    ctx = Context(tools=[add]).system("S")
    monkeypatch.setattr("time.time", lambda: 1_700_086_400.5)  # a day later
    assert ctx.text == "", "the template does not take it alone"
    ctx.user("Q1").cue()
    opening = ctx.text
    assert re.fullmatch(
        r"<s><\|system\|>Today: 1[45] Nov 2023 [\d:]{8}\nS<\|eot_id\|><\|user\|>add or: \{.*\}\nQ1<\|eot_id\|>"
        r"<\|assistant\|>", opening)  # fmt: skip
    calls = "; ".join(json.dumps({"name": "add", "parameters": call["arguments"]}) for call in TWO)
    ctx.append(f"<|python_tag|>{calls}<|eom_id|>")
    ctx.tool_results(["3", "7"]).cue().append("A1<|eot_id|>")
    ctx.user("Q2").cue()
    assert ctx.text == opening + (
        f"<|python_tag|>{calls}<|eom_id|><|ipython|>3<|eot_id|><|ipython|>7<|eot_id|><|assistant|>A1<|eot_id|>"
        "<|user|>Q2<|eot_id|><|assistant|>"
    )
    ctx.close()


MISTRAL = """{{- bos_token }}{%- set last = messages | selectattr('role', 'equalto', 'user') | list | last %}
{%- set ns = namespace(turn=0) %}
{%- for m in messages %}{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) %}{{- raise_exception('roles must alternate') }}{% endif %}
{%- set ns.turn = ns.turn + 1 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{%- if tools and m == last %}{{- '[AVAILABLE_TOOLS] add[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}
{%- for c in m.tool_calls %}
{%- if c.id | length != 9 %}{{- raise_exception('ids have nine characters') }}{% endif %}
{{- '{"name": "' + c.function.name + '", "arguments": ' }}{{- c.function.arguments | tojson }}
{{- ', "id": "' + c.id + '"}' }}{%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content + eos_token }}
{%- else %}
{%- if m.tool_call_id | length != 9 %}{{- raise_exception('results name their call') }}{% endif %}
{{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}{% endif %}
{%- endfor %}"""
MISTRAL_TOKENS = ("[INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [AVAILABLE_TOOLS] <s> </s>", "</s>")


@pytest.mark.parametrize("given", [None, "abc123DEF"])
def test_mistral_wants_ids_and_turns(given: str | None) -> None:
    install(FamilyHost(MISTRAL, *MISTRAL_TOKENS))
    ctx = Context(tools=[add]).user("Q1").cue()
    calls = [{**call, **({"id": f"{given[:-1]}{place}"} if given else {})} for place, call in enumerate(TWO)]
    ctx.append(f"[TOOL_CALLS] {json.dumps(calls)}</s>")
    ids = [call.get("id", f"call001{place:02d}") for place, call in enumerate(calls)]
    ctx.tool_results(["3", "7"]).cue().append(" A1</s>")
    ctx.user("Q2")
    assert ctx.text == (
        f"<s>[AVAILABLE_TOOLS] add[/AVAILABLE_TOOLS][INST] Q1[/INST][TOOL_CALLS] {json.dumps(calls)}</s>"
        f'[TOOL_RESULTS] {{"content": 3, "call_id": "{ids[0]}"}}[/TOOL_RESULTS]'
        f'[TOOL_RESULTS] {{"content": 7, "call_id": "{ids[1]}"}}[/TOOL_RESULTS] A1</s>'
        "[AVAILABLE_TOOLS] add[/AVAILABLE_TOOLS][INST] Q2[/INST]"
    )
    with pytest.raises(InvalidRequest, match="must alternate"):
        ctx.user("Q3")
    ctx.close()


GEMMA = """{{- bos_token }}{%- set prefix = '' %}
{%- if messages[0].role == 'system' %}{% set prefix = messages[0].content + '\\n\\n' %}
{%- set messages = messages[1:] %}{% endif %}
{%- if tools %}{% set prefix = prefix + 'a python list of calls: add\\n' %}{% endif %}
{%- for m in messages %}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' }}
{%- if loop.first %}{{- prefix }}{% endif %}
{%- if 'tool_calls' in m %}{{- '[' }}{%- for c in m.tool_calls %}{{- c.function.name + '(' }}
{%- for key, value in c.function.arguments.items() %}{{- key + '=' }}{{- value | tojson }}
{%- if not loop.last %}{{- ', ' }}{% endif %}{% endfor %}{{- ')' }}{%- if not loop.last %}{{- ', ' }}{% endif %}
{%- endfor %}{{- ']' }}{% endif %}
{%- if m.content is string %}{{- m.content | trim }}{% else %}{{- raise_exception('Invalid content type') }}{% endif %}
{{- '<end_of_turn>\\n' }}{% endfor %}{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""


def test_gemma_writes_calls_as_python_and_the_system_message_with_the_first_question() -> None:
    install(FamilyHost(GEMMA, "<start_of_turn> <end_of_turn> <s> <eos>", "<end_of_turn> <eos>"))
    ctx = Context(tools=[add]).system("S").user("Q1").cue()
    ctx.append("[add(a=1, b=2), add(a=3, b=4)]<end_of_turn>").tool_results(["3", "7"]).cue()
    assert ctx.text == (
        "<s><start_of_turn>user\nS\n\na python list of calls: add\nQ1<end_of_turn>\n<start_of_turn>model\n"
        "[add(a=1, b=2), add(a=3, b=4)]<end_of_turn>\n<start_of_turn>user\n3<end_of_turn>\n"
        "<start_of_turn>user\n7<end_of_turn>\n<start_of_turn>model\n"
    )
    ctx.close()


def test_messages_that_a_template_writes_otherwise_with_the_next_one_are_written_again() -> None:
    install(FamilyHost(GEMMA, "<start_of_turn> <end_of_turn> <s> <eos>", "<end_of_turn> <eos>"))
    ctx = Context().system("S")
    assert ctx.text == "<s>"
    assert ctx.user("Q").text == "<s><start_of_turn>user\nS\n\nQ<end_of_turn>\n"
    ctx.truncate(1)
    assert ctx.user("R").text == "<s><start_of_turn>user\nS\n\nR<end_of_turn>\n"
    ctx.close()


def test_a_text_between_results_that_belong_together_is_told() -> None:
    install(FamilyHost(QWEN, *CHATML))
    ctx = Context().user("Q").cue().append(f"{WRITTEN}<|im_end|>").tool("3").append("noise")
    with pytest.raises(Unsupported, match="tool_results"):
        ctx.tool("7")
    ctx.close()


def test_parts_of_a_content_are_one_text() -> None:
    install(FamilyHost(QWEN, *CHATML))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Context().user(parts).text == "<|im_start|>user\nab<|im_end|>\n"
    with pytest.raises(InvalidRequest, match="given one of type 'image'"):
        Context().user([{"type": "image"}])


@pytest.mark.parametrize(("text", "bos", "begins"), [("hello", True, "<s>hello"), ("hello", False, "hello"),
                                                     ("<s>hello", True, "<s>hello")])  # fmt: skip
def test_plain_text_begins_as_the_tokenizer_has_it(text: str, bos: bool, begins: str) -> None:
    install(FamilyHost(LLAMA, *LLAMA_TOKENS, bos="<s>"))
    ctx = Context(text, bos=bos)
    assert ctx.text == begins
    assert ctx.append("x").fork().append("y").text == f"{begins}xy"
    assert Context([65, 66], bos=bos).text == "AB"
    assert Context(bos=bos).user("Q").text.startswith("<s><|system|>")


def test_a_reply_that_says_the_mark_is_told_from_it() -> None:
    install(FamilyHost(QWEN, *CHATML))
    ctx = Context().user("REPLY0ENDS").cue().append("REPLY1ENDS<|im_end|>").user("REPLY2ENDS")
    assert ctx.text.endswith("REPLY1ENDS<|im_end|>\n<|im_start|>user\nREPLY2ENDS<|im_end|>\n")


def test_a_conversation_survives_truncation_into_a_reply() -> None:
    install(FamilyHost(QWEN, *CHATML))
    ctx = Context().user("Q1").cue()
    place = ctx.position
    ctx.append("long answer<|im_end|>").user("Q2").cue().append("A2")
    ctx.truncate(place + 4)
    assert ctx.user("Q3").text == (
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nlong<|im_end|>\n<|im_start|>user\nQ3<|im_end|>\n"
    )
