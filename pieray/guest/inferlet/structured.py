"""Types as JSON schemas, and JSON as values of types."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union

from . import _convert
from .errors import InvalidRequest

if TYPE_CHECKING:
    from typing import Unpack

    from ._options import FreeOptions
    from .context import Context

T = TypeVar("T")
PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    None: {"type": "null"},
    types.NoneType: {"type": "null"},
    dict: {"type": "object"},
    list: {"type": "array"},
    Any: {},
}


class Mismatch(ValueError):
    """A JSON value is not of the type; the text names the place."""


async def collect_json(
    ctx: Context, type: type[T] | Mapping[str, Any], max_tokens: int = 256, **options: Unpack[FreeOptions]
) -> T:
    """What the model writes next, as JSON of a type: a dataclass, TypedDict, enum or the like, or a JSON schema.

    Options are those of `generate`.  Raises Mismatch if it ended before the JSON did: at `max_tokens`, at the end of
    the model's context, at a stop string.
    """
    if not callable(getattr(ctx, "generate", None)):
        raise InvalidRequest(f"ctx is a Context; given {_convert.shown(ctx)}")
    generation = ctx.generate(max_tokens, schema=type, **options)
    text = await generation
    try:
        value = _convert.load(text)
    except ValueError:
        how = f"by {generation.finish_reason!r} after {generation.num_tokens} tokens (max_tokens {max_tokens})"
        raise Mismatch(f"no whole JSON: the generation ended {how}: {text!r}") from None
    return typing.cast("T", value if isinstance(type, Mapping) else parse_as(type, value))


# -- schemas


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type.

    str, int, float, bool, None, Any, list[T], tuple[...], dict[str, T], Literal, enums, unions, dataclasses and
    TypedDicts (fields with a default are not required), also recursive and generic; Annotated[T, {...}] adds keywords
    and Annotated[T, "..."] a description.  Raises InvalidRequest naming any other.
    """
    shared = Definitions()
    schema = _schema(kind, shared)
    return schema | {"$defs": shared} if shared else schema


class Definitions(dict[str, Any]):
    """Schemas of records by name: the type's, in letters that a reference may have, with a number if it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[Any, str] = {}

    def name_of(self, kind: Any) -> str:
        """The name of a type's schema, which is empty at first."""
        name = self._names.get(kind)
        if name is None:
            stem = re.sub(r"\W+", "_", _name_of(kind)).strip("_") or "object"
            name = next(one for number in itertools.count(1) if (one := stem + f"_{number}" * (number > 1)) not in self)
            self._names[kind] = name
            self[name] = {}
        return name


def _name_of(kind: Any) -> str:
    name: str = getattr(typing.get_origin(kind) or kind, "__name__", "")
    return "_".join([name, *map(_name_of, typing.get_args(kind))])


def _schema(kind: Any, shared: Definitions) -> dict[str, Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in BUILDERS:
        return BUILDERS[origin](args, shared)
    if _is_plain(kind):
        return dict(PLAIN[kind])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    if _is_record(origin or kind):
        return _record(kind, shared)
    raise InvalidRequest(f"no JSON schema for the type {_convert.shown(kind)}")


def _union(args: tuple[Any, ...], shared: Definitions) -> dict[str, Any]:
    return {"anyOf": [_schema(arg, shared) for arg in args]}


def _tuple(args: tuple[Any, ...], shared: Definitions) -> dict[str, Any]:
    if args[1:] == (...,):
        return {"type": "array", "items": _schema(args[0], shared)}
    items = [_schema(arg, shared) for arg in args]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _annotated(args: tuple[Any, ...], shared: Definitions) -> dict[str, Any]:
    schema = _schema(args[0], shared)
    for note in args[1:]:
        schema |= {"description": note} if isinstance(note, str) else note if isinstance(note, Mapping) else {}
    return schema


def _dict(args: tuple[Any, ...], shared: Definitions) -> dict[str, Any]:
    if args[0] is not str:
        raise InvalidRequest(f"keys of a JSON object are str; given {_convert.shown(args[0])}")
    return {"type": "object", "additionalProperties": _schema(args[1], shared)}


BUILDERS: dict[Any, Callable[[tuple[Any, ...], Definitions], dict[str, Any]]] = {
    list: lambda args, shared: {"type": "array", "items": _schema(args[0], shared)},
    tuple: _tuple,
    dict: _dict,
    Literal: lambda args, _: {"enum": list(args)},
    Union: _union,
    types.UnionType: _union,
    typing.Annotated: _annotated,
    typing.Required: lambda args, shared: _schema(args[0], shared),
    typing.NotRequired: lambda args, shared: _schema(args[0], shared),
}


def _is_plain(kind: Any) -> bool:
    return (kind is None or isinstance(kind, type)) and kind in PLAIN


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind))


def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """The fields' types by name, and the names of those that must be given."""
    if (origin := typing.get_origin(kind)) is not None:  # Box[int]
        hints, required = _fields(origin)
        given = dict(zip(origin.__parameters__, typing.get_args(kind), strict=True))
        return {name: _filled(hint, given) for name, hint in hints.items()}, required
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # annotations are text: anything may be in them
        raise InvalidRequest(f"{kind.__name__}: {error}; define it at the top of the file") from None
    if typing.is_typeddict(kind):
        optional = {name for name, hint in hints.items() if typing.get_origin(hint) is typing.NotRequired}
        return hints, set(kind.__required_keys__) - optional
    fields = [field for field in dataclasses.fields(kind) if field.init]
    missing = dataclasses.MISSING
    required = {f.name for f in fields if f.default is missing and f.default_factory is missing}
    return {field.name: hints[field.name] for field in fields}, required


def _filled(hint: Any, given: Mapping[Any, Any]) -> Any:
    """A field's type with the parameters of its generic type given."""
    if isinstance(hint, typing.TypeVar) and hint in given:
        return given[hint]
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(given.get(one, one) for one in parameters)] if parameters else hint


def _record(kind: Any, shared: Definitions) -> dict[str, Any]:
    name = shared.name_of(kind)
    if not shared[name]:
        shared[name] = {"type": "object"}  # it may be within itself
        hints, required = _fields(kind)
        shared[name] = object_schema({key: _schema(hint, shared) for key, hint in hints.items()}, required)
    return {"$ref": f"#/$defs/{name}"}


def fields_schema(hints: dict[str, Any], required: set[str]) -> dict[str, Any]:
    """The schema of an object with these fields, by their types."""
    shared = Definitions()
    schema = object_schema({key: _schema(hint, shared) for key, hint in hints.items()}, required)
    return schema | {"$defs": shared} if shared else schema


def object_schema(properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
    """An object of these properties and no others."""
    names = [name for name in properties if name in required]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


# -- values


def parse_as(kind: Any, value: Any, place: str = "") -> Any:
    """A JSON value as a type that has a schema.  Raises Mismatch."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return parse_as(args[0], value, place)
    if origin in (Union, types.UnionType):
        return _parse_union(args, value, place)
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return _parse_choice(kind, args, value, place)
    if _is_record(origin or kind):
        return _parse_record(kind, value, place)
    if origin in (list, tuple, dict):
        return _parse_container(origin, args, value, place)
    _check(kind, value, place)
    return float(value) if kind is float else value


def _check(kind: Any, value: Any, place: str) -> None:
    if not _is_plain(kind):
        raise InvalidRequest(f"no JSON schema for the type {_convert.shown(kind)}")
    if kind is Any:
        return
    if kind is dict and not isinstance(value, dict):
        raise Mismatch(f"{_at(place)}an object expected; given {_json_of(value)}")
    wanted: Any = (int, float) if kind is float else types.NoneType if kind is None else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise Mismatch(f"{_at(place)}{getattr(kind, '__name__', kind)} expected; given {_json_of(value)}")


def _json_of(value: Any) -> str:
    """The beginning of a value's JSON, for a message."""
    try:
        return _convert.dump(value)[:80]
    except (TypeError, ValueError):
        return _convert.shown(value)


def _at(place: str) -> str:
    return f"{place}: " if place else ""


def _parse_union(args: tuple[Any, ...], value: Any, place: str) -> Any:
    problems = []
    for arg in args:
        try:
            return parse_as(arg, value, place)
        except Mismatch as problem:
            problems.append(str(problem))
    raise Mismatch("; or ".join(problems))


def _parse_choice(kind: Any, args: tuple[Any, ...], value: Any, place: str) -> Any:
    choices = {_convert.dump(c.value): c for c in kind} if not args else {_convert.dump(c): c for c in args}
    try:
        return choices[_convert.dump(value)]
    except (KeyError, TypeError, ValueError):
        raise Mismatch(f"{_at(place)}one of {', '.join(choices)} expected; given {_json_of(value)}") from None


def _parse_record(kind: Any, value: Any, place: str) -> Any:
    return kind(**parse_fields(*_fields(kind), value, place))


def parse_fields(hints: dict[str, Any], required: set[str], value: Any, place: str = "") -> dict[str, Any]:
    """The values of an object's fields.  Raises Mismatch for one that is unknown, missing or of a wrong type."""
    _check(dict, value, place)
    if unknown := [name for name in value if name not in hints]:
        raise Mismatch(f"{_at(place)}there is no {unknown[0]!r}; there are: {', '.join(hints)}")
    if missing := [name for name in hints if name in required and name not in value]:
        raise Mismatch(f"{_at(place)}missing: {', '.join(missing)}")
    return {name: parse_as(hints[name], item, f"{place}.{name}".lstrip(".")) for name, item in value.items()}


def _parse_container(origin: Any, args: tuple[Any, ...], value: Any, place: str) -> Any:
    _check(dict if origin is dict else list, value, place)
    if origin is dict:
        return {name: parse_as(args[1], item, f"{place}[{name!r}]") for name, item in value.items()}
    kinds = [args[0]] * len(value) if origin is list or args[1:] == (...,) else list(args)
    if len(kinds) != len(value):
        raise Mismatch(f"{_at(place)}{len(kinds)} items expected; given {len(value)}")
    return origin(parse_as(k, item, f"{place}[{i}]") for i, (k, item) in enumerate(zip(kinds, value, strict=True)))


__all__ = ["Mismatch", "collect_json", "parse_as", "schema_of"]
