"""Keywords of MCP servers' and OpenAPI clients' schemas: honoured, of no effect, or refused by name and place."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples
from sampling import SPEC, VOCAB

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.grammar import GrammarCompiler, Trial
from pieray.grammar.keywords import BadKeyword, known_form
from pieray.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer(SPEC)


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(SPEC, VOCAB, trial=Trial(SPEC, VOCAB))
    yield made
    made.close()


def allows(compiler: GrammarCompiler, schema: Any, value: Any) -> bool:
    matcher = compiler.compile("json-schema", json.dumps(schema)).matcher()
    tokens = TOKENIZER.encode(json.dumps(value, separators=(",", ":")))
    return matcher.accept(tokens) == len(tokens) and matcher.is_complete


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
CAT = record(kind=TEXT, lives=NUMBER)
DOG = record(kind=TEXT, tricks=NUMBER)
PETS = {"components": {"schemas": {"Cat": CAT, "Dog": DOG}}}
REFS = [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}]
BY_KIND = {"propertyName": "kind", "mapping": {"cat": "#/components/schemas/Cat", "dog": "Dog"}}

HONOURED = {
    "const": ({"const": {"a": [1]}}, [{"a": [1]}], [{"a": [2]}, 1]),
    "enum of all kinds": ({"enum": [1, "a", None, True, {"x": 1}]}, [1, "a", None, True, {"x": 1}], [2, False]),
    "oneOf of constants": ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}]}, ["a", "b"], ["c"]),
    "oneOf of records": (
        {"oneOf": [record(kind={"const": "x"}), record(kind={"const": "y"}, z=NUMBER)]},
        [{"kind": "x"}, {"kind": "y", "z": 1}],
        [{"kind": "x", "z": 1}, {"kind": "z"}],
    ),
    "discriminator with a mapping": (
        {"oneOf": REFS, "discriminator": BY_KIND, **PETS},
        [{"kind": "cat", "lives": 9}, {"kind": "dog", "tricks": 2}],
        [{"kind": "Cat", "lives": 9}, {"kind": "dog", "lives": 9}, {"kind": "cow", "lives": 1}],
    ),
    "discriminator by names": (
        {"anyOf": REFS, "discriminator": {"propertyName": "kind"}, **PETS},
        [{"kind": "Cat", "lives": 9}],
        [{"kind": "cat", "lives": 9}, {"kind": "Dog", "lives": 9}],
    ),
    "discriminator of branches that say so themselves": (
        {
            "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
            "discriminator": {"propertyName": "kind"},
            "$defs": {"A": record(kind={"const": "text"}), "B": record(kind={"enum": ["image"]})},
        },
        [{"kind": "text"}, {"kind": "image"}],
        [{"kind": "A"}],
    ),
    "allOf": (
        {
            "allOf": [
                {"type": "object", "properties": {"a": NUMBER}, "required": ["a"]},
                {"properties": {"b": TEXT}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": "x"}],
        [{"a": 1}],
    ),
    "a known format": ({"type": "string", "format": "date"}, ["2024-01-31"], ["31.1.2024"]),
    "byte": ({"type": "string", "format": "byte"}, ["", "YQ==", "YWI=", "YWJj"], ["YQ", "a-_b"]),
    "contentEncoding": ({**TEXT, "contentEncoding": "base64", "contentMediaType": "image/png"}, ["YQ=="], ["Y"]),
    "byte with a pattern": ({**TEXT, "format": "byte", "pattern": "^Y"}, ["YQ=="], ["ZQ==", "Y"]),
    "int32": ({**NUMBER, "format": "int32"}, [-(2**31), 2**31 - 1], [2**31, -(2**31) - 1]),
    "int64": ({**NUMBER, "format": "int64"}, [-(2**62), 2**62], [2**63]),
    "int32 with a bound": ({**NUMBER, "format": "int32", "minimum": 0}, [0], [-1]),
    "bounds of draft 4": (
        {**NUMBER, "minimum": 3, "exclusiveMinimum": True, "maximum": 5, "exclusiveMaximum": True},
        [4],
        [3, 5],
    ),
    "bounds of draft 4 that include": ({**NUMBER, "minimum": 3, "exclusiveMinimum": False}, [3], [2]),
    "exclusive bounds": ({**NUMBER, "exclusiveMinimum": 3}, [4], [3]),
    "a list of types": ({"type": ["string", "null"]}, ["a", None], [1]),
    "prefixItems": (
        {"type": "array", "prefixItems": [NUMBER, TEXT], "items": False, "minItems": 2},
        [[1, "a"]],
        [[1], [1, "a", 2]],
    ),
    "items of draft 4": (
        {"type": "array", "items": [NUMBER, TEXT], "additionalItems": False, "minItems": 2},
        [[1, "a"]],
        [[1, "a", 2]],
    ),
    "a reference's siblings": (
        {"$ref": "#/$defs/A", "maxLength": 1, "description": "d", "$defs": {"A": TEXT}},
        ["a"],
        ["aa"],
    ),
    "definitions": ({"$ref": "#/definitions/A", "definitions": {"A": TEXT}}, ["a"], [1]),
    "names that a reference escapes": ({"$ref": "#/$defs/a~1b~0c%20d", "$defs": {"a/b~c d": TEXT}}, ["a"], [1]),
    "a schema within itself": ({**record(), "properties": {"c": {"$ref": "#"}}}, [{"c": {"c": {}}}], [{"c": 1}]),
    "additionalProperties": ({"type": "object", "additionalProperties": NUMBER}, [{"a": 1}], [{"a": "x"}]),
    "unevaluatedProperties": (
        {"type": "object", "properties": {"a": NUMBER}, "unevaluatedProperties": False},
        [{"a": 1}],
        [{"b": 1}],
    ),
    "never": (
        {"type": "object", "properties": {"a": NUMBER}, "additionalProperties": {"not": {}}},
        [{"a": 1}],
        [{"b": 1}],
    ),
    "nullable among OpenAPI's schemas": (
        {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {**TEXT, "nullable": True}}}},
        ["a", None],
        [1],
    ),
    "nullable in a list of items": ({"type": "array", "items": [{**TEXT, "nullable": True}]}, [[None], ["a"]], [[1]]),
    "required of draft 3": (
        {"type": "object", "properties": {"a": {**TEXT, "required": True}, "b": NUMBER}, "additionalProperties": False},
        [{"a": "x"}, {"a": "x", "b": 1}],
        [{}, {"b": 1}],
    ),
}


@pytest.mark.parametrize("name", HONOURED)
def test_keywords_that_are_honoured(compiler: GrammarCompiler, name: str) -> None:
    schema, good, bad = HONOURED[name]
    for inner in (schema, {"type": "array", "items": schema}) if "$ref" not in json.dumps(schema) else (schema,):
        wrap = (lambda value: value) if inner is schema else (lambda value: [value])
        assert [value for value in good if not allows(compiler, inner, wrap(value))] == []
        assert [value for value in bad if allows(compiler, inner, wrap(value))] == []


OF_NO_EFFECT = {
    "notes": {"title": "T", "description": "D", "$comment": "C", "examples": ["a"], "example": 3, "default": 7},
    "how it is used": {"readOnly": True, "writeOnly": True, "deprecated": True},
    "OpenAPI's": {"xml": {"name": "x"}, "externalDocs": {"url": "u"}, "x-order": 1},
    "OpenAI's": {"strict": True},
    "formats that say how to show a text": {"format": "password"},
    "files": {"format": "binary", "contentMediaType": "image/png", "contentSchema": {"type": "object"}},
    "a dialect": {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base"},
    "a dialect of one's own": {"$schema": "https://example.com/mine"},
    "draft 4": {"$schema": "http://json-schema.org/draft-04/schema#"},
    "ids": {"$id": "https://example.com/x", "$anchor": "a"},
    "not nullable": {"nullable": False},
    "names of texts": {"propertyNames": {"type": "string"}},
    "any names": {"propertyNames": {}},
    "not unique": {"uniqueItems": False},
    "any others": {"unevaluatedProperties": True, "unevaluatedItems": {}},
    "no dependencies": {"dependencies": {}, "dependentRequired": {}, "dependentSchemas": {}},
    "a branch without its condition": {"then": {"maxLength": 1}, "else": False},
    "a condition without branches": {"if": {"maxLength": 1}},
    "how many of nothing": {"minContains": 2, "maxContains": 3},
    "words that nobody knows": {"foo": {"bar": 1}},
}


@pytest.mark.parametrize("name", OF_NO_EFFECT)
def test_keywords_that_are_of_no_effect(compiler: GrammarCompiler, name: str) -> None:
    schema = {**TEXT, **OF_NO_EFFECT[name]}
    for wrapped in (schema, record(a=schema)):
        value = "some text" if wrapped is schema else {"a": "some text"}
        assert allows(compiler, wrapped, value)
        assert not allows(compiler, wrapped, 3)


REFUSED = [
    ({"not": TEXT}, "", '"not"'),
    ({"if": TEXT, "then": NUMBER}, "", '"if", "then"'),
    ({"type": "array", "uniqueItems": True}, "", '"uniqueItems"'),
    ({"type": "array", "contains": NUMBER}, "", '"contains"'),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, "", '"propertyNames"'),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "", '"dependentRequired"'),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "", '"dependencies"'),
    ({"allOf": [{"type": "object"}], "unevaluatedProperties": False}, "", '"unevaluatedProperties"'),
    ({"$dynamicRef": "#a"}, "", r'"\$dynamicRef"'),
    ({"$ref": 3}, "", r"\$ref must be a string"),
    ({"$ref": "https://example.com/a.json"}, "", r"https://example.com/a.json"),
    ({"oneOf": [{"type": "number"}, NUMBER]}, "", "oneOf whose branches may overlap"),
    ({"oneOf": [{"type": "object", "properties": {"a": TEXT}}, {"type": "object"}]}, "", "oneOf whose branches may"),
    ({**TEXT, "format": "phone"}, "", "Unknown format: phone"),
    ({**TEXT, "nullable": "yes"}, "", "nullable is true or false"),
    ({"type": "any"}, "", "Invalid type: any"),
    ({"type": 3}, "", "type must be a string or array of strings"),
    ({"type": "object", "properties": None}, "", "properties must be an object"),
    ({"type": "object", "required": None}, "", "'required'"),
    ({"type": "object", "additionalProperties": None}, "/additionalProperties", "must be an object or boolean"),
    ({"type": "array", "items": None}, "/items", "must be an object or boolean"),
    ({"type": "array", "items": 3}, "/items", "must be an object or boolean"),
    ({"anyOf": [TEXT, None]}, "/anyOf/1", "must be an object or boolean"),
    ({"anyOf": None}, "", "anyOf must be an array"),
    ({"enum": None}, "", "enum must be an array"),
    ({**TEXT, "minLength": "1"}, "", "'minLength'"),
    ({**TEXT, "pattern": "^(?=a)a$"}, "", "look-around"),
    ({"anyOf": []}, "", "anyOf is empty"),
    ({"not": {}}, "", "schema is false|is empty"),
]


@pytest.mark.parametrize(("schema", "place", "message"), REFUSED, ids=range(len(REFUSED)))
def test_keywords_that_are_refused_by_name_and_place(
    compiler: GrammarCompiler, schema: Any, place: str, message: str
) -> None:
    for wrapped, start in ((schema, "#"), (record(a=schema), "#/properties/a")):
        if message.endswith("empty") and wrapped is not schema:
            continue  # what the property lacks is told of the whole
        with pytest.raises(InvalidRequest, match=message) as caught:
            compiler.compile("json-schema", json.dumps(wrapped))
        assert f"at {start}{place}: " in caught.value.message


def test_without_a_trial_it_is_refused_as_well() -> None:
    with pytest.raises(InvalidRequest, match=r"at #/items: nullable is true or false"):
        GrammarCompiler(SPEC, VOCAB).compile("json-schema", json.dumps({"items": {"nullable": 3}}))


def test_names_of_properties_are_no_keywords() -> None:
    names = ["nullable", "format", "discriminator", "required", "not", "$schema", "uniqueItems", "contentEncoding"]
    schema = record(**dict.fromkeys(names, TEXT))
    assert known_form(schema) == schema
    data = {"const": {"nullable": True, "format": "byte"}, "default": {"not": {}}, "enum": [{"nullable": True}]}
    assert known_form(data) == data


KEYWORDS: dict[str, Any] = {}
for one in [*[schema for schema, *_ in HONOURED.values()], *OF_NO_EFFECT.values(), *[schema for schema, *_ in REFUSED]]:
    for key, value in one.items():
        KEYWORDS.setdefault(key, []).append(value)
NODES = st.dictionaries(st.sampled_from(sorted(KEYWORDS)), st.integers(0, 50), max_size=5).map(
    lambda chosen: {key: KEYWORDS[key][number % len(KEYWORDS[key])] for key, number in chosen.items()}
)
SCHEMAS = st.recursive(
    NODES,
    lambda inner: st.builds(
        lambda node, key, child: {
            **node,
            key: child
            if key in ("items", "not", "additionalProperties")
            else {"a": child}
            if key in ("properties", "$defs")
            else [child],
        },
        NODES,
        st.sampled_from(["items", "not", "additionalProperties", "properties", "$defs", "anyOf", "oneOf"]),
        inner,
    ),
    max_leaves=4,
)


@settings(max_examples=examples(60), deadline=None)
@given(SCHEMAS)
def test_any_mixture_compiles_or_is_refused(schema: Any) -> None:
    with contextlib.suppress(InvalidRequest, QuotaExceeded):
        GrammarCompiler(SPEC, VOCAB).compile("json-schema", json.dumps(schema))
    try:
        told = known_form(schema)
    except BadKeyword:
        return
    assert known_form(told) == told
