"""Conversations in the ways of model families: each turn goes on from the last reply, whatever a template rewrites.

The templates are those of `chat_families`; tokens are characters, and the special ones.
"""

from __future__ import annotations

import json
import re

import pytest
from chat_families import GEMMA, LLAMA, MISTRAL, QWEN, R1, FamilyHost
from guest_install import install

from inferlet import Context, InvalidRequest, Unsupported, tool


@tool
def add(a: int, b: int) -> int:
    """Adds"""
    return a + b


TWO = [{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "add", "arguments": {"a": 3, "b": 4}}]
WRITTEN = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in TWO)


def test_qwen_has_results_in_one_block_and_thoughts_stay() -> None:
    install(FamilyHost(QWEN))
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
    install(FamilyHost(QWEN))
    ctx = Context(template={"enable_thinking": False}).user("Q").cue()
    assert ctx.text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ctx.append("A<|im_end|>")
    assert ctx.fork().user("R").cue().text == ctx.text + (
        "\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_a_prompt_that_opens_the_thought_and_arguments_as_text() -> None:
    install(FamilyHost(R1))
    ctx = Context().user("Q1").cue().append("Let me think.</think>A1</s>").user("Q2").cue()
    assert ctx.text == "<s><User>Q1<Assistant><think>\nLet me think.</think>A1</s><User>Q2<Assistant><think>\n"
    ctx.append(f"Hm.</think><tool_call>{json.dumps(TWO[0])}</tool_call></s>").tool("3").cue()
    assert ctx.text.endswith("</tool_call></s><output>3</output><Assistant><think>\n")
    ctx.close()


def test_llama_shows_tools_with_the_first_question_takes_one_call_and_tells_one_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(FamilyHost(LLAMA))
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.5)
    ctx = Context(tools=[add]).system("S")
    monkeypatch.setattr("time.time", lambda: 1_700_086_400.5)  # a day later
    assert ctx.text == "", "the template does not take it alone"
    ctx.user("Q1").cue()
    opening = ctx.text
    assert re.fullmatch(
        r"<s><\|system\|>Today: 1[45] Nov 2023 [\d:]{8}\nS<\|eot_id\|><\|user\|>add or: \{.*\}\nQ1<\|eot_id\|>"
        r"<\|assistant\|>",
        opening,
    )
    calls = "; ".join(json.dumps({"name": "add", "parameters": call["arguments"]}) for call in TWO)
    ctx.append(f"<|python_tag|>{calls}<|eom_id|>")
    ctx.tool_results(["3", "7"]).cue().append("A1<|eot_id|>")
    ctx.user("Q2").cue()
    assert ctx.text == opening + (
        f"<|python_tag|>{calls}<|eom_id|><|ipython|>3<|eot_id|><|ipython|>7<|eot_id|><|assistant|>A1<|eot_id|>"
        "<|user|>Q2<|eot_id|><|assistant|>"
    )
    ctx.close()


@pytest.mark.parametrize("given", [None, "abc123DEF"])
def test_mistral_wants_ids_and_turns(given: str | None) -> None:
    install(FamilyHost(MISTRAL))
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


def test_gemma_writes_calls_as_python_and_the_system_message_with_the_first_question() -> None:
    install(FamilyHost(GEMMA))
    ctx = Context(tools=[add]).system("S").user("Q1").cue()
    ctx.append("[add(a=1, b=2), add(a=3, b=4)]<end_of_turn>").tool_results(["3", "7"]).cue()
    assert ctx.text == (
        "<s><start_of_turn>user\nS\n\na python list of calls: add\nQ1<end_of_turn>\n<start_of_turn>model\n"
        "[add(a=1, b=2), add(a=3, b=4)]<end_of_turn>\n<start_of_turn>user\n3<end_of_turn>\n"
        "<start_of_turn>user\n7<end_of_turn>\n<start_of_turn>model\n"
    )
    ctx.close()


def test_messages_that_a_template_writes_otherwise_with_the_next_one_are_written_again() -> None:
    install(FamilyHost(GEMMA))
    ctx = Context().system("S")
    assert ctx.text == "<s>"
    assert ctx.user("Q").text == "<s><start_of_turn>user\nS\n\nQ<end_of_turn>\n"
    ctx.truncate(1)
    assert ctx.user("R").text == "<s><start_of_turn>user\nS\n\nR<end_of_turn>\n"
    ctx.close()


def test_a_text_between_results_that_belong_together_is_told() -> None:
    install(FamilyHost(QWEN))
    ctx = Context().user("Q").cue().append(f"{WRITTEN}<|im_end|>").tool("3").append("noise")
    with pytest.raises(Unsupported, match="tool_results"):
        ctx.tool("7")
    ctx.close()


def test_parts_of_a_content_are_one_text() -> None:
    install(FamilyHost(QWEN))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Context().user(parts).text == "<|im_start|>user\nab<|im_end|>\n"
    with pytest.raises(InvalidRequest, match="given one of type 'image'"):
        Context().user([{"type": "image"}])


@pytest.mark.parametrize(
    ("text", "bos", "begins"), [("hello", True, "<s>hello"), ("hello", False, "hello"), ("<s>hello", True, "<s>hello")]
)
def test_plain_text_begins_as_the_tokenizer_has_it(text: str, bos: bool, begins: str) -> None:
    install(FamilyHost(LLAMA, bos="<s>"))
    ctx = Context(text, bos=bos)
    assert ctx.text == begins
    assert ctx.append("x").fork().append("y").text == f"{begins}xy"
    assert Context([65, 66], bos=bos).text == "AB"
    assert Context(bos=bos).user("Q").text.startswith("<s><|system|>")


def test_a_reply_that_says_the_mark_is_told_from_it() -> None:
    install(FamilyHost(QWEN))
    ctx = Context().user("REPLY0ENDS").cue().append("REPLY1ENDS<|im_end|>").user("REPLY2ENDS")
    assert ctx.text.endswith("REPLY1ENDS<|im_end|>\n<|im_start|>user\nREPLY2ENDS<|im_end|>\n")


def test_a_conversation_survives_truncation_into_a_reply() -> None:
    install(FamilyHost(QWEN))
    ctx = Context().user("Q1").cue()
    place = ctx.position
    ctx.append("long answer<|im_end|>").user("Q2").cue().append("A2")
    ctx.truncate(place + 4)
    assert ctx.user("Q3").text == (
        "<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nlong<|im_end|>\n<|im_start|>user\nQ3<|im_end|>\n"
    )
