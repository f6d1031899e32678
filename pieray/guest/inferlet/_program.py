"""Running an inferlet given as source text: prepare, compile, bind the input to main()'s parameters, run, report."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import marshal
import random
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, TypeGuard

from . import _convert, _host, _loop, _report, _running
from .errors import InvalidRequest

MODULE = "inferlet_main"

_REHEARSAL_FILE = "<rehearsal>"
_REHEARSAL = """
from typing import Any
from inferlet import Context, session
async def main(prompt: str, limit: int, temperature: float = 0.0, stop: list[str] | str = "") -> dict[str, Any]:
    if not limit:
        return {"text": prompt, "num_tokens": 0}
    async with Context() as ctx:
        ctx.append(prompt)
        async for token in ctx.generate(limit, temperature=temperature, stop=stop):
            session.send(token.text or " ")
        generation = ctx.generate(limit, temperature=temperature, stop_tokens=())
        await session.stream(generation)
    return {"text": generation.text, "num_tokens": generation.num_tokens}
"""

_rehearsal: list[str] = []  # its code, once it has been compiled


class ProgramFailed(Exception):
    """How an inferlet failed: class of the exception, its text, the traceback of its own frames."""

    def __init__(self, error: BaseException) -> None:
        self.kind = _convert.printable(type(error).__name__)
        self.message = _convert.printable(_text_of(error))
        try:
            self.trace = _convert.printable(_report.format_error(error))
        except Exception:  # what the error itself may raise, or want of memory or stack
            self.trace = f"{self.kind}: {self.message}\n"
        super().__init__(self.message)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as raised:
        return f"no text: its __str__ raises {type(raised).__name__}"


def prepare(limit: int = 0) -> None:
    """Do once what every run needs: what CPython sets up at first use, and the memory for it, is there from now on.

    At build time it becomes part of the component's image, and calls no handler.  In a guest it makes the pages of that
    image that all guests write to the guest's own, and generates `limit` tokens, twice, with handlers that do nothing;
    the rehearsal's code is the image's.
    """
    if _host.is_component:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a text file in the component
        asyncio.events.new_event_loop = asyncio.new_event_loop = _loop.TicketLoop
    if not _rehearsal:
        _rehearsal.append(compile_source(_REHEARSAL, _REHEARSAL_FILE))
    try:
        _run(_REHEARSAL, _REHEARSAL_FILE, _rehearsal[0], f'{{"prompt": "rehearsal", "limit": {limit}}}')
    finally:
        _host.forget()
        _report.forget_source(_REHEARSAL_FILE)
        sys.modules.pop(MODULE, None)


def compile_source(source: str, filename: str) -> str:
    """The code of a program, for `run_source` here and elsewhere.  Raises ProgramFailed."""
    try:
        _report.register_source(filename, source)  # an error in it is shown with its line
        return marshal.dumps(compile(source, filename, "exec", dont_inherit=True)).decode("latin-1")
    except BaseException as error:
        raise ProgramFailed(error) from None


def run_source(source: str, filename: str, code: str, seed: int, text: str) -> str:
    """Run main() of a program with the JSON object `text` as keyword arguments; its result as JSON.

    `code`: what `compile_source` gave for it.  `seed`: of the module `random`.  Raises ProgramFailed, whatever was
    raised.
    """
    try:
        random.seed(seed)  # a snapshot's state would be the same in all guests
        return _run(source, filename, code, text)
    except SystemExit as error:
        if error.code in (None, 0):
            return "null"
        raise ProgramFailed(error) from None
    except BaseException as error:
        raise ProgramFailed(error) from None
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the inferlet may have put anything there
                stream.flush()


def _run(source: str, filename: str, code: str, text: str) -> str:
    _report.register_source(filename, source)
    module = ModuleType(MODULE)
    module.__file__ = filename
    sys.modules[MODULE] = module  # dataclasses and pickle look a class's module up
    exec(marshal.loads(code.encode("latin-1")), module.__dict__)
    main = getattr(module, "main", None)
    if not callable(main):
        raise InvalidRequest(f"{filename} defines no main(): an inferlet is `async def main(prompt: str, ...)`")
    result = main(**arguments_of(main, text))
    if inspect.isawaitable(result):
        result = _running.run(result if inspect.iscoroutine(result) else _await(result))
    return _to_json(result)


async def _await(awaitable: Any) -> Any:
    return await awaitable


def arguments_of(main: Callable[..., Any], text: str) -> dict[str, Any]:
    """The keyword arguments that the launch input gives to main().  Raises InvalidRequest."""
    try:
        given = _convert.load(text) if text.strip() else {}
    except ValueError as error:
        raise InvalidRequest(f"the input is no JSON: {error}") from None
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise InvalidRequest(f"the input is a JSON object of main()'s arguments; given {type(given).__name__}")
    if _is_plain(main) and _takes(main, given):
        return given
    signature = inspect.signature(main)
    problem = _mismatch(signature, given)
    if problem:
        raise InvalidRequest(f"main() takes {_describe(signature)}; {problem}")
    return given


def _is_plain(main: Callable[..., Any]) -> TypeGuard[FunctionType]:
    """Whether its code says what it takes: nothing wraps it or gives it another signature."""
    return isinstance(main, FunctionType) and not main.__dict__ and not main.__code__.co_posonlyargcount


def _takes(main: FunctionType, given: dict[str, Any]) -> bool:
    """Whether all of the arguments, and none that is missing, are parameters by name.

    `inspect` says the same, but evaluates the annotations for it.
    """
    code, defaults = main.__code__, main.__defaults__ or ()
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if not given.keys() <= set(named):
        return False
    required = named[: code.co_argcount - len(defaults)] + named[code.co_argcount :]
    optional = main.__kwdefaults__ or {}
    return all(name in given or name in optional for name in required)


def _mismatch(signature: inspect.Signature, given: dict[str, Any]) -> str:
    """What is wrong with the arguments, or nothing."""
    parameters = signature.parameters.values()
    kinds = inspect.Parameter
    named = {p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        for name in given:
            if name not in named:
                near = difflib.get_close_matches(name, named, n=1)
                return f"there is no {name!r}" + (f", did you mean {near[0]!r}?" if near else "")
    missing = [p.name for p in parameters if p.name in named and p.default is p.empty and p.name not in given]
    return f"missing: {', '.join(missing)}" if missing else ""


def _describe(signature: inspect.Signature) -> str:
    return ", ".join(map(str, signature.parameters.values())) or "no arguments"


def _to_json(result: Any) -> str:
    try:
        return _convert.dump(result)
    except (TypeError, ValueError) as error:
        raise TypeError(f"main() returned what JSON cannot hold: {error}") from None
