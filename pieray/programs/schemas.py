"""What a `main` takes, as a JSON schema."""

from __future__ import annotations

import ast
from typing import Any

from pieray.programs.signature import MainFunction, Parameter

_PLAIN = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "bool": "boolean",
    **dict.fromkeys(("list", "List", "tuple", "Tuple", "Sequence", "Iterable", "Collection"), "array"),
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping"), "object"),
}


def input_schema(main: MainFunction) -> dict[str, Any]:
    """The object that `main` takes as its arguments; of one that is not known, any."""
    if main.parameters is None:
        return {"type": "object"}
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: _of_parameter(one) for name, one in main.parameters.items()},
        "additionalProperties": main.takes_any,
    }
    required = [name for name, one in main.parameters.items() if one.is_required]
    return found | ({"required": required} if required else {})


def _of_parameter(parameter: Parameter) -> dict[str, Any]:
    if parameter.annotation is None:
        return {}
    found = schema_of(parameter.annotation)
    if not parameter.may_be_none or not found:
        return found
    null = {"type": "null"}
    return found if null in found.get("anyOf", ()) else _any_of([found, null])


def schema_of(kind: ast.expr) -> dict[str, Any]:
    """Of an annotation; {}, which everything fits, where it says nothing about JSON."""
    if isinstance(kind, ast.Constant):
        return _of_constant(kind.value)
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return _any_of([schema_of(kind.left), schema_of(kind.right)])
    if isinstance(kind, ast.Subscript):
        return _of_generic(_name(kind.value), kind.slice)
    name = _PLAIN.get(_name(kind))
    return {"type": name} if name is not None else {}


def _of_constant(value: object) -> dict[str, Any]:
    if value is None:
        return {"type": "null"}
    if isinstance(value, str):  # an annotation in quotes
        try:
            return schema_of(ast.parse(value, mode="eval").body)
        except SyntaxError:
            return {}
    return {}


def _of_generic(name: str, inner: ast.expr) -> dict[str, Any]:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name in ("Optional", "Union"):
        return _any_of([*map(schema_of, parts), *([{"type": "null"}] if name == "Optional" else [])])
    if name == "Annotated":
        return schema_of(parts[0])
    if name == "Literal":
        values = [part.value for part in parts if isinstance(part, ast.Constant)]
        return {"enum": values} if len(values) == len(parts) else {}
    kind = _PLAIN.get(name)
    if kind == "array" and name not in ("tuple", "Tuple"):
        return {"type": "array", "items": schema_of(inner)}
    if kind == "object" and len(parts) == 2:
        return {"type": "object", "additionalProperties": schema_of(parts[1])}
    return {"type": kind} if kind is not None else {}


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several; those of several kinds that are in it already are taken apart."""
    found = [part for one in schemas for part in (one["anyOf"] if set(one) == {"anyOf"} else [one])]
    return {} if {} in found else {"anyOf": found}


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
