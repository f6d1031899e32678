"""From a grammar's text to llguidance's matcher, and what it says of a faulty one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

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
        max_items_in_row=2000, initial_lexer_fuel=200_000, step_lexer_fuel=50_000, step_max_items=10_000,
        max_lexer_states=10_000, max_grammar_size=50_000, verbose_errors=False,
    )  # fmt: skip


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
    if kind == "json-schema" and '"nullable"' in text:
        text = _nulls_told(text)
    takes_options = text.lstrip().startswith("{") and '"x-guidance"' not in text  # `true` takes none
    if kind == "json-schema" and not takes_options:
        grammar = LLMatcher.grammar_from_json_schema(text)
    elif kind == "json-schema":
        grammar = LLMatcher.grammar_from_json_schema(text, {"whitespace_pattern": WHITESPACE})
    else:
        grammar = {"regex": LLMatcher.grammar_from_regex, "lark": LLMatcher.grammar_from_lark}[kind](text)
    return LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())


def _nulls_told(text: str) -> str:
    """The schema with OpenAPI's `nullable: true` as JSON schema says it; one that cannot be read stays as it is."""
    try:
        return json.dumps(_with_null(json.loads(text)))
    except (ValueError, RecursionError):
        return text


def _with_null(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    told = {key: value for key, value in node.items() if key != "nullable" or not isinstance(value, bool)}
    for key in SCHEMAS & told.keys():
        told[key] = _with_null(told[key])
    for key in SCHEMA_LISTS & told.keys():
        if isinstance(told[key], list):
            told[key] = [_with_null(one) for one in told[key]]
    for key in SCHEMA_MAPS & told.keys():
        if isinstance(told[key], dict):
            told[key] = {name: _with_null(one) for name, one in told[key].items()}
    if node.get("nullable") is not True:
        return told
    shared = {key: told.pop(key) for key in ("$defs", "definitions", "$schema", "$id") if key in told}
    return {**shared, "anyOf": [told, {"type": "null"}]}


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
    error = error_of(text)
    if error and kind == "json-schema":
        return f"at {_schema_place(schema, error, error_of)}: {plain(error)}"
    return _text_place(kind, error) if error else ""


def plain(error: str) -> str:
    """llguidance's message without its picture of the source."""
    if error.startswith("NoExtension"):
        return "no text is allowed by it"
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
    shared = {k: schema[k] for k in ("$defs", "definitions") if isinstance(schema, dict) and k in schema}
    while True:
        for path, child in _subschemas(node):
            left -= 1
            if left < 0 or time.monotonic() > end:
                return place
            whole = {**shared, **child} if isinstance(child, dict) else child
            if error_of(json.dumps(whole)) == error:
                place, node = f"{place}/{path}", child
                break
        else:
            return place


SCHEMAS = {"items", "additionalProperties"}
SCHEMA_LISTS = {"prefixItems", "anyOf", "allOf", "oneOf"}
SCHEMA_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
"""Keywords whose value is a schema, a list of schemas, schemas by name."""


def _subschemas(node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        return
    for key in sorted(SCHEMA_MAPS):
        if isinstance(node.get(key), dict):
            for name, child in node[key].items():
                yield f"{key}/{name.replace('~', '~0').replace('/', '~1')}", child
    for key in sorted(SCHEMA_LISTS):
        if isinstance(node.get(key), list):
            yield from ((f"{key}/{i}", child) for i, child in enumerate(node[key]))
    yield from ((key, node[key]) for key in sorted(SCHEMAS) if isinstance(node.get(key), dict))
