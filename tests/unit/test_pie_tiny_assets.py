"""The model folder pieray/assets/pie-tiny keeps what its card and its makers promise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer

from tools.train_pie_tiny import grammar, tasks
from tools.train_pie_tiny.batches import encode
from tools.train_pie_tiny.toolloop import answer_of, use_tool
from tools.train_pie_tiny.words import END, PAD, RECALL_KEYS, SPECIAL_TOKENS, is_held_out

FOLDER = Path(__file__).resolve().parents[2] / "pieray" / "assets" / "pie-tiny"
MAX_BYTES = 8_000_000
EVERY_TASK = [*tasks.SCORED, *tasks.BONUS]

UNICODE = [
    "",
    " ",
    "plain ASCII, 1234567890",
    "  two  spaces\tand\ttabs\r\nand lines\n\n",
    "naïve façade, Ærøskøbing, Łódź, straße",
    "e\u0301 is not \u00e9",
    "漢字かな交じり文、中文字符。한국어",
    "السلام عليكم ١٢٣",
    "שלום \u202eright to left\u202c",
    "हिन्दी ४५६ ไทย",
    "👩‍🚀🏳️‍🌈👍🏽",
    "½ Ⅷ ② ∑ √",
    "\x00\x01\x07\x1b\x7f\x85",
    "\ufeff\u200b\u2028\ufffd\U0010ffff",
    '{"name": "O\'Neil", "n": -1.5e3}',
]


def read(file: str) -> dict:
    return json.loads(FOLDER.joinpath(file).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def chat_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


def test_folder_stays_under_eight_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MAX_BYTES


def test_config_is_a_small_tied_llama():
    config = read("config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"] is True
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["max_position_embeddings"] >= 512


@pytest.mark.slow
def test_special_ids_agree_in_every_file(tokenizer, chat_tokenizer):
    config, generation = read("config.json"), read("generation_config.json")
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    ends = {config["eos_token_id"], generation["eos_token_id"], chat_tokenizer.eos_token_id, tokenizer.token_to_id(END)}
    pads = {config["pad_token_id"], generation["pad_token_id"], chat_tokenizer.pad_token_id, tokenizer.token_to_id(PAD)}
    assert (len(ends), len(pads)) == (1, 1)
    assert chat_tokenizer.bos_token_id is None
    assert config["bos_token_id"] is None


@pytest.mark.slow
@pytest.mark.parametrize("text", UNICODE)
def test_text_round_trips(tokenizer, chat_tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert chat_tokenizer.decode(chat_tokenizer(text).input_ids) == text


def test_digits_and_recall_keys_are_single_tokens(tokenizer):
    assert tokenizer.encode("1234").tokens == ["1", "2", "3", "4"]
    assert all(len(tokenizer.encode(key).ids) == 1 for key in RECALL_KEYS)


@pytest.mark.slow
def test_chat_template_renders_the_training_format(chat_tokenizer):
    item = tasks.held_out("tool_call", 1)[0]
    prompt, call, result, reply = (segment.text for segment in item.segments)
    question = prompt.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>")
    answered = result.removeprefix("<|tool|>").removesuffix("<|end|><|assistant|>")
    function = json.loads(call.removesuffix(END))
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": answered},
    ]

    def render(until: int) -> str:
        return chat_tokenizer.apply_chat_template(messages[:until], tokenize=False, add_generation_prompt=True)

    assert render(1) == prompt
    assert render(3) == prompt + call + result
    written = {"role": "assistant", "content": call.removesuffix(END)}
    final = {"role": "assistant", "content": reply.removesuffix(END)}
    whole = chat_tokenizer.apply_chat_template([messages[0], written, messages[2], final], tokenize=False)
    assert whole == prompt + call + result + reply


@pytest.mark.slow
def test_chat_template_renders_a_system_message_and_refuses_an_unknown_role(chat_tokenizer):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    rendered = chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    with pytest.raises(TemplateError, match="unknown role judge"):
        chat_tokenizer.apply_chat_template([{"role": "judge", "content": ""}], tokenize=False)


@pytest.mark.parametrize("task", EVERY_TASK)
def test_segments_encode_as_the_whole_text_does(tokenizer, task):
    for item in tasks.held_out(task, 20):
        whole = tokenizer.encode("".join(segment.text for segment in item.segments)).ids
        assert encode(tokenizer, item.segments).ids == whole


@pytest.mark.parametrize("task", EVERY_TASK)
def test_held_out_items_repeat_with_their_seed(task):
    assert tasks.held_out(task, 5, seed=3) == tasks.held_out(task, 5, seed=3)
    assert tasks.held_out(task, 5, seed=3) != tasks.held_out(task, 5, seed=4)
    assert all(item.segments[-1].is_model_output for item in tasks.held_out(task, 5))


def test_sums_are_held_out_in_either_order():
    for item in tasks.held_out("plain_add", 50):
        first, second = map(int, re.findall(r"\d+", item.segments[0].text))
        assert is_held_out("pair", min(first, second), max(first, second))


def test_an_unknown_task_names_those_there_are():
    with pytest.raises(ValueError, match=r"unknown task 'sing'.*add2"):
        tasks.held_out("sing", 1)


def test_grammar_checks_agreement():
    assert all(grammar.parses("".join(s.text for s in i.segments)[: -len(END)]) for i in tasks.held_out("grammar", 50))
    assert grammar.parses("the small cat sees two dogs near a tree.")
    assert not grammar.parses("the small cat see two dogs.")
    assert not grammar.parses("the small cat sees two dogs")


def test_tool_loop_runs_only_what_was_written():
    assert use_tool("Thought: x\nAction: calc(12+7)\nObservation:", ()) == "19"
    assert use_tool("Action: lookup(Belo)\nObservation:", (("Belo", 4),)) == "4"
    assert use_tool("Action: calc(12+7\nObservation:", ()) == "error"
    assert use_tool("Action: calc(__import__)\n", ()) == "error"
    assert answer_of("Observation: 3\nAnswer: 3<|end|>") == "3"
    assert answer_of("Thought: I should") == ""


def test_card_states_a_score_for_every_task():
    rows = dict(
        re.findall(r"^\| (\w+) \| .* \| ([01]\.\d+) \|$", FOLDER.joinpath("README.md").read_text(), re.MULTILINE)
    )
    assert set(rows) == {*EVERY_TASK, "tool_loop"}
