"""Grammars that a request asks for, under the names of OpenAI and vLLM: one argument of the inferlet, {kind, text}."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pieray.server.json_texts import loaded
from pieray.server.openai.fields import Take
from pieray.server.problems import BadField
from pieray.server.values import boolean, listed, mapping, shown, text

ON_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How JSON is written: a model that may put blanks between its parts may put nothing else."""


def json_grammar(name: str, schema: Any) -> dict[str, Any]:
    if isinstance(schema, str):
        try:
            schema = loaded(schema)
        except (ValueError, RecursionError) as error:
            raise BadField(name, f"is a JSON schema: {error}") from None
    if schema is True:
        schema = {}
    found = {"x-guidance": ON_ONE_LINE, **mapping(name, schema)}
    return {"grammar": {"kind": "json-schema", "text": json.dumps(found)}}


def regex_grammar(name: str, value: Any) -> dict[str, Any]:
    return {"grammar": {"kind": "regex", "text": text(name, value)}}


def lark_grammar(name: str, value: Any) -> dict[str, Any]:
    return {"grammar": {"kind": "lark", "text": text(name, value)}}


def choice_grammar(name: str, value: Any) -> dict[str, Any]:
    choices = [text(name, one) for one in listed(name, value, 4096)]
    if not choices:
        raise BadField(name, "is a list of at least one text")
    return {"grammar": {"kind": "regex", "text": "|".join(map(_escaped, choices))}}


def _escaped(words: str) -> str:
    return "".join(f"\\{c}" if c in r"\.+*?()|[]{}^$-/&~#" else "\\n" if c == "\n" else c for c in words)


def _any_json(name: str, value: Any) -> dict[str, Any]:
    return json_grammar(name, {"type": "object"}) if boolean(name, value) else {}


_STRUCTURED: Mapping[str, Take] = {
    "json": json_grammar,
    "regex": regex_grammar,
    "choice": choice_grammar,
    "grammar": lark_grammar,
    "json_object": _any_json,
}


def structured_outputs(name: str, value: Any) -> dict[str, Any]:
    given = {key: one for key, one in mapping(name, value).items() if one is not None and one is not False}
    for key in given:
        if key not in _STRUCTURED:
            raise BadField(
                f"{name}.{key}", f"is not served here; there are: {', '.join(_STRUCTURED)}", code="unsupported_field"
            )
    if len(given) != 1:
        raise BadField(name, f"has one of {', '.join(_STRUCTURED)}; given {', '.join(given) or 'none'}")
    ((key, one),) = given.items()
    return _STRUCTURED[key](f"{name}.{key}", one)


def response_format(name: str, value: Any) -> dict[str, Any]:
    given = mapping(name, value)
    kind = given.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return json_grammar(name, {"type": "object"})
    if kind == "json_schema":
        described = mapping(f"{name}.json_schema", given.get("json_schema"))
        schema = described.get("schema")
        return json_grammar(f"{name}.json_schema.schema", {} if schema is None else schema)
    if kind == "regex":
        return regex_grammar(f"{name}.regex", given.get("regex", given.get("pattern")))
    if kind == "grammar":
        return lark_grammar(f"{name}.grammar", given.get("grammar"))
    raise BadField(f"{name}.type", f"is text, json_object, json_schema, regex or grammar; given {shown(kind)}")
