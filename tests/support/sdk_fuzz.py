"""An inferlet that calls every public function and method of the SDK with hostile values, one parameter at a time.

What may be called is found by looking at the package, so that nothing is forgotten.  It runs in a guest and, on a host
of `inferlet.testing`, outside of one.  `main` returns what was neither a result nor a typed error.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import inferlet
from inferlet import (
    Context,
    Error,
    Mismatch,
    children,
    embeds,
    forward,
    grammar,
    http,
    kv,
    mcp,
    model,
    plans,
    queue,
    tensor,
)

from inferlet import runtime, structured, tickets, tools  # isort: skip

SURROGATE = "\ud800"
WAIT_S = 0.05


class Hostile:
    """Nothing of it works."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def nested_tuple(depth: int) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ()
    for _ in range(depth):
        found = (found,)
    return found


class Number(enum.IntEnum):
    LOW = -1


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**32,
    2**64,
    -(2**63),
    10**400,
    1.5,
    -0.5,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x",
    SURROGATE,
    "a" + SURROGATE,
    "\0",
    b"",
    b"\xff",
    [],
    [-1],
    [2**32],
    [1.5],
    ["x"],
    [SURROGATE],
    [None],
    [[]],
    (),
    {},
    {"a": 1},
    {SURROGATE: 1},
    {"a": SURROGATE},
    {"a": math.nan},
    {1: 2},
    {"x": {"y": object()}},
    {5},
    range(3),
    nested(2_000),
    nested_tuple(2_000),
    object(),
    object,
    int,
    len,
    Hostile(),
    lambda *_, **__: None,
    lambda *_, **__: [-1],
    Number.LOW,
    1j,
    ...,
]

#: What is called as Python's own is, and raises what that raises.
AS_PYTHON = {
    "scratch.open": (ValueError, OSError),
    "scratch.read_text": (UnicodeDecodeError,),
    "http.Response.json": (ValueError,),
    "gather": (),
    "sleep": (ValueError, OverflowError),
    "timeout": (OverflowError,),
    "TaskGroup": (),
    **dict.fromkeys(("log.debug", "log.info", "log.warning", "log.error"), (RuntimeError, RecursionError)),  # as str()
}
#: What a program does not make itself, but gets from a function that is called.
SKIPPED = {"Generation", "tensor.Tensor"}


def shared() -> dict[str, Any]:
    """Right values by parameter; callables are called for a fresh one."""
    line = queue.create()
    return {
        # handles and objects
        "queue": lambda: line,
        "pages": lambda: kv.alloc(1),
        "page": lambda: kv.alloc(1)[0],
        "src": lambda: kv.alloc(1)[0],
        "dst": lambda: kv.alloc(1)[0],
        "pass_": step,
        "ctx": lambda: Context("ab"),
        "draft": lambda: Context("ab"),
        "verifier": lambda: Context("ab"),
        "tickets": lambda: [runtime.sleep(0).id],
        "ticket": lambda: runtime.sleep(0).id,
        "id": 7,
        "handle": 3,
        "embeds": lambda: [embeds.text([1])],
        "sampler": lambda: inferlet.Sampler(seed=1),
        "matcher": 0,
        "adapter": None,
        # numbers
        "src_offset": 0,
        "dst_offset": 0,
        "offset": 0,
        "count": 1,
        "kv_len": 0,
        "max_tokens": 2,
        "logits": [0.5, 0.25],
        "indices": 1,
        "weights": 1,
        "question": "ab",
        "prompt": "ab",
        "n": 2,
        "num_tokens": 1,
        "num_drafts": 1,
        "k": 2,
        "row": 0,
        "priority": 1,
        "timeout_ms": 1,
        "seconds": 0.0,
        "timeout": 0.01,
        "seed": 1,
        "length": 1,
        "start": 0,
        "end": 1,
        "num_rows": 1,
        "status": 200,
        "delay": 0,
        # lists
        "tokens": [1, 2],
        "drafts": [1],
        "values": [0.5],
        "rows": [0],
        "runs": [1],
        "tools": (),
        "headers": [],
        "calls": [],
        "results": [],
        "messages": [{"role": "user", "content": "a"}],
        # texts
        "text": "ab",
        "name": "n",
        "prefix": "n",
        "key": "k",
        "value": "v",
        "expected": "v",
        "path": "f",
        "data": b"x",
        "width": 8,
        "height": 8,
        "photos": [],
        "mode": "r",
        "message": "m",
        "topic": "t",
        "server": "s",
        "tool": "t",
        "url": "http://127.0.0.1:9/",
        "method": "GET",
        "role": "user",
        "content": "hi",
        "continuation": "b",
        "kind": "regex",
        "expression": "[ab]+",
        "program": "none",
        "model": "",
        "reason": "x",
        "description": "",
        "bytes": b"",
        # others
        "args": {},
        "arguments": {},
        "schema": {"type": "integer"},
        "type": int,
        "function": one,
        "take": len,
        "is_error": False,
        "reuse": False,
        "input_schema": {},
        # tensor programs
        "condition": lambda: tensor.Tensor(tensor._Trace(), 0),
        "left": lambda: tensor.Tensor(tensor._Trace(), 0),
        "x": lambda: tensor.Tensor(tensor._Trace(), 0),
        "right": 1.0,
        "index": 1,
        "axis": 0,
        "size": "V",
        "code": "{}",
        "stage": "logits",
        "vector": [0.5],
        "layer": 0,
        "num_pages": 1,
        "states": {},
        "update": one,
        "target": step,
        "programs": (),
    }


def one(x: int = 1) -> int:
    """A tool."""
    return x


def step() -> forward.Pass:
    return forward.forward(queue.create(), kv.alloc(1), 0, [1, 2])


def objects() -> dict[type, Callable[[], Any]]:
    """An object of each class that a program gets from the SDK."""
    return {
        Context: lambda: Context("ab"),
        inferlet.Generation: lambda: Context("ab").generate(2),
        inferlet.DraftModel: lambda: inferlet.DraftModel(Context("ab"), Context("ab")),
        inferlet.Sampler: lambda: inferlet.Sampler(seed=1),
        inferlet.SamplerHandle: lambda: inferlet.Sampler(seed=1).handle(),
        inferlet.Grammar: lambda: inferlet.Grammar.regex("[ab]+"),
        inferlet.Matcher: lambda: inferlet.Matcher(3),
        inferlet.Plan: lambda: plans.Plan(queue.create(), kv.alloc(1), 0, [1], 2),
        inferlet.Child: lambda: inferlet.Child(9),
        inferlet.Adapter: lambda: inferlet.Adapter(9, "a"),
        inferlet.Tool: lambda: tools.tool(one),
        forward.Pass: step,
        forward.Samples: lambda: step().samples([0]),
        embeds.Embedding: lambda: embeds.text([1]),
        tickets.Ticket: lambda: runtime.sleep(0),
        model.TextStream: model.TextStream,
        http.Response: lambda: http.Response(200, "u", [("a", "b")], b"{}"),
        mcp.Tool: lambda: mcp.Tool("s", "t", "", {}),
        mcp.Result: lambda: mcp.Result(False, []),
        tensor.Tensor: lambda: tensor.Tensor(tensor._Trace(), 0),
        tensor.TensorProgram: lambda: tensor.logits(lambda logits: logits),
        inferlet.messaging.Subscription: lambda: inferlet.messaging.Subscription("t", 5),
    }


def callables() -> Iterator[tuple[str, Any, type | None]]:
    """(name, function, the class whose method it is): all that is public."""
    seen: set[int] = set()
    modules = [value for name in inferlet.__all__ if inspect.ismodule(value := getattr(inferlet, name))]
    for module in [inferlet, *modules]:
        for name, found in public(module):
            if id(found) in seen or inspect.ismodule(found):
                continue
            seen.add(id(found))
            path = name if module is inferlet else f"{module.__name__.split('.')[-1]}.{name}"
            if inspect.isclass(found):
                if not issubclass(found, (BaseException, dict)):
                    yield from members(path, found)
                if not issubclass(found, tuple):
                    yield path, found, None
            elif callable(found):
                yield path, found, None


def public(module: Any) -> list[tuple[str, Any]]:
    names = getattr(module, "__all__", None)
    if names is not None:
        return [(name, getattr(module, name)) for name in names]
    mine = [(n, v) for n, v in vars(module).items() if not n.startswith("_")]
    return [(n, v) for n, v in mine if callable(v) and getattr(v, "__module__", "") == module.__name__]


def members(path: str, kind: type) -> Iterator[tuple[str, Any, type | None]]:
    for base in reversed(kind.__mro__):
        for name, member in vars(base).items():
            if base.__module__.startswith("inferlet") and not name.startswith("_") and callable(getattr(kind, name)):
                is_static = isinstance(member, (staticmethod, classmethod))
                yield f"{path}.{name}", getattr(kind, name), None if is_static else kind


@functools.cache
def parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    except ValueError:
        return []


async def main(first: int = 0, last: int = 1 << 30) -> dict[str, Any]:
    """Call the functions with these numbers: how many there are, outcomes by class, and what was wrong."""
    found = sorted(callables(), key=lambda item: item[0])
    given, makers = shared(), objects()
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for name, function, owner in found[first:last]:
        if name in SKIPPED:
            continue
        if owner is not None and owner not in makers:
            wrong.append(f"{name}: no object of its class to call it on")
            continue
        for parameter in parameters(function):
            for number, value in enumerate(VALUES):
                maker, allowed = makers.get(owner) if owner else None, AS_PYTHON.get(name, ())
                outcome = await call(function, maker, given, parameter, value, allowed)
                outcomes[outcome.split(":")[0]] += 1
                if outcome.startswith("!"):
                    wrong.append(f"{name}({parameter.name}=VALUES[{number}]): {outcome[:200]}")
    return {"num_functions": len(found), "outcomes": outcomes, "wrong": wrong}


async def call(
    function: Any, maker: Any, given: dict[str, Any], hostile: inspect.Parameter, value: Any, allowed: tuple[type, ...]
) -> str:
    """How one call ends; "!..." for what is neither a typed error nor `allowed`."""
    arguments: dict[str, Any] = {}
    positional: list[Any] = []
    try:
        made = [] if maker is None else [maker()]
        for parameter in parameters(function):
            if parameter is hostile or parameter.name == hostile.name:
                chosen = value
            elif (parameter.name != "timeout_ms" and parameter.default is not parameter.empty) or parameter.kind in (
                parameter.VAR_KEYWORD,
                parameter.VAR_POSITIONAL,
            ):
                continue
            else:
                chosen = given[parameter.name]
                if callable(chosen) and parameter.name not in ("function", "type", "take", "update"):
                    chosen = chosen()
            if parameter.kind is parameter.POSITIONAL_ONLY or parameter.kind is parameter.VAR_POSITIONAL:
                positional.append(chosen)
            elif parameter.kind is parameter.VAR_KEYWORD:
                arguments["more"] = chosen
            else:
                arguments[parameter.name] = chosen
    except Error as error:
        return f"no object: {type(error).__name__}"
    try:
        result = function(*made, *positional, **arguments)
        if inspect.isawaitable(result):
            async with asyncio.timeout(WAIT_S):
                await result
        elif hasattr(result, "__aiter__") and not isinstance(result, type(inferlet.session)):
            async with asyncio.timeout(WAIT_S):
                async for _ in result:
                    break
        elif hasattr(result, "close") and not isinstance(result, type):
            with contextlib.suppress(Error):
                result.close()
    except TimeoutError:
        return "waits"
    except (Error, TypeError, Mismatch, *allowed) as error:
        return type(error).__name__
    except Exception as error:
        return f"!{type(error).__name__}: {error}"
    finally:
        for thing in (*made, *arguments.values()):
            if isinstance(thing, (Context, plans.Plan, inferlet.SamplerHandle, model.TextStream)):
                thing.close()
        for pages in (arguments.get("pages"), *(a for n, a in arguments.items() if n in ("page", "src", "dst"))):
            with contextlib.suppress(Error, TypeError):
                kv.free([pages] if isinstance(pages, int) else pages)
    return "ok"


__all__ = ["children", "grammar", "structured"]
