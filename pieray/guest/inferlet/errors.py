"""Errors of handlers: one class per code of the WIT enum `error-code`, named as the engine names them."""

from __future__ import annotations

from typing import Any, ClassVar


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
    """No KV page came free before the deadline, or more are asked for than the engine has.

    What helps: close contexts that are done, `truncate` or `drop` what is not needed, run fewer at a time, or wait and
    try again: the command has changed nothing.  The engine's operator sizes the pool: `model.num_pages`,
    `model.kv_memory_bytes`; how long a command waits is `limits.page_wait_s`.
    """

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


class Overloaded(Error):
    """There is no place for a child: the engine is full, or a quota of the tenant is used up; the message says when to
    try again."""

    code = "overloaded"


#: The short names by which the WIT calls the two.
Quota = QuotaExceeded
Deadline = DeadlineExceeded

CLASSES: list[type[Error]] = [Error, *Error.__subclasses__()]
BY_CODE = {cls.code: cls for cls in CLASSES}


def error_of(value: Any) -> Error:
    """The exception for the WIT's record `error`: a code and a message."""
    code = value.code.name.lower().replace("_", "-")
    return BY_CODE.get(code, Error)(value.message)
