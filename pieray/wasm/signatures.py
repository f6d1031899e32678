"""The types of the handler API, from pieray.wit: what the codecs, the checks at load and the tests share.

Types are written as in WIT, with `error` for `types.error`.  `describe` writes the types of a component
the same way, so that a component whose imports are not exactly these is refused before it runs: the
codecs read value images by position and trust this check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wasmtime import component as wc

from pieray.wit import Function, api

PACKAGE, VERSION = api().package, api().version

#: enums of the API by name; a function's parameter of such a type is a string to Python
ENUMS = api().enums

_ALIASES = {
    "error": f"record{{code: enum{{{', '.join(ENUMS['error-code'])}}}, message: string}}",
    "failure": "record{kind: string, message: string, trace: string}",
    **{name: f"enum{{{', '.join(cases)}}}" for name, cases in ENUMS.items()},
}


@dataclass(frozen=True, slots=True)
class Signature:
    """A function of flat types.  `is_fallible`: the result is `result<ok, error>`, else `ok` itself; None: nothing."""

    params: tuple[str, ...]
    ok: str | None
    is_fallible: bool

    @classmethod
    def of(cls, function: Function) -> Signature:
        return cls(tuple(kind for _, kind in function.params), function.ok, function.is_fallible)

    def __str__(self) -> str:
        """As `describe_func` writes it."""
        params = ", ".join(_ALIASES.get(p, p) for p in self.params)
        result = f" -> result<{self.ok or '_'}, {_ALIASES['error']}>" if self.is_fallible else f" -> {self.ok}"
        return f"func({params}){result if self.is_fallible or self.ok else ''}"


#: interface -> function -> signature, in the order of pieray.wit
HANDLERS: dict[str, dict[str, Signature]] = {
    interface.name: {function.name: Signature.of(function) for function in interface.functions}
    for interface in api().interfaces
}

_FAILURE = _ALIASES["failure"]
#: what inferlets export, and what the component that runs source does
INFERLET_EXPORTS = {"run": f"func(string) -> result<string, {_FAILURE}>"}
RUNTIME_EXPORTS = {
    "prepare": "func()",
    "compile-source": f"func(string, string) -> result<string, {_FAILURE}>",
    "run-source": f"func(string, string, string, u64, string) -> result<string, {_FAILURE}>",
}


def describe_func(func: wc.FuncType) -> str:
    """The type of a component's function, names of parameters left out."""
    params = ", ".join(describe(kind) for _, kind in func.params)
    result = func.result
    return f"func({params})" + (f" -> {describe(result)}" if result is not None else "")


def describe(kind: Any) -> str:
    """A component's value type, as WIT text with records, enums and variants written out."""
    match kind:
        case None:
            text = "_"
        case wc.ListType():
            text = f"list<{describe(kind.element)}>"
        case wc.OptionType():
            text = f"option<{describe(kind.payload)}>"
        case wc.TupleType():
            text = f"tuple<{', '.join(describe(e) for e in kind.elements)}>"
        case wc.ResultType():
            text = f"result<{describe(kind.ok)}, {describe(kind.err)}>"
        case wc.RecordType():
            text = f"record{{{', '.join(f'{name}: {describe(t)}' for name, t in kind.fields)}}}"
        case wc.EnumType():
            text = f"enum{{{', '.join(kind.names)}}}"
        case wc.VariantType():
            text = f"variant{{{', '.join(name if t is None else f'{name}({describe(t)})' for name, t in kind.cases)}}}"
        case _:
            text = type(kind).__name__.removesuffix("Type").lower()
    return text
