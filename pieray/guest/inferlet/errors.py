"""Errors of handlers: one class per code of the WIT enum `error-code`, named as the engine names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, ParamSpec, TypeVar, cast

from ._host import Err

P = ParamSpec("P")
R = TypeVar("R")


class Error(Exception):
    """Base of all errors that handlers report."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(Error):
    """An argument is outside its documented range."""

    code = "invalid"


class BadHandle(Error):
    """A handle was never given to this inferlet, or is closed."""

    code = "bad-handle"


class Denied(Error):
    """The inferlet lacks the capability."""

    code = "denied"


class OutOfPages(Error):
    """No KV page came free before the deadline."""

    code = "out-of-pages"


class QuotaExceeded(Error):
    """A limit of this inferlet is used up; the message names it."""

    code = "quota"


class Evicted(Error):
    """The resource was taken back."""

    code = "evicted"


class DeviceLost(Error):
    """The batcher died with the command in flight."""

    code = "device-lost"


class DeadlineExceeded(Error, TimeoutError):
    """The time allowed has passed."""

    code = "deadline"


class Cancelled(Error):
    """The command was cancelled."""

    code = "cancelled"


class NotFound(Error):
    """There is no such thing by that name."""

    code = "not-found"


class Pending(Error):
    """The ticket has no result yet."""

    code = "pending"


class WrongType(Error):
    """The value behind the ticket has another type than was asked for."""

    code = "wrong-type"


class Unsupported(Error):
    """This engine cannot do that."""

    code = "unsupported"


class PeerLost(Error):
    """The process at the other end (a broker, a child's actor, a server) is gone."""

    code = "peer-lost"


class RemoteFailed(Error):
    """The child, or the server that was asked, failed by itself; the message is its own."""

    code = "failed"


#: The short names by which the WIT calls the two.
Quota = QuotaExceeded
Deadline = DeadlineExceeded

CLASSES: list[type[Error]] = [Error, *Error.__subclasses__()]
BY_CODE = {cls.code: cls for cls in CLASSES}


def error_of(err: Any) -> Error:
    """The exception for what a binding raised as `Err`."""
    value = err.value
    code = value.code.name.lower().replace("_", "-")
    return BY_CODE.get(code, Error)(value.message)


def raises(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function`, or what it awaits, raise `Error` where the bindings raise `Err`.

    Integers and texts are checked first: the bindings abort the whole guest for one that does not fit its type.
    """
    check = _argument_check(function)
    if inspect.iscoroutinefunction(function):
        return cast("Callable[P, R]", _raises_async(function, check))

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if check is not None:
            check(args, kwargs)
        try:
            return function(*args, **kwargs)
        except Err as err:
            raise error_of(err) from None

    return call


Check = Callable[[tuple[Any, ...], dict[str, Any]], None]


def _raises_async(function: Callable[P, Any], check: Check | None) -> Callable[P, Any]:
    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        if check is not None:
            check(args, kwargs)
        try:
            return await function(*args, **kwargs)
        except Err as err:
            raise error_of(err) from None

    return call


SIGNED = frozenset({"priority", "timeout_ms", "row"})
"""Parameters that may be negative: s32 in the WIT, or counted from the end."""
WIDE = frozenset({"seed"})
"""Parameters that are u64 in the WIT."""


def check_number(name: str, value: object) -> None:
    """Raise InvalidRequest unless `value` is an integer that the WIT's type for `name` holds."""
    low = -(1 << 31) if name in SIGNED else 0
    high = (1 << 64 if name in WIDE else 1 << 31 if name in SIGNED else 1 << 32) - 1
    if not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} is an integer from {low} to {high}; given {value!r}")


def check_numbers(name: str, values: Any) -> None:
    """Raise InvalidRequest naming the first of `values` that is no u32."""
    for value in values:
        check_number(name, value)


def check_text(name: str, value: object) -> None:
    """Raise InvalidRequest unless `value` is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} is text; given {value!r:.100}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{name} is not Unicode text: {error}") from None


def _argument_check(function: Callable[..., Any]) -> Check | None:
    """The check of the parameters that are annotated as integers, sequences of them, or text; None if none are."""
    names = list(inspect.signature(function).parameters)
    kinds = {n: str(a) for n, a in function.__annotations__.items() if n != "return"}
    checks: dict[str, Callable[[str, Any], None]] = {}
    checks |= {n: check_number for n, kind in kinds.items() if kind in ("int", "<class 'int'>")}
    checks |= {n: check_text for n, kind in kinds.items() if kind in ("str", "<class 'str'>")}
    checks |= {n: check_numbers for n, kind in kinds.items() if kind in ("list[int]", "Sequence[int]")}
    if not checks:
        return None

    def check(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in checks:
                checks[name](name, value)

    return check
