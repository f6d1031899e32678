"""Tools: functions of the inferlet that the model may call."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import json
import operator
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _convert, chat, model
from .errors import InvalidRequest
from .structured import Mismatch, fields_schema, parse_fields

if TYPE_CHECKING:
    from .context import Context


class Tool:
    """A function with its JSON schema.  Call it as before, or with a model's arguments through `call`."""

    def __init__(self, function: Callable[..., Any], name: str = "", description: str = "") -> None:
        if not callable(function):
            raise InvalidRequest(f"a tool is a function; given {_convert.shown(function)}")
        self.function = function
        self.name = _convert.text("the name of a tool", name or getattr(function, "__name__", ""))
        if not self.name:
            raise InvalidRequest(f"this function has no name of its own: give name=; given {_convert.shown(function)}")
        text, notes = _docstring(function)
        self.description = description or text
        self._hints, self._required = _parameters(function)
        self.parameters = fields_schema(self._hints, self._required)
        for parameter, note in notes.items():
            self.parameters["properties"].get(parameter, {}).setdefault("description", note)

    def _read(self, key: str, value: Any) -> Any:
        """A value that some models write as text, where the parameter is none."""
        kind = self.parameters["properties"].get(key, {}).get("type")
        if not isinstance(value, str) or kind not in ("integer", "number", "boolean", "array", "object", "null"):
            return value
        try:
            return _convert.load(value)
        except ValueError:
            return value

    @property
    def spec(self) -> dict[str, Any]:
        """As chat templates take it."""
        described = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": described}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    async def call(self, arguments: Mapping[str, Any] | str) -> str:
        """The result for JSON arguments, as text (JSON, unless it is a str).

        What is wrong with the arguments, or was raised, is a text too, for the model: "error: ...".
        """
        try:
            given = _convert.load(arguments) if isinstance(arguments, str) else dict(arguments)
            given = {key: self._read(key, value) for key, value in given.items()} if isinstance(given, dict) else given
            result = self.function(**parse_fields(self._hints, self._required, given))
            if inspect.isawaitable(result):
                result = await result
            return result if isinstance(result, str) else _convert.dump(_plain(result))
        except (Mismatch, json.JSONDecodeError) as problem:
            return f"error: {self.name}: {problem}"
        except Exception as raised:
            return f"error: {type(raised).__name__}: {raised}"


def tool(function: Callable[..., Any] | None = None, *, name: str = "", description: str = "") -> Any:
    """Make a tool of a function, by its type hints and docstring (its "Args:" describe the parameters)."""
    if function is None:
        return lambda found: Tool(found, name, description)
    return Tool(function, name, description)


@dataclass(slots=True)
class Step:
    """One reply that called tools, and what they answered."""

    content: str
    calls: list[dict[str, Any]]
    results: list[str]


@dataclass(slots=True)
class Answer:
    """How a loop of tools ended: `text` is None if `max_steps` replies in a row called tools."""

    text: str | None
    steps: list[Step] = field(default_factory=list)


async def run_tools(
    ctx: Context,
    tools: Iterable[Tool | Callable[..., Any]],
    *,
    max_steps: int = 8,
    max_tokens: int = 256,
    **options: Any,
) -> Answer:
    """Generate and call the tools that the model asks for, several of one reply at once, until it answers.

    The context should have been made with the same `tools`, if the model's template shows them.  Options are those
    of `generate`.
    """
    by_name = {found.name: found for found in map(tool_of, tools)}
    answer = Answer(None)
    if not callable(getattr(ctx, "generate", None)):
        raise InvalidRequest(f"ctx is a Context; given {_convert.shown(ctx)}")
    for _ in range(_convert.u32("max_steps", max_steps)):
        generation = ctx.generate(max_tokens, **options)
        await generation
        text = model.detokenize(generation.tokens, model=ctx.model)
        reply = chat.parse(text, model=ctx.model, is_over=generation.finish_reason not in ("length", "deadline"))
        if not reply.tool_calls:
            answer.text = reply.content if reply.is_complete else generation.text
            return answer
        results = await asyncio.gather(*(_call(by_name, one) for one in reply.tool_calls))
        answer.steps.append(Step(reply.content, reply.tool_calls, list(results)))
        ctx.tool_results(results)
    return answer


async def _call(by_name: dict[str, Tool], asked: dict[str, Any]) -> str:
    found = by_name.get(asked["name"])
    if found is None:
        return f"error: there is no tool {asked['name']!r}; there are: {', '.join(by_name)}"
    return await found.call(asked["arguments"])


def tool_of(given: Tool | Callable[..., Any]) -> Tool:
    """A tool as it is, or made of a function."""
    return given if isinstance(given, Tool) else Tool(given)


def specs_of(tools: Iterable[Tool | Callable[..., Any] | Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """What a chat template takes; tools may be given as such dicts already."""
    return tuple(dict(one) if isinstance(one, Mapping) else tool_of(one).spec for one in tools)


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], set[str]]:
    """The parameters' types by name, and the names of those without a default."""
    name = getattr(function, "__name__", "?")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters
    except Exception as error:  # annotations are text: anything may be in them
        raise InvalidRequest(f"the tool {name}: {error}; a tool is a function of the top of the file") from None
    for parameter in parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InvalidRequest(f"a tool's parameters have names of their own; {name} has {parameter}")
        if parameter.name not in hints:
            raise InvalidRequest(f"the parameter {parameter.name!r} of the tool {name} has no type")
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    return {name: hints[name] for name in parameters}, required


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before "Args:", and what stands there of each parameter."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    notes: dict[str, str] = {}
    for line in rest.splitlines():
        name, colon, note = line.strip().partition(":")
        if not line.startswith(" "):
            break
        if colon:
            notes[name.split(" ")[0]] = note.strip()
    return text.strip(), notes


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(text: str) -> float:
    """The value of an expression of numbers, parentheses and + - * / // %: a calculator that a model may be given.

    Raises InvalidRequest for anything else, and for what has no value (1 / 0).
    """
    text = _convert.text("text", text)
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise InvalidRequest(f"cannot calculate {text[:100]!r}: {error}") from None


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            found: float = _OPERATORS[type(op)](_value(left), _value(right))
            return found
    raise ValueError(f"there is a {type(node).__name__} in it")


__all__ = ["Answer", "Step", "Tool", "calculate", "run_tools", "tool"]
