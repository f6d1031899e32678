"""Text of tokens as they come: what the whole says, whatever the tokens, wherever a stream begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from pieray.assets import model_folder
from pieray.models.detokenizer import Pieces
from pieray.models.tokenizer import Tokenizer, TokenizerSpec
from tests.support.byte_fallback import byte_fallback_json


def byte_level() -> TokenizerSpec:
    return TokenizerSpec.from_folder(Path(model_folder("pie-tiny")))


def word_piece() -> TokenizerSpec:
    pieces = ["[UNK]", "[CLS]", "hel", "##lo", "world", "##s", ",", "é"]
    rust = tokenizers.Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    rust.add_special_tokens(["[CLS]", "[UNK]"])
    return TokenizerSpec(rust.to_str().encode())


SPECS = {
    "byte level": byte_level(),
    "byte fallback": TokenizerSpec(byte_fallback_json()),
    "no strip": TokenizerSpec(byte_fallback_json(strip=False)),
    "metaspace": TokenizerSpec(byte_fallback_json(metaspace=True)),
}
TOKENIZERS = {name: Tokenizer(spec) for name, spec in SPECS.items()}
FALLBACK = TOKENIZERS["byte fallback"]


def byte(value: int) -> int:
    """The number of `<0x..>` in the byte-fallback vocabulary."""
    return 3 + value


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_any_tokens_pushed_in_any_parts_say_what_all_of_them_say(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=24))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=3)))
    for skip in (True, False):
        whole, said, stream = tokenizer.decode(tokens, skip), "", tokenizer.stream(skip)
        for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
            stream = tokenizer.stream(skip)
            stream.prime(tokens[:start])
            said += "".join(map(stream.push, tokens[start:end]))
        assert said + stream.finish() == whole


@given(data=st.data())
def test_a_byte_level_text_is_what_tokenizers_makes_of_it(data: st.DataObject) -> None:
    rust = tokenizers.Tokenizer.from_str(SPECS["byte level"].json.decode())
    tokens = data.draw(st.lists(st.integers(0, rust.get_vocab_size() + 3), max_size=24))
    for skip in (True, False):
        assert TOKENIZERS["byte level"].decode(tokens, skip) == rust.decode(tokens, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["byte fallback", "no strip", "metaspace"])
@given(text=st.text(alphabet="ab the ing 1.\u00e9\u4f60\U0001f642", max_size=12))
def test_a_text_with_bytes_to_fall_back_on_is_what_tokenizers_makes_of_it(name: str, text: str) -> None:
    rust = tokenizers.Tokenizer.from_str(SPECS[name].json.decode())
    tokens = rust.encode(text).ids
    if name == "metaspace":  # it has no bytes to fall back on
        tokens = [token for token in tokens if token >= 259]
    assert TOKENIZERS[name].decode(tokens) == rust.decode(tokens)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([byte(0x61), byte(0xE2), FALLBACK.token_id("b")], "a\ufffdb"),  # a run is cut, and a normal token follows
        ([byte(0xE2), byte(0x82)], "\ufffd"),
        ([byte(0xE2), byte(0xE2), byte(0x82), byte(0xAC)], "\ufffd\u20ac"),
        ([byte(0xFF), byte(0xFF)], "\ufffd\ufffd"),
        ([byte(0xE2), 2, byte(0x82), byte(0xAC)], "\u20ac"),  # what is skipped is as if it were not there
    ],
)
def test_bytes_that_are_no_character_are_said_once(tokens: list[int], text: str) -> None:
    stream = FALLBACK.stream()
    assert "".join(map(stream.push, tokens)) + stream.finish() == text == FALLBACK.decode(tokens)


def test_a_text_goes_on_with_its_blank_and_begins_without() -> None:
    the = FALLBACK.token_id("\u2581the")
    assert the is not None
    first, later = FALLBACK.stream(), FALLBACK.stream()
    later.prime([1, the])
    assert (first.push(the), later.push(the)) == ("the", " the")
    only_special = FALLBACK.stream()
    only_special.prime([1])
    assert only_special.push(the) == "the"


def test_halves_of_a_character_in_two_streams_make_one() -> None:
    one, two = FALLBACK.stream(), FALLBACK.stream()
    assert one.push(byte(0xE4)) == ""
    assert one.push(byte(0xBD)) == ""
    two.prime([byte(0xE4), byte(0xBD)])
    assert two.push(byte(0xA0)) == "\u4f60"


@given(st.lists(st.integers(0, 9), max_size=20))
def test_a_tokenizer_without_bytes_streams_what_it_says(tokens: list[int]) -> None:
    tokenizer = Tokenizer(word_piece())
    stream = tokenizer.stream()
    assert "".join(map(stream.push, tokens)) + stream.finish() == tokenizer.decode(tokens)
    assert not tokenizer._pieces.is_sum


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "CTC"},
        {"type": "BPEDecoder"},
        {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        {
            "type": "Sequence",
            "decoders": [{"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}, {"type": "Fuse"}],
        },
    ],
)
def test_decoders_that_look_at_more_than_one_token_are_asked(decoder: object) -> None:
    spec = json.loads(byte_fallback_json())
    tokenizer = Tokenizer(TokenizerSpec(json.dumps(spec).encode()))

    assert not Pieces(tokenizer._tokenizer, decoder).is_sum
