"""The issue's judge: whatever is sampled under a held schema or expression, the text parses."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

import jsonschema
import pytest
from sampling import HELD, SPEC, VOCAB, draw, text_of

from pieray.grammar import GrammarCompiler

TIME = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"
"""RFC 3339, section 5.6, leap seconds included; jsonschema's own check knows no zones."""
FORMATS = jsonschema.FormatChecker()
FORMATS.checks("time")(lambda text: re.fullmatch(TIME, text) is not None)
FORMATS.checks("date-time", ValueError)(
    lambda text: bool(datetime.date.fromisoformat(text[:10])) and re.fullmatch(f"[Tt]{TIME}", text[10:]) is not None
)
COMPILER = GrammarCompiler(SPEC, VOCAB)
SEEDS = range(3)


def texts(kind: str, text: str) -> Iterator[str]:
    grammar = COMPILER.compile(kind, text)
    for seed in SEEDS:
        yield text_of(draw(grammar.matcher(), Random(seed), most=2000))


def test_a_hundred_grammars_are_held() -> None:
    distinct = {json.dumps(item, sort_keys=True) for kind in ("json-schema", "regex") for item in HELD[kind]}
    assert len(distinct) == len(HELD["json-schema"]) + len(HELD["regex"]) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(HELD["json-schema"])))
def test_every_text_satisfies_its_schema(index: int) -> None:
    schema: Any = HELD["json-schema"][index]
    validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    for text in texts("json-schema", json.dumps(schema)):
        validator.validate(json.loads(text))


@pytest.mark.parametrize("index", range(len(HELD["regex"])))
def test_every_text_matches_its_expression(index: int) -> None:
    expression: str = HELD["regex"][index]
    for text in texts("regex", expression):
        assert re.fullmatch(expression, text), f"{expression!r} does not match {text!r}"


@pytest.mark.parametrize("index", range(len(HELD["lark"])))
def test_every_text_is_in_its_lark_grammar(index: int) -> None:
    held = HELD["lark"][index]
    for text in texts("lark", held["text"]):
        if held["same_as"] is not None:
            assert re.fullmatch(held["same_as"], text), text
        else:  # balanced parentheses
            half = len(text) // 2
            assert text == "(" * half + ")" * half
            assert half > 0
