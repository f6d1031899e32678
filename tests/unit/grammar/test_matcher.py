"""A matcher's state: what it takes in, forgets, forks; by its masks."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples
from sampling import END, SPEC, TOKENIZER, VOCAB, allowed, draw, text_of

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.grammar import GrammarCompiler, Matcher

COMPILER = GrammarCompiler(SPEC, VOCAB)
SCHEMA = json.dumps(
    {
        "type": "object",
        "required": ["name", "tags"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"enum": ["red", "blue"]}},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        },
    }
)
GRAMMARS = [("json-schema", SCHEMA), ("regex", "(ab|a)(bc|c){1,4}[0-9]*"), ("lark", 'start: "(" start? ")" | /[a-z]+/')]


def new(kind: str, text: str) -> Matcher:
    return COMPILER.compile(kind, text).matcher()


def tokens_of(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def test_only_what_the_expression_allows_is_in_the_mask() -> None:
    matcher = new("regex", "[0-9]{2}x")
    digits = {TOKENIZER.encode(str(digit))[0] for digit in range(10)}
    assert set(allowed(matcher)) == digits
    assert matcher.accept([*tokens_of("12x"), END]) == 4
    assert matcher.is_complete


def test_accept_counts_and_the_rest_changes_nothing() -> None:
    matcher = new("regex", "[0-9]{2}x")
    before = matcher.mask_bytes()
    assert matcher.accept(tokens_of("1y2")) == 1
    assert matcher.consumed == tokens_of("1")
    matcher.rollback(1)
    assert matcher.mask_bytes() == before


def test_a_stop_token_may_come_where_the_text_may_end() -> None:
    matcher = new("regex", "[0-9]{1,2}")
    assert END not in allowed(matcher)
    assert matcher.accept([END]) == 0
    matcher.accept(tokens_of("1"))
    assert END in allowed(matcher)
    matcher.accept(tokens_of("2"))
    assert allowed(matcher) == [END]
    assert matcher.accept([END, *tokens_of("3")]) == 1
    assert allowed(matcher) == [END]
    matcher.rollback(2)
    assert matcher.accept(tokens_of("7")) == 1


def test_several_stop_tokens_all_get_their_bit() -> None:
    spec = type(SPEC)(SPEC.json, SPEC.chat_template, (1, 5), SPEC.special_tokens)
    matcher = GrammarCompiler(spec, VOCAB).compile("regex", "a").matcher(tokens_of("a"))
    assert allowed(matcher) == [1, 5]


@pytest.mark.parametrize("vocab", [VOCAB - 3, VOCAB, VOCAB + 1, VOCAB + 64])
def test_masks_have_the_bits_of_the_models_vocabulary(vocab: int) -> None:
    matcher = GrammarCompiler(SPEC, vocab).compile("lark", "start: /(.|\\n)*/").matcher()
    mask = matcher.mask_bytes()
    assert len(mask) == -(-vocab // 8)
    assert max(allowed(matcher)) < min(vocab, VOCAB)
    assert matcher.accept([vocab]) == 0
    assert matcher.accept([2**32 - 1]) == 0


def test_special_tokens_never_stand_for_text() -> None:
    matcher = new("regex", "[ -~]+")
    assert set(allowed(matcher)).isdisjoint(TOKENIZER.special_ids().values())


def test_forced_tokens_are_the_only_ones_and_are_accepted() -> None:
    matcher = new("json-schema", json.dumps({"const": "hello world"}))
    forced = matcher.forced()
    assert text_of(forced) == '"hello world"'
    assert matcher.accept(forced) == len(forced)
    assert matcher.forced() == []
    assert matcher.accept([END]) == 1
    assert matcher.forced() == []


def test_whitespace_in_json_is_bounded_and_a_schema_may_forbid_it() -> None:
    schema = {"type": "array", "items": {"type": "null"}}
    spaces = tokens_of(" ") * 40
    assert new("json-schema", json.dumps(schema)).accept([*tokens_of("["), *spaces]) == 1 + 32
    strict = json.dumps(schema | {"x-guidance": {"whitespace_flexible": False, "item_separator": ", "}})
    assert new("json-schema", strict).accept([*tokens_of("["), *spaces]) == 1
    assert new("json-schema", strict).accept(tokens_of("[null, null]")) == len(tokens_of("[null, null]"))


def test_rollback_knows_its_range() -> None:
    matcher = new("regex", "[0-9]+")
    matcher.accept(tokens_of("12"))
    for count in (3, -1):
        with pytest.raises(InvalidRequest, match=f"from 0 to 2 tokens, those taken in; given {count}"):
            matcher.rollback(count)
    assert matcher.consumed == tokens_of("12")


def test_tokens_that_the_grammar_does_not_allow_cannot_be_replayed() -> None:
    with pytest.raises(InvalidRequest, match=f"does not allow token {tokens_of('x')[0]}, number 1 of"):
        COMPILER.compile("regex", "[0-9]+").matcher(tokens_of("1x"))


@settings(max_examples=examples(60))
@given(st.sampled_from(GRAMMARS), st.integers(0, 2**32), st.lists(st.integers(0, 12), max_size=8))
def test_rollback_undoes_accept(grammar: tuple[str, str], seed: int, lengths: list[int]) -> None:
    """Random walks: the mask after rollback is the mask before, and a replay of `consumed` gives it too."""
    rng, matcher = Random(seed), new(*grammar)
    for length in lengths:
        before, consumed = matcher.mask_bytes(), list(matcher.consumed)
        complete, count = matcher.is_complete, 0
        for _ in range(length):
            count += matcher.accept([rng.choice(allowed(matcher))])
        assert count == length
        assert COMPILER.compile(*grammar).matcher(matcher.consumed).mask_bytes() == matcher.mask_bytes()
        if rng.random() < 0.7:
            matcher.rollback(count)
            assert (matcher.mask_bytes(), matcher.consumed, matcher.is_complete) == (before, consumed, complete)


@settings(max_examples=examples(40))
@given(st.sampled_from(GRAMMARS), st.integers(0, 2**32))
def test_forks_go_their_own_ways(grammar: tuple[str, str], seed: int) -> None:
    rng, matcher = Random(seed), new(*grammar)
    for _ in range(rng.randint(0, 6)):
        matcher.accept([rng.choice(allowed(matcher))])
    before, consumed = matcher.mask_bytes(), list(matcher.consumed)
    fork = matcher.fork()
    for _ in range(5):
        fork.accept([rng.choice(allowed(fork))])
    assert (matcher.mask_bytes(), matcher.consumed) == (before, consumed)
    assert COMPILER.compile(*grammar).matcher(fork.consumed).mask_bytes() == fork.mask_bytes()
    fork.rollback(5)
    assert fork.mask_bytes() == before


@settings(max_examples=examples(30))
@given(st.sampled_from(GRAMMARS), st.integers(0, 2**32))
def test_the_mask_says_what_accept_takes(grammar: tuple[str, str], seed: int) -> None:
    rng, matcher = Random(seed), new(*grammar)
    for _ in range(rng.randint(0, 10)):
        matcher.accept([rng.choice(allowed(matcher))])
    choices, forced = set(allowed(matcher)), matcher.forced()
    taken = {token for token in range(VOCAB) if matcher.fork().accept([token]) == 1}
    if forced:  # the mask has the canonical token alone; shorter ones with the same bytes are taken as well
        assert choices == {forced[0]} <= taken
        whole = text_of(forced).encode()
        assert all(whole.startswith(TOKENIZER.token_bytes(token)) or not forced[1:] for token in taken)
    else:
        assert choices == taken


def test_a_limit_of_the_compiler_ends_the_matcher_not_the_process() -> None:
    """The lexer of this expression has a state for each set of places where an `a` was."""
    compiler = GrammarCompiler(SPEC, VOCAB)
    matcher, rng = compiler.compile("regex", "(.*a.{20}){3}z").matcher(), Random(0)

    def walk() -> None:
        while True:
            matcher.accept([rng.choice(allowed(matcher))])

    with pytest.raises(QuotaExceeded, match="too complex to go on: .*too many states"):
        walk()
    with pytest.raises(QuotaExceeded):
        matcher.fork()
    again = compiler.compile("regex", "(.*a.{20}){3}z")
    assert allowed(again.matcher()), "the cache compiles it anew"


def test_matchers_of_one_grammar_run_on_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def run(seed: int) -> list[int]:
        return draw(new("json-schema", SCHEMA), Random(seed), most=2000)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(16)))
    assert together == [run(seed) for seed in range(16)]
    assert np.mean([len(tokens) for tokens in together]) > 5


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "nullable": True}, "nullable": {"type": "boolean"}},
    "required": ["x", "nullable"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "nullable": True}, ['"a"', "null"], ["1"]),
        ({"type": "string", "nullable": False}, ['"a"'], ["null"]),
        ({"enum": ["a"], "nullable": True}, ['"a"', "null"], ['"b"']),
        (POINT, ['{"x": null, "nullable": true}', '{"x": 1, "nullable": false}'], ['{"x": 1, "nullable": null}']),
        (
            {"$defs": {"p": POINT}, "type": "array", "items": {"$ref": "#/$defs/p"}, "nullable": True},
            ["null", '[{"x": null, "nullable": true}]'],
            ["[null]"],
        ),
        ({"const": {"nullable": True}}, ['{"nullable":true}'], ["null"]),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["null"]),
    ],
)
def test_nullable_and_disjoint_branches(schema: dict[str, object], good: list[str], bad: list[str]) -> None:
    for text, is_good in [*((one, True) for one in good), *((one, False) for one in bad)]:
        matcher = new("json-schema", json.dumps(schema))
        is_whole = matcher.accept(tokens_of(text)) == len(tokens_of(text)) and matcher.is_complete
        assert is_whole == is_good, text


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ({"type": "string", "format": "weird"}, "weird"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "minProperties": 1, "propertyNames": {"maxLength": 3}}, "propertyNames"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(schema: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        new("json-schema", json.dumps(schema))
