"""What a Python inferlet's `main` takes, read from its source: nothing of it is run."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pieray.errors import ConfigError
from pieray.programs.sources import ProgramSource


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of `main`."""

    name: str
    annotation: ast.expr | None
    is_required: bool
    may_be_none: bool
    """Its default is None, whatever its annotation says."""

    def fits(self, value: object) -> bool:
        """Whether a JSON value may be given for it: True too where the annotation does not tell."""
        if self.annotation is None or (value is None and self.may_be_none):
            return True
        return fits(value, self.annotation)

    def __str__(self) -> str:
        return ast.unparse(self.annotation) if self.annotation is not None else "anything"


class MainFunction:
    """The parameters of a `main`; of one that is not known, `parameters` is None and everything fits."""

    def __init__(self, parameters: Mapping[str, Parameter] | None = None, *, takes_any: bool = False) -> None:
        self.parameters = parameters
        self.takes_any = takes_any
        """It has `**kwargs`."""

    def knows(self, name: str) -> bool:
        """Whether `main` is known to have a parameter of that name."""
        return self.parameters is not None and name in self.parameters

    def is_text(self, name: str) -> bool:
        """Whether words for it are strings as they stand: nothing but a string (or None) fits."""
        others: tuple[object, ...] = (0, 0.5, True, [], {})
        return self.fits(name, "") and not any(self.fits(name, value) for value in others)

    def is_flag(self, name: str) -> bool:
        """Whether it may be given without a value."""
        return self.fits(name, True)

    def fits(self, name: str, value: object) -> bool:
        """Whether a JSON value may be given for a parameter: True for one that is not known."""
        parameter = (self.parameters or {}).get(name)
        return parameter is None or parameter.fits(value)

    def kind_of(self, name: str) -> str:
        """Its annotation, for an error."""
        return str((self.parameters or {})[name])

    def check(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError for an argument that `main` does not take, one that is missing, one of another type."""
        if self.parameters is None:
            return
        for name, value in values.items():
            parameter = self.parameters.get(name)
            if parameter is None and not self.takes_any:
                near = difflib.get_close_matches(name, self.parameters, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {self}"
                raise ConfigError(f"main() has no argument {name!r}; {hint}")
            if parameter is not None and not parameter.fits(value):
                raise ConfigError(f"argument {name!r} of main() is {parameter}; given {value!r}")
        missing = [p.name for p in self.parameters.values() if p.is_required and p.name not in values]
        if missing:
            raise ConfigError(f"main() takes {self}; missing: {', '.join(missing)}")

    def __str__(self) -> str:
        return ", ".join(f"{p.name}: {p}" if p.annotation else p.name for p in (self.parameters or {}).values()) or (
            "no arguments"
        )


def main_of(program: ProgramSource) -> MainFunction:
    """What is known of the program's `main`: nothing of a component's, nor of one that is no plain function."""
    if not program.source:
        return MainFunction()
    try:
        body = ast.parse(program.source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return MainFunction()  # the inferlet will say so, with the line
    binding = [node for node in body if _binds_main(node)]
    if len(binding) != 1:
        return MainFunction()
    main = binding[0]
    if not isinstance(main, ast.FunctionDef | ast.AsyncFunctionDef) or main.decorator_list or main.args.posonlyargs:
        return MainFunction()
    arguments = main.args
    if arguments.vararg is not None:
        return MainFunction()
    num_without = len(arguments.args) - len(arguments.defaults)
    names = [*arguments.args, *arguments.kwonlyargs]
    defaults = [*([None] * num_without), *arguments.defaults, *arguments.kw_defaults]
    found = {
        name.arg: Parameter(name.arg, name.annotation, default is None, _is_none(default))
        for name, default in zip(names, defaults, strict=True)
    }
    return MainFunction(found, takes_any=arguments.kwarg is not None)


def _binds_main(statement: ast.stmt) -> bool:
    """Whether a statement of the module may give the name `main` a value."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return statement.name == "main"
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == "main":
            return True
        if isinstance(node, ast.alias) and (node.asname or node.name) in ("main", "*"):
            return True
        if isinstance(node, ast.Name) and node.id == "main" and isinstance(node.ctx, ast.Store | ast.Del):
            return True
    return False


def fits(value: object, kind: ast.expr) -> bool:
    """Whether a JSON value is of an annotated type; True for annotations that say nothing about JSON."""
    if isinstance(kind, ast.Constant):
        return _fits_constant(value, kind.value)
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return fits(value, kind.left) or fits(value, kind.right)
    if isinstance(kind, ast.Subscript):
        return _fits_generic(value, _name(kind.value), kind.slice)
    check = _PLAIN.get(_name(kind))
    return check is None or check(value)


def _fits_constant(value: object, kind: object) -> bool:
    if kind is None:
        return value is None
    if isinstance(kind, str):  # an annotation in quotes
        try:
            return fits(value, ast.parse(kind, mode="eval").body)
        except SyntaxError:
            return True
    return True


def _fits_generic(value: object, name: str, inner: ast.expr) -> bool:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name in _SEQUENCES and isinstance(value, list):
        found = all(fits(one, inner) for one in value)
    elif name in _MAPPINGS and isinstance(value, dict):
        found = len(parts) != 2 or all(fits(one, parts[1]) for one in value.values())
    elif name in ("Optional", "Union"):
        found = (name == "Optional" and value is None) or any(fits(value, part) for part in parts)
    elif name == "Annotated":
        found = fits(value, parts[0])
    elif name == "Literal":
        allowed = [part.value for part in parts if isinstance(part, ast.Constant)]
        found = len(allowed) < len(parts) or any(value == one and type(value) is type(one) for one in allowed)
    else:
        check = _PLAIN.get(name)
        found = check is None or check(value)
    return found


def _name(node: ast.expr) -> str:
    """`int` of `int`, `Any` of `typing.Any`; "" of anything else."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


_SEQUENCES = frozenset({"list", "List", "Sequence", "MutableSequence", "Iterable", "Collection"})
_MAPPINGS = frozenset({"dict", "Dict", "Mapping", "MutableMapping"})
_PLAIN: dict[str, Callable[[object], bool]] = {
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": _is_number,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    **dict.fromkeys([*_SEQUENCES, "tuple", "Tuple"], _is_list),
    **dict.fromkeys(_MAPPINGS, _is_mapping),
}
