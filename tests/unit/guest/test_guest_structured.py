"""Types to schemas and back."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NotRequired, TypedDict, TypeVar

import guest_install
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlet.errors import InvalidRequest
from inferlet.grammar import Grammar
from inferlet.structured import Mismatch, parse_as, schema_of

assert guest_install


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


@dataclass
class Point:
    x: int
    y: float = 0.0


T = TypeVar("T")


@dataclass
class Box(Generic[T]):
    item: T
    more: list[T] = field(default_factory=list)
    inner: Box[T] | None = None


class Options(TypedDict):
    verbose: bool
    depth: NotRequired[int]


@dataclass
class Node:
    value: int | str
    color: Color = Color.RED
    next: Node | None = None
    points: list[Point] = field(default_factory=list)
    named: dict[str, Point] = field(default_factory=dict)
    pair: tuple[int, str] = (1, "a")
    options: Options | None = None
    size: Literal["s", "m", 3] = "s"


def test_plain_types() -> None:
    assert schema_of(int) == {"type": "integer"}
    assert schema_of(list[str | None]) == {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}
    assert schema_of(Literal["a", 1]) == {"enum": ["a", 1]}
    assert schema_of(Color) == {"enum": ["red", 2]}
    assert schema_of(Annotated[str, "a name", {"maxLength": 3}]) == {
        "type": "string",
        "description": "a name",
        "maxLength": 3,
    }
    assert schema_of(tuple[int, ...]) == {"type": "array", "items": {"type": "integer"}}


def test_a_dataclass_is_a_closed_object_with_its_required_fields() -> None:
    assert schema_of(Point) == {
        "$ref": "#/$defs/Point",
        "$defs": {
            "Point": {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    }
    assert schema_of(Options)["$defs"]["Options"]["required"] == ["verbose"]


def test_a_recursive_type_has_a_schema_that_accepts_its_values_alone() -> None:
    validator = jsonschema.Draft202012Validator(schema_of(Node))
    good = {
        "value": 1,
        "next": {"value": "x", "points": [{"x": 1}]},
        "named": {"a": {"x": 2, "y": 0.5}},
        "pair": [1, "b"],
        "options": {"verbose": True},
        "size": 3,
        "color": 2,
    }
    validator.validate(good)
    node = parse_as(Node, good)
    assert node == Node(
        1,
        Color.BLUE,
        Node("x", points=[Point(1)]),
        named={"a": Point(2, 0.5)},
        pair=(1, "b"),
        options={"verbose": True},
        size=3,
    )
    assert isinstance(parse_as(Point, {"x": 1, "y": 2}).y, float)


BAD: list[tuple[Any, Any, str]] = [
    (Point, {}, "missing: x"),
    (Point, {"x": 1, "z": 2}, "there is no 'z'; there are: x, y"),
    (Point, {"x": True}, "x: int expected; given true"),
    (Point, {"x": 1.5}, "x: int expected; given 1.5"),
    (Point, [1], "an object expected; given"),
    (Node, {"value": 1, "points": [{"x": 1}, {"x": "a"}]}, r"points\[1\].x: int expected"),
    (Node, {"value": None}, "value: int expected.*; or value: str expected"),
    (Color, "green", 'one of "red", 2 expected; given "green"'),
    (Literal["a", 1], True, 'one of "a", 1 expected; given true'),
    (tuple[int, str], [1], "2 items expected; given 1"),
    (dict[str, int], {"a": "b"}, r"\['a'\]: int expected"),
]


@pytest.mark.parametrize(("kind", "value", "message"), BAD)
def test_what_does_not_fit_is_named_with_its_place(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        parse_as(kind, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema_of(kind)).validate(value)


@pytest.mark.parametrize("kind", [bytes, set[int], object(), dict[int, str], list[complex]])
def test_a_type_without_a_schema_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidRequest):
        schema_of(kind)


def test_what_can_be_given_as_schema() -> None:
    grammar = Grammar.regex("a")
    assert Grammar.of(grammar) is grammar
    assert Grammar.of({"type": "null"}) == Grammar("json-schema", '{"type": "null"}')
    assert '"$ref": "#/$defs/Point"' in Grammar.of(Point).text
    with pytest.raises(InvalidRequest, match="no JSON schema"):
        Grammar.of("a string is no schema")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@pytest.mark.slow
@given(JSON, st.sampled_from([Node, Point, Options, Color, list[int], dict[str, Any], int | None, tuple[int, str]]))
def test_parsing_accepts_what_the_schema_does(value: Any, kind: Any) -> None:
    is_valid = jsonschema.Draft202012Validator(schema_of(kind)).is_valid(value)
    try:
        parse_as(kind, value)
    except Mismatch:
        assert not is_valid
    else:
        assert is_valid


def test_generic_types() -> None:
    schema = schema_of(dict[str, Box[int] | Box[Point]])
    assert set(schema["$defs"]) == {"Box_int", "Box_Point", "Point"}
    value = {"a": {"item": 1, "more": [2], "inner": {"item": 3}}, "b": {"item": {"x": 4}}}
    jsonschema.validate(value, schema)
    found = parse_as(dict[str, Box[int] | Box[Point]], value)
    assert found == {"a": Box(1, [2], Box(3)), "b": Box(Point(4))}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"a": {"item": "x"}}, schema)
    with pytest.raises(Mismatch, match="item: int expected"):
        parse_as(Box[int], {"item": "x"})
    with pytest.raises(InvalidRequest, match="no JSON schema for the type ~T"):
        schema_of(Box)


def test_types_of_one_name_are_told_apart_wherever_they_are_defined() -> None:
    def made(kind: Any) -> Any:
        @dataclass
        class Item:
            value: kind

        return Item

    numbers, texts = made(int), made(str)
    numbers.__annotations__["value"], texts.__annotations__["value"] = int, str
    both = tuple[numbers, texts, numbers]
    schema = schema_of(both)
    assert set(schema["$defs"]) == {"Item", "Item_2"}
    jsonschema.validate([{"value": 1}, {"value": "a"}, {"value": 2}], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"value": 1}, {"value": 2}, {"value": 2}], schema)
    assert parse_as(both, [{"value": 1}, {"value": "a"}, {"value": 2}]) == (numbers(1), texts("a"), numbers(2))
    blank = dataclass(type("a b/c~", (), {"__annotations__": {"x": int}}))
    assert schema_of(list[blank])["items"] == {"$ref": "#/$defs/a_b_c"}
