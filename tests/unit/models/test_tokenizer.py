"""The tokenizer: round trips, streams, chat templates, and what a light process imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from pieray.assets import model_folder
from pieray.errors import InvalidRequest, ModelError
from pieray.models.tokenizer import Tokenizer, TokenizerSpec

TEXT = "Hello, wörld! 你好 🙂 naïve x = [1, 2]\n"
CHATML = """{%- if tools %}{{- "<tools>" + (tools | tojson) + "</tools>\n" }}{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'bad' %}{{ raise_exception('no such role') }}{%- endif %}
    {%- if m.role == 'assistant' %}{% generation %}{{- '<a>' + m.content + eos_token }}{% endgeneration %}
    {%- else %}{{- '<u>' + m.content | trim + bos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<a>' }}{%- endif %}"""
MESSAGES = [
    {"role": "user", "content": " hi ü "},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
]
TOOLS = [
    {"type": "function", "function": {"name": "f", "description": "ä <b>", "parameters": {"x": {"type": "integer"}}}}
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    rust.train_from_iterator([TEXT] * 4, trainer)
    rust.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": CHATML, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_text_survives_the_round_trip(folder: Path) -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.vocab_size == 288  # 256 bytes, 30 merges, 2 special tokens
    assert tokenizer.special_ids() == {"<s>": 0, "</s>": 1}
    assert tokenizer.encode("a</s>")[-1] == 1
    assert tokenizer.decode([1, *tokenizer.encode("a")]) == "a"
    assert tokenizer.decode([1], skip_special_tokens=False) == "</s>"


def test_token_bytes_add_up_to_the_text_even_within_a_character(folder: Path) -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    text = "né🙂 \t\x00ÿ"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert tokenizer.token_bytes(1) == b"</s>"
    assert tokenizer.token_bytes(10**6) == b""


def test_a_stream_holds_back_broken_characters_and_adds_up_to_the_text(folder: Path) -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    ids = tokenizer.encode("né🙂")
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == "né🙂"
    assert all("\ufffd" not in piece for piece in pieces)
    crab = [tokenizer.token_id(char) for char in "ðŁ"]  # the first two bytes of an emoji, in the byte-level alphabet
    stream = tokenizer.stream()
    assert [stream.push(int(token or 0)) for token in crab] == ["", ""]
    assert set(stream.finish()) == {"\ufffd"}
    assert stream.finish() == ""


@pytest.mark.parametrize(
    ("file", "value", "eos"),
    [
        (None, None, (1,)),
        ("config.json", {"eos_token_id": 5}, (5, 1)),
        ("generation_config.json", {"eos_token_id": [7, 8]}, (7, 8, 1)),
        ("chat_template.jinja", "{% for m in messages %}{{ m.content }}\n<s>{% endfor %}", (1, 0)),
        ("chat_template.jinja", "{% for m in messages %}{{ m.content }}.<s>{% endfor %}", (1,)),
        ("chat_template.jinja", "{{ raise_exception('no') }}", (1,)),
    ],
)
def test_eos_ids_are_all_that_the_files_and_the_chat_template_say(
    file: str | None, value: Any, eos: tuple[int, ...], folder: Path
) -> None:
    if file:
        (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": None}))
    assert TokenizerSpec.from_folder(folder).eos_ids == eos


def test_a_template_for_tools_is_used_with_tools_and_tells_how_calls_are_written(folder: Path) -> None:
    given = [{"name": "default", "template": "{{ 'plain' }}"}, {"name": "tool_use", "template": "<tool_call>{{ x }}"}]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": given}))
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    assert tokenizer.render_chat(MESSAGES) == "plain"
    assert tokenizer.render_chat(MESSAGES, tools=TOOLS, arguments={"x": 7}) == "<tool_call>7"
    assert tokenizer.parse_reply('<tool_call>{"name": "f", "arguments": {}}</tool_call>').tool_calls
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("of its own")
    assert Tokenizer(TokenizerSpec.from_folder(folder)).render_chat(MESSAGES, tools=TOOLS) == "of its own"


def test_a_date_is_told_as_it_was(folder: Path) -> None:
    spec = TokenizerSpec.from_folder(folder)
    tokenizer = Tokenizer(TokenizerSpec(spec.json, "{{ strftime_now('%Y-%m') }}"))
    assert tokenizer.render_chat([], now=1_000_000_000) == "2001-09"
    assert tokenizer.render_chat([]) >= "2026"
    with pytest.raises(InvalidRequest, match="refuses"):
        tokenizer.render_chat([], now=1 << 63)


def test_what_the_post_processor_puts_before_a_text(folder: Path) -> None:
    rust = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    assert Tokenizer(TokenizerSpec(rust.to_str().encode())).bos_ids == []
    rust.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A $B", [("<s>", 0), ("</s>", 1)])
    assert Tokenizer(TokenizerSpec(rust.to_str().encode())).bos_ids == [0]


@pytest.mark.slow
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_chat_equals_transformers(tools: Any, add_generation_prompt: bool, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>")
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    want = theirs.apply_chat_template(MESSAGES, chat_template=CHATML, tokenize=False, **options)
    assert Tokenizer(TokenizerSpec.from_folder(folder)).render_chat(MESSAGES, **options) == want


def test_a_template_that_refuses_says_why_and_cannot_leave_the_sandbox(folder: Path) -> None:
    tokenizer = Tokenizer(TokenizerSpec.from_folder(folder))
    with pytest.raises(InvalidRequest, match="no such role"):
        tokenizer.render_chat([{"role": "bad", "content": ""}])
    spec = TokenizerSpec.from_folder(folder)
    hostile = TokenizerSpec(spec.json, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidRequest, match="unsafe"):
        Tokenizer(hostile).render_chat([])
    with pytest.raises(InvalidRequest, match="no chat template"):
        Tokenizer(TokenizerSpec(spec.json)).render_chat([])


def test_a_template_file_wins_and_named_ones_are_found(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert TokenizerSpec.from_folder(folder).chat_template == "d"
    (folder / "chat_template.jinja").write_text("file")
    assert TokenizerSpec.from_folder(folder).chat_template == "file"


def test_errors_name_the_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: no such file"):
        TokenizerSpec.from_folder(tmp_path / "nowhere")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer"):
        TokenizerSpec.from_folder(folder)


def test_light_processes_need_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, pieray.models.tokenizer; print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_of_text_that_is_no_number_names_its_file(name: str, tmp_path: Path) -> None:
    shutil.copy(model_folder("pie-tiny") / "tokenizer.json", tmp_path)
    (tmp_path / name).write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(ModelError, match=f"{name}: eos_token_id is '</s>'; supported: null, a number or a list"):
        TokenizerSpec.from_folder(tmp_path)
