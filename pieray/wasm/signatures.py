"""The types of the handler API: the one table that the codecs, the checks at load and the tests share.

Types are written as in WIT, with `error` for `types.error`.  `describe` writes the types of a component
the same way, so that a component whose imports are not exactly these is refused before it runs: the
codecs read value images by position and trust this check.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wasmtime import component as wc

from pieray.errors import WIT_CODES

PACKAGE = "pieray:inferlet"
VERSION = "0.1.0"

_ALIASES = {
    "error": f"record{{code: enum{{{', '.join(WIT_CODES)}}}, message: string}}",
    "failure": "record{kind: string, message: string, trace: string}",
    "log-level": "enum{debug, info, warning, error}",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """A function of flat types.  `is_fallible`: the result is `result<ok, error>`, else `ok` itself; None: nothing."""

    params: tuple[str, ...]
    ok: str | None
    is_fallible: bool

    def __str__(self) -> str:
        """As `describe_func` writes it."""
        params = ", ".join(_ALIASES.get(p, p) for p in self.params)
        result = f" -> result<{self.ok or '_'}, {_ALIASES['error']}>" if self.is_fallible else f" -> {self.ok}"
        return f"func({params}){result if self.is_fallible or self.ok else ''}"


def _fallible(*params: str, ok: str | None = None) -> Signature:
    return Signature(params, ok, is_fallible=True)


def _plain(*params: str, ok: str | None = None) -> Signature:
    return Signature(params, ok, is_fallible=False)


U32S, F32S = "list<u32>", "list<f32>"

#: interface -> function -> signature, in the order of pieray.wit
HANDLERS: dict[str, dict[str, Signature]] = {
    "tickets": {
        "wait": _fallible(U32S, "s32", ok=U32S),
        "take-none": _fallible("u32"),
        "take-tokens": _fallible("u32", ok=U32S),
        "take-floats": _fallible("u32", ok=F32S),
        "take-text": _fallible("u32", ok="string"),
        "take-distribution": _fallible("u32", ok=f"tuple<{U32S}, {F32S}>"),
        "cancel": _fallible(U32S),
    },
    "queues": {
        "create": _fallible("string", ok="u32"),
        "set-priority": _fallible("u32", "s32"),
        "flush": _fallible("u32"),
        "synchronize": _fallible("u32", ok="u32"),
        "close": _fallible("u32"),
    },
    "kv": {
        "page-size": _plain(ok="u32"),
        "alloc": _fallible("u32", ok=U32S),
        "free": _fallible(U32S),
        "fork": _fallible(U32S, ok=U32S),
        "copy": _fallible("u32", "u32", "u32", "u32", "u32", "u32", ok="u32"),
    },
    "forward": {
        "forward": _fallible("u32", U32S, "u32", U32S, U32S, U32S, ok="u32"),
        "sample": _fallible("u32", "u32", "f32", "u32", "f32", "f32", "u64", ok="u32"),
        "distribution": _fallible("u32", "u32", "u32", ok="u32"),
        "logprobs": _fallible("u32", "u32", U32S, ok="u32"),
        "logits": _fallible("u32", "u32", ok="u32"),
    },
    "model": {
        "names": _plain(ok="list<string>"),
        "info": _fallible("string", ok="string"),
        "tokenize": _fallible("string", "string", ok=U32S),
        "detokenize": _fallible("string", U32S, "bool", ok="string"),
        "stop-tokens": _fallible("string", ok=U32S),
        "render-chat": _fallible("string", "string", "bool", ok="string"),
        "stream-open": _fallible("string", "bool", ok="u32"),
        "stream-push": _fallible("u32", U32S, ok="string"),
        "stream-close": _fallible("u32"),
    },
    "session": {
        "send": _fallible("string"),
        "receive": _fallible(ok="u32"),
    },
    "runtime": {
        "version": _plain(ok="string"),
        "instance-id": _plain(ok="string"),
        "limits": _plain(ok="string"),
        "monotonic-now": _plain(ok="u64"),
        "wall-now": _plain(ok="u64"),
        "random-u64": _plain(ok="u64"),
        "log": _fallible("log-level", "string"),
    },
}

#: the exports, of which a program has one, and how many strings each takes
EXPORTS: dict[str, int] = {"run": 1, "run-source": 3}


def export_signature(name: str) -> str:
    params = ", ".join(["string"] * EXPORTS[name])
    return f"func({params}) -> result<string, {_ALIASES['failure']}>"


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
