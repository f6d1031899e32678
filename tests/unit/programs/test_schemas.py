"""JSON schemas of what a `main` takes, beside what its own check says of the same values."""

from __future__ import annotations

import ast
from typing import Any

import jsonschema
import pytest

from pieray.programs.schemas import input_schema, schema_of
from pieray.programs.signature import fits, main_of
from pieray.programs.sources import ProgramSource, embedded, embedded_inferlets, inferlets_folder

VALUES: list[Any] = [None, True, 0, 1.5, "a", [], [1], ["a"], {}, {"a": 1}, {"a": "b"}]
KINDS = [
    *("int", "float", "str", "bool", "None", "list", "dict", "Any", "Whatever", "tuple[int, str]", "list[int]"),
    *("Sequence[str]", "dict[str, int]", "Mapping[str, Any]", "int | None", "list[str | int]", "Optional[str]"),
    *("Union[int, str]", "Annotated[int, 'x']", "Literal['a', 1]", "'int'", "'list[str]'", "int | list[int] | None"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_and_the_check_of_a_launch_agree(kind: str) -> None:
    annotation = ast.parse(kind, mode="eval").body
    schema = schema_of(annotation)
    for value in VALUES:
        is_valid = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert is_valid == fits(value, annotation), (schema, value)


def test_the_arguments_of_a_main() -> None:
    def of(source: str) -> dict[str, Any]:
        return input_schema(main_of(ProgramSource("x", "x.py", source=source)))

    found = of("async def main(a, b: int = 1, c: str = None, **more): pass")
    assert found == {
        "type": "object",
        "properties": {"a": {}, "b": {"type": "integer"}, "c": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
        "required": ["a"],
        "additionalProperties": True,
    }
    assert of("main = print") == {"type": "object"}
    assert of("def main(): pass") == {"type": "object", "properties": {}, "additionalProperties": False}


def test_every_embedded_inferlet_in_python_has_a_schema() -> None:
    for name in embedded_inferlets():
        if not (inferlets_folder() / name / "main.py").exists():
            continue
        program = embedded(name)
        assert program is not None
        jsonschema.Draft202012Validator.check_schema(input_schema(main_of(program)))
