"""From a grammar's text to llguidance's matcher, and what it says of a faulty one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from pieray.grammar.keywords import SHARED, BadKeyword, children, known_form

KINDS = ("json-schema", "regex", "lark")
"""The WIT's `grammar-kind`."""

WHITESPACE = r"[ \n\r\t]{0,32}"
"""Between the tokens of JSON.  Bounded: a model that likes blanks must come to the point.  A schema with "x-guidance"
has llguidance's own defaults in its place, and what it says there ("whitespace_flexible": false)."""

MAX_PLACE_TRIES = 128
"""Subschemas compiled to find which one is at fault."""
MAX_PLACE_S = 0.5
"""Seconds spent on that."""


def parser_limits() -> LLParserLimits:
    """llguidance's own bounds, far below its defaults: a step of a hostile grammar takes some ten milliseconds,
    its lexer (shared by all matchers of a grammar) some ten MB."""
    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=10_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def new_tokenizer(tokenizer_json: str, vocab_size: int, eos_ids: tuple[int, ...]) -> LLTokenizer:
    """llguidance's tokenizer.  A model's vocabulary may be larger than its tokenizer's, or smaller.

    Raises ValueError for a format that llguidance does not read.
    """
    eos = list(eos_ids) or None
    try:
        return LLTokenizer(tokenizer_json, n_vocab=vocab_size, eos_token=eos)
    except ValueError:
        return LLTokenizer(tokenizer_json, eos_token=eos)


def new_matcher(tokenizer: LLTokenizer, kind: str, text: str) -> LLMatcher:
    """Compile; the matcher may be in an error state.  Raises ValueError for JSON that is none.

    A hostile text may take minutes, or end the process: try it in a `Trial` first.
    """
    if kind == "json-schema":
        text = _told(text)
    takes_options = text.lstrip().startswith("{") and '"x-guidance"' not in text  # `true` takes none
    if kind == "json-schema" and not takes_options:
        grammar = LLMatcher.grammar_from_json_schema(text)
    elif kind == "json-schema":
        grammar = LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": WHITESPACE})
    else:
        grammar = {"regex": LLMatcher.grammar_from_regex, "lark": LLMatcher.grammar_from_lark}[kind](text)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())


def _told(text: str) -> str:
    """The schema in keywords that llguidance knows; one that cannot be read stays as it is.  Raises BadKeyword."""
    try:
        schema = json.loads(text)
        told = known_form(schema)
        return text if told == schema else json.dumps(told)
    except BadKeyword:
        raise
    except (ValueError, RecursionError):
        return text


def fault(tokenizer: LLTokenizer, kind: str, text: str) -> str:
    """What is wrong with a grammar and where, or "".  The first mask is computed too: it is often the costliest."""

    def error_of(text: str) -> str:
        matcher = new_matcher(tokenizer, kind, text)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return matcher.get_error()

    if kind == "json-schema":
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as unreadable:
            return f"not readable as JSON: {unreadable}"
    try:
        error = error_of(text)
    except BadKeyword as bad:
        return str(bad)
    if error and kind == "json-schema":
        return f"at {_schema_place(schema, error, error_of)}: {plain(error)}"
    return _text_place(kind, error) if error else ""


def plain(error: str) -> str:
    """llguidance's message without its picture of the source."""
    if error.startswith("NoExtension"):
        return "no text is allowed by it"
    if "coerce_one_of" in error:
        return "oneOf whose branches may overlap: tell them apart by a required constant, or give anyOf"
    lines = [line for line in error.splitlines() if line.strip() and not _PICTURE.match(line)]
    return " ".join(line.strip().removeprefix("error: ") for line in lines)[:500]


_PICTURE = re.compile(r"\s*(\d+ \||[\^]+\s*$|<non-verbose/>|<state>)")
_LARK = re.compile(r"(?:at )?(\d+)\((\d+)\):? (.*)", re.DOTALL)
_REGEX = re.compile(r"regex parse error:\n(.*?)\n(\s*)\^+\n\s*error: (.*?)\n", re.DOTALL)


def _text_place(kind: str, error: str) -> str:
    if kind == "regex" and (found := _REGEX.search(error + "\n")):
        column = len(found[2]) - 3  # the picture is indented by 4, characters count from 1
        return f"at character {column}: {found[3]}"
    if found := _LARK.match(error):
        place = f"at line {found[1]}, column {found[2]}: " if kind == "lark" else ""
        return place + plain(found[3])
    return plain(error)


def _schema_place(schema: Any, error: str, error_of: Callable[[str], str]) -> str:
    """JSON pointer of the smallest subschema with the same error: RFC 6901, "#" for the whole."""
    place, node, left = "#", schema, MAX_PLACE_TRIES
    end = time.monotonic() + MAX_PLACE_S
    shared = {k: schema[k] for k in SHARED if isinstance(schema, dict) and k in schema}
    while True:
        for path, child in children(node):
            left -= 1
            if left < 0 or time.monotonic() > end:
                return place
            whole = {**shared, **child} if isinstance(child, dict) else 0 if child is None else child
            if error_of(json.dumps(whole)) == error:
                place, node = f"{place}/{path}", child
                break
        else:
            return place
