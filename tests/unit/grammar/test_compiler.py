"""Compiling: faults and their places, hostile texts, the cache."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sampling import SPEC, VOCAB

from pieray.errors import InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.grammar import GrammarCompiler, Trial, TrialPool
from pieray.grammar.compiler import CACHE_BYTES, CACHE_ENTRIES
from pieray.models.tokenizer import TokenizerSpec


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(SPEC, VOCAB, trial=Trial(SPEC, VOCAB))
    yield made
    made.close()


def nested(schema: Any) -> str:
    return json.dumps({"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}})


UNCLOSED = {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "[a"}]}
UNIQUE = {"type": "array", "uniqueItems": True}
FAULTS = [
    ("regex", "ab(c", "at character 3: unclosed group"),
    ("regex", "[a-z]{3,1}", "at character 6: invalid repetition count range"),
    ("regex", "a\\bb", "lookarounds not supported"),
    ("lark", 'start: "a" b\nb: c\n', 'at line 2, column 4: unknown name: "c"'),
    ("lark", 'start: "a', "at line 1, column 10: lexer error"),
    ("lark", 'foo: "a"', "no start rule"),
    ("lark", "", "Empty grammar"),
    ("json-schema", '{"type": }', "not readable as JSON: Expecting value: line 1 column 10"),
    ("json-schema", "3", "at #: schema must be an object or boolean"),
    ("json-schema", "false", "at #: Unsatisfiable schema"),
    ("json-schema", nested({"type": "strin"}), "at #/properties/a~1b/items: Invalid type: strin"),
    ("json-schema", nested(UNCLOSED), "items/anyOf/1: .*unclosed character class"),
    ("json-schema", nested(UNIQUE), 'at #/properties/a~1b/items: Unimplemented keys: ."uniqueItems".'),
    ("json-schema", '{"$ref": "#/$defs/x", "$defs": {"x": {"type": "foo"}}}', r"at #/\$defs/x: Invalid type: foo"),
    ("json-schema", json.dumps({"$ref": "#/nowhere"}), "Pointer '/nowhere' does not exist"),
    ("json-schema", json.dumps({"$ref": "#"}), "no text is allowed by it"),
    ("gbnf", "x", "the kinds of grammars are json-schema, regex, lark; given 'gbnf'"),
]


@pytest.mark.parametrize(("kind", "text", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_told_with_its_place(compiler: GrammarCompiler, kind: str, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        compiler.compile(kind, text)
    assert len(caught.value.message) < 700


def chain(depth: int) -> str:
    links = {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}, {"properties": {str(i): {}}}]} for i in range(depth)}
    return json.dumps({"$defs": links | {str(depth): {}}, "$ref": "#/$defs/0"})


def either(i: int) -> dict[str, Any]:
    return {"anyOf": [{"properties": {f"{i}": {"const": j}}, "required": [f"{i}"]} for j in (0, 1)]}


def keyed(name: str, count: int) -> dict[str, Any]:
    return {name.format(i): {} for i in range(count)}


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f"x{i}.*"} for i in range(count)]


def rules(name: str, count: int, body: str) -> str:
    """A chain of lark rules: `{i}` in `body` is the name of the next."""
    lines = (f"{name}{i}: {body.replace('{i}', f'{name}{i + 1}')}\n" for i in range(count))
    return f'start: {name}0\n{"".join(lines)}{name}{count}: "x"'


BOMBS = {
    "nested counted repetitions": ("regex", "((a{1000}){1000}){1000}"),
    "a billion": ("regex", "a{1000000000}"),
    "two thousand stars": ("regex", ".*" * 2000),
    "many alternatives": ("regex", "|".join(str(i * 7919 % 1_000_003) for i in range(30_000))),
    "a product of choices": ("json-schema", json.dumps({"allOf": [either(i) for i in range(24)]})),
    "patterns that must be disjoint": ("json-schema", json.dumps({"patternProperties": keyed("^{}x*y", 3000)})),
    "patterns in conjunction": (
        "json-schema",
        json.dumps({"allOf": [{"properties": {"a": x}} for x in patterns(500)]}),
    ),
    "a long chain of references": ("json-schema", chain(3000)),
    "a deep schema": ("json-schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    "very many properties": ("json-schema", json.dumps({"properties": keyed("{}", 10_000)})),
    "a huge enumeration": ("json-schema", json.dumps({"enum": [f"value {i}" for i in range(20_000)]})),
    "a billion characters": ("json-schema", json.dumps({"type": "string", "minLength": 10**9})),
    "a doubling tree": ("lark", rules("a", 60, "{i} {i}")),
    "a doubling terminal": ("lark", rules("T", 60, "{i} {i}")),
    "a long chain of rules": ("lark", rules("r", 8_000, '{i} "a" |')),
    "an ambiguous rule": ("lark", 'start: start start start | start start | "a" |'),
    "deep parentheses": ("lark", "start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "a few divisors": ("json-schema", '{"type":"integer","allOf":[{"multipleOf":997},{"multipleOf":991}]}'),
    "intersections": ("lark", "start: T\nT: " + " & ".join(f"/.*{i}.*/" for i in range(300))),
}
TIME_S = 0.25


FEW = {"nested counted repetitions", "a product of choices", "a doubling terminal"}


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in BOMBS])
def test_a_hostile_grammar_costs_no_more_than_its_limits(compiler: GrammarCompiler, name: str) -> None:
    """It is refused, or compiled and its first steps are cheap; the next grammar compiles as if nothing had been."""
    began = time.monotonic()
    try:
        matcher = compiler.compile(*BOMBS[name], time_s=TIME_S).matcher()
        for _ in range(8):
            mask = matcher.mask_bytes()
            matcher.accept([next(i for i in range(VOCAB) if mask[i // 8] >> i % 8 & 1)])
    except (InvalidRequest, QuotaExceeded):
        pass
    compiler.compile("regex", f"after {name}").matcher().mask_bytes()
    assert time.monotonic() - began < 60 * TIME_S  # unbounded, they take minutes


def test_what_takes_too_long_names_the_limit(compiler: GrammarCompiler) -> None:
    with pytest.raises(QuotaExceeded, match=r"grammar_time_s: compiling this lark grammar took more than 0\.2 s"):
        compiler.compile(*BOMBS["intersections"], time_s=0.2)


def test_a_schema_of_66_bytes_that_takes_seconds_is_cut_short(compiler: GrammarCompiler) -> None:
    with pytest.raises(QuotaExceeded, match=r"grammar_time_s: compiling this json-schema .* more than 0\.2 s"):
        compiler.compile(*BOMBS["a few divisors"], time_s=0.2)


def test_what_is_wrong_is_told_in_few_words(compiler: GrammarCompiler) -> None:
    """Long expressions that are quoted in full, and the long name of what is wrong."""
    parts = [{"pattern": f"^{letter * 20_000}$"} for letter in "ab"]
    wrong = {"properties": {"x" * 50_000: {"type": "string", "pattern": "(" * 3}}}
    for schema in ({"type": "string", "allOf": parts}, wrong):
        with pytest.raises(InvalidRequest) as refused:
            compiler.compile("json-schema", json.dumps(schema))
        assert len(refused.value.message) < 1200


@pytest.mark.slow
def test_nobody_waits_for_the_process_that_another_grammar_has_killed() -> None:
    pool = TrialPool(SPEC, VOCAB, 2)
    pool.check("regex", "a", 10.0)
    deadline = time.monotonic() + 60
    while not all(trial.is_ready for trial in pool._all):  # the second one was started beside the first
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(QuotaExceeded, match="grammar_time_s"):
        pool.check(*BOMBS["intersections"], 0.2)
    assert all(trial.is_ready for trial in pool._all)
    pool.close()
    assert not any(trial.is_ready for trial in pool._all)


def test_what_overflows_the_stack_kills_only_the_trial(compiler: GrammarCompiler) -> None:
    with pytest.raises(QuotaExceeded, match="more stack or memory than there is"):
        compiler.compile(*BOMBS["a long chain of references"])


def test_a_tenant_has_its_own_cache(compiler: GrammarCompiler) -> None:
    one = compiler.compile("regex", "cached", "one")
    assert compiler.compile("regex", "cached", "one") is one
    assert compiler.find("regex", "cached", "two") is None
    assert compiler.compile("regex", "cached", "two") is not one
    assert compiler.find("lark", "cached", "one") is None


def test_the_cache_is_bounded_in_entries_and_bytes() -> None:
    compiler = GrammarCompiler(SPEC, VOCAB)
    for i in range(CACHE_ENTRIES + 1):
        compiler.compile("regex", f"x{i}", "t")
        assert compiler.find("regex", "x0", "t") if i < CACHE_ENTRIES - 1 else True
    assert compiler.find("regex", "x1", "t") is None, "the one not used for longest went"
    assert compiler.find("regex", f"x{CACHE_ENTRIES}", "t") is not None
    long = f'start: "a" // {"-" * (CACHE_BYTES // 2)}'
    kept = [compiler.compile("lark", f"{long}{i}", "t") for i in range(2)]
    assert [compiler.find("lark", grammar.text, "t") for grammar in kept] == [None, kept[1]]


def test_a_closed_compiler_says_so() -> None:
    compiler = GrammarCompiler(SPEC, VOCAB, trial=Trial(SPEC, VOCAB))
    compiler.compile("regex", "a")
    compiler.close()
    compiler.close()
    with pytest.raises(PierayError, match="closed"):
        compiler.compile("regex", "b")


def test_a_tokenizer_that_llguidance_does_not_read_is_unsupported() -> None:
    spec = TokenizerSpec(b'{"version": "1.0", "model": {"type": "WordLevel"}}', None, (0,))
    for trial in (None, Trial(spec, 8)):
        with pytest.raises(Unsupported, match="tokenizer"):
            GrammarCompiler(spec, 8, trial=trial).compile("regex", "a")
