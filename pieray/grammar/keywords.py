"""JSON schemas as MCP servers and OpenAPI clients send them, in the keywords that llguidance knows.

What changes nothing is left out, what can be said otherwise is said so; all else llguidance refuses by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

SCHEMAS = ("items", "additionalProperties", "additionalItems")
SCHEMA_LISTS = ("prefixItems", "anyOf", "allOf", "oneOf", "items")
SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords whose value is a schema, a list of schemas, schemas by name."""
SHARED = ("$defs", "definitions", "components")
"""Where a schema keeps those that it refers to; OpenAPI's are in components.schemas."""

BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
NO_CONSTRAINT = ("password", "binary")
"""Formats of OpenAPI that say how to show a text, not what is in it."""
INTEGERS = {"int32": (-(1 << 31), (1 << 31) - 1), "int64": (1024 - (1 << 63), (1 << 63) - 1024)}
"""Least and greatest; of int64, what a float has exactly, as llguidance reads them."""
APPLICATORS = ("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas", "$dynamicRef")
EVERYTHING: tuple[Any, ...] = ({}, True)

Node = dict[str, Any]


class BadKeyword(ValueError):
    """A keyword's value is none; the text names the place."""


def known_form(schema: Any) -> Any:
    """The schema with the keywords that llguidance knows.  Raises BadKeyword, RecursionError."""
    return _known(schema, schema, "#")


def children(node: Any) -> Iterator[tuple[str, Any]]:
    """The subschemas of a node, each with its JSON pointer from there (RFC 6901)."""
    if not isinstance(node, dict):
        return
    components = node.get("components")
    if isinstance(components, dict) and isinstance(components.get("schemas"), dict):
        yield from ((f"components/schemas/{_escaped(name)}", one) for name, one in components["schemas"].items())
    for key in sorted(SCHEMA_MAPS):
        if isinstance(node.get(key), dict):
            yield from ((f"{key}/{_escaped(name)}", one) for name, one in node[key].items())
    for key in sorted(SCHEMA_LISTS):
        if isinstance(node.get(key), list):
            yield from ((f"{key}/{at}", one) for at, one in enumerate(node[key]))
    yield from ((key, node[key]) for key in sorted(SCHEMAS) if key in node and not isinstance(node[key], list))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _known(node: Any, root: Any, place: str) -> Any:
    if not isinstance(node, dict):
        return node
    told = dict(node)
    for rule in RULES:
        rule(told, root, place)
    if told.get("not") in EVERYTHING and "not" in told:  # how zod says "never"
        return False
    for key in told.keys() & {*SCHEMAS}:
        told[key] = _known(told[key], root, f"{place}/{key}")
    for key in told.keys() & {*SCHEMA_LISTS}:
        if isinstance(told[key], list):
            told[key] = [_known(one, root, f"{place}/{key}/{at}") for at, one in enumerate(told[key])]
    for key in told.keys() & {*SCHEMA_MAPS}:
        if isinstance(told[key], dict):
            told[key] = _all_known(told[key], root, f"{place}/{key}")
    components = told.get("components")
    if isinstance(components, dict) and isinstance(components.get("schemas"), dict):
        schemas = _all_known(components["schemas"], root, f"{place}/components/schemas")
        told["components"] = {**components, "schemas": schemas}
    return _with_null(told) if node.get("nullable") is True else told


def _all_known(named: Node, root: Any, place: str) -> Node:
    return {name: _known(one, root, f"{place}/{_escaped(name)}") for name, one in named.items()}


def _with_null(told: Node) -> Node:
    shared = {key: told.pop(key) for key in (*SHARED, "$schema", "$id") if key in told}
    return {**shared, "anyOf": [told, {"type": "null"}]}


# -- rules: each changes a node that is ours


def _check_nullable(node: Node, _root: Any, place: str) -> None:
    """OpenAPI 3.0; the null is added last."""
    if "nullable" in node and not isinstance(node.pop("nullable"), bool):
        raise BadKeyword(f"at {place}: nullable is true or false")


def _leave_out(node: Node, _root: Any, _place: str) -> None:
    """What constrains nothing."""
    if "json-schema.org" not in str(node.get("$schema", "json-schema.org")):  # a dialect's, such as OpenAPI's
        del node["$schema"]
    names = node.get("propertyNames", False)
    if names in EVERYTHING or names == {"type": "string"}:
        del node["propertyNames"]
    for key, empty in (
        ("uniqueItems", (False,)),
        ("unevaluatedProperties", EVERYTHING),
        ("unevaluatedItems", EVERYTHING),
        ("dependencies", ({},)),
        ("dependentRequired", ({},)),
        ("dependentSchemas", ({},)),
    ):
        if key in node and any(node[key] is one or node[key] == one == {} for one in empty):
            del node[key]
    if "if" not in node or not node.keys() & {"then", "else"}:
        for key in ("if", "then", "else"):
            node.pop(key, None)
    if "contains" not in node:
        for key in ("minContains", "maxContains"):
            node.pop(key, None)


def _say_no_others(node: Node, _root: Any, _place: str) -> None:
    """unevaluatedProperties: false, where nothing but `properties` evaluates any."""
    if node.get("unevaluatedProperties") is False and not node.keys() & {*APPLICATORS}:
        del node["unevaluatedProperties"]
        node.setdefault("additionalProperties", False)


def _say_format(node: Node, _root: Any, _place: str) -> None:
    """Formats of OpenAPI, and texts that are base64 (RFC 4648, section 4)."""
    known = node.get("format")
    if known in NO_CONSTRAINT:
        del node["format"]
    if known == "byte" or node.get("contentEncoding") == "base64":
        node.pop("contentEncoding", None)
        if known == "byte":
            del node["format"]
        if "pattern" in node:
            every = node.get("allOf")
            node["allOf"] = [*(every if isinstance(every, list) else []), {"type": "string", "pattern": BASE64}]
        else:
            node["pattern"] = BASE64
    if isinstance(known, str) and known in INTEGERS and node.get("type") == "integer":
        least, greatest = INTEGERS[known]
        if not node.keys() & {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}:
            node["minimum"], node["maximum"] = least, greatest


def _lift_required(node: Node, _root: Any, _place: str) -> None:
    """Draft 3 says `required: true` in the property."""
    properties = node.get("properties")
    if not isinstance(properties, dict) or not isinstance(node.get("required", []), list):
        return
    marked = {
        name: one
        for name, one in properties.items()
        if isinstance(one, dict) and "required" in one and isinstance(one["required"], bool)
    }
    if marked:
        node["properties"] = {
            name: {key: value for key, value in one.items() if key != "required"} if name in marked else one
            for name, one in properties.items()
        }
        wanted = [name for name, one in marked.items() if one["required"]]
        node["required"] = [*node.get("required", []), *wanted]


def _say_discriminator(node: Node, root: Any, _place: str) -> None:
    """OpenAPI's: which value of a property says which branch it is, where the branches do not say so themselves."""
    told = node.get("discriminator")
    name = told.get("propertyName") if isinstance(told, Mapping) else None
    for key in ("oneOf", "anyOf"):
        if isinstance(name, str) and isinstance(node.get(key), list):
            mapping = told.get("mapping") if isinstance(told, Mapping) else None
            node[key] = [_branch(one, root, name, mapping if isinstance(mapping, dict) else {}) for one in node[key]]


def _branch(branch: Any, root: Any, name: str, mapping: Node) -> Any:
    ref = branch.get("$ref") if isinstance(branch, dict) else None
    found = _at(root, ref) if isinstance(ref, str) else None
    properties = found.get("properties") if isinstance(found, dict) else None
    property_ = properties.get(name) if isinstance(properties, dict) else None
    if not isinstance(property_, dict) or property_.keys() & {"const", "enum", "$ref", "anyOf", "oneOf", "allOf"}:
        return branch
    short = str(ref).rpartition("/")[2]
    values = [value for value, target in mapping.items() if target in (ref, short)] or [short]
    return {"allOf": [branch, {"type": "object", "properties": {name: {"enum": values}}, "required": [name]}]}


def _at(root: Any, ref: str) -> Any:
    """What a reference within the schema means; None: nothing, or it is elsewhere."""
    node = root
    for part in ref.split("/")[1:] if ref.startswith("#/") else ["?"]:
        name = part.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
    return node


Rule = Callable[[Node, Any, str], None]
RULES: tuple[Rule, ...] = (_check_nullable, _leave_out, _say_no_others, _say_format, _lift_required, _say_discriminator)
