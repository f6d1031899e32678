"""Every error that pieray reports: one base, one code each, one place.

A code is the WIT `error-code` that a guest sees (`pieray/wit/pieray.wit`); a class is what a client
catches; `http_status` is what the HTTP door answers; `exit_code` is what the command line exits with
(1: the inferlet failed, 2: usage, 3: the engine failed).  The text names the limit and the value given.
"""

from __future__ import annotations

from typing import ClassVar

MAX_TEXT = 2 << 10
"""Characters of an error's text: it travels to clients, guests and logs, whatever library wrote it."""
MAX_REPORT = 32 << 10
"""Characters of one that reports what a program wrote: a traceback with log lines, what a compiler said."""


def shortened(text: str, limit: int) -> str:
    """A text of at most about `limit` characters: of a longer one its begin and its end, and how much is left out."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]} ... ({len(text) - limit} characters left out) ... {text[-tail:]}"


class PierayError(Exception):
    """Base of all errors of pieray.  `message` is `shortened` to `max_text`."""

    max_text: ClassVar[int] = MAX_TEXT
    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 3
    retry_after_s: float = 0.0
    """After so many seconds it is worth trying again; 0: nobody knows."""

    def __init__(self, message: str = "") -> None:
        self.message = shortened(message, self.max_text)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[type[PierayError], tuple[str]]:
        return type(self), (self.message,)


class InvalidRequest(PierayError):
    """An argument is outside its documented range."""

    code, http_status, exit_code = "invalid", 400, 1


class BadHandle(PierayError):
    """A handle was never given to this inferlet, or is closed."""

    code, http_status, exit_code = "bad-handle", 400, 1


class Denied(PierayError):
    """The caller lacks the capability."""

    code, http_status, exit_code = "denied", 403, 1


class OutOfPages(PierayError):
    """No KV page came free before the deadline."""

    code, http_status, exit_code = "out-of-pages", 503, 1


class QuotaExceeded(PierayError):
    """A limit of this inferlet is used up; `limit` names the field of `Limits`."""

    code, http_status, exit_code = "quota", 429, 1


class ChildCeiling(QuotaExceeded):
    """As many inferlets run as `child_ceiling` says: no child is launched until some of them end."""

    code = "child-ceiling"


class Overloaded(PierayError):
    """No place for a launch: too many wait, none came free in time, or a quota of the tenant is used up.  What runs is
    not touched; `retry_after_s` says when there may be one, as things have gone lately."""

    code, http_status, exit_code = "overloaded", 503, 3

    def __init__(self, message: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[Overloaded], tuple[str, float]]:  # type: ignore[override]
        return type(self), (self.message, self.retry_after_s)


class Evicted(PierayError):
    """The resource was taken back."""

    code, http_status, exit_code = "evicted", 410, 1


class DeviceLost(PierayError):
    """The batcher or the resource manager died with the command in flight."""

    code, http_status = "device-lost", 503


class DeadlineExceeded(PierayError):
    """The time allowed has passed."""

    code, http_status, exit_code = "deadline", 504, 1


class Cancelled(PierayError):
    """The command, or the inferlet, was cancelled."""

    code, http_status, exit_code = "cancelled", 499, 1


class NotFound(PierayError):
    """There is no such thing by that name."""

    code, http_status, exit_code = "not-found", 404, 2


class Pending(PierayError):
    """The ticket has no result yet."""

    code, http_status, exit_code = "pending", 409, 1


class WrongType(PierayError):
    """The value behind the ticket has another type than was asked for."""

    code, http_status, exit_code = "wrong-type", 400, 1


class Unsupported(PierayError):
    """This engine cannot do that."""

    code, http_status, exit_code = "unsupported", 501, 2


class RemoteFailed(PierayError):
    """A child, or a server that was asked, failed by itself; the text is its own."""

    max_text = MAX_REPORT
    code, http_status, exit_code = "failed", 502, 1


class GuestFailed(PierayError):
    """The inferlet's own code raised; the text carries its traceback."""

    max_text = MAX_REPORT
    code, http_status, exit_code = "guest-failed", 500, 1


class GuestTrapped(PierayError):
    """The inferlet's wasm trapped: out of bounds, stack exhausted, unreachable, exit."""

    max_text = MAX_REPORT
    code, http_status, exit_code = "guest-trapped", 500, 1


class ModelError(PierayError):
    """A model folder cannot be served: the text names file and key."""

    code, http_status, exit_code = "model", 500, 3


class ProtocolError(PierayError):
    """A peer sent what the protocol does not allow."""

    code, http_status, exit_code = "protocol", 502, 3


class PeerLost(PierayError):
    """The process at the other end is gone."""

    code, http_status, exit_code = "peer-lost", 503, 3


class EngineError(PierayError):
    """The engine could not be started, reached or kept."""

    max_text = MAX_REPORT
    code, http_status, exit_code = "engine", 503, 3


class ActorGone(EngineError):
    """The actor that was asked has died, or was killed."""


class NoAnswer(EngineError):
    """The actor that was asked did not answer in time."""


class NoRoom(EngineError):
    """The actor holds as many inferlets as it may: another one may have room."""


class Stalled(EngineError):
    """The process stood still while the request waited in it, and has not carried it out: ask again."""

    code = "stalled"


class ConfigError(PierayError):
    """A setting is unknown or outside its range."""

    code, http_status, exit_code = "config", 400, 2


LAST_LOGS = "last log lines:"
"""The line of a failed inferlet's error behind which the latest of its log follow."""

ERRORS: dict[str, type[PierayError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        BadHandle,
        Denied,
        OutOfPages,
        QuotaExceeded,
        ChildCeiling,
        Overloaded,
        Evicted,
        DeviceLost,
        DeadlineExceeded,
        Cancelled,
        NotFound,
        Pending,
        WrongType,
        Unsupported,
        RemoteFailed,
        GuestFailed,
        GuestTrapped,
        ModelError,
        ProtocolError,
        PeerLost,
        EngineError,
        Stalled,
        ConfigError,
        PierayError,
    )
}

#: The codes of the WIT enum `error-code`, in its order.
WIT_CODES: tuple[str, ...] = (
    "invalid",
    "bad-handle",
    "denied",
    "out-of-pages",
    "quota",
    "evicted",
    "device-lost",
    "deadline",
    "cancelled",
    "not-found",
    "pending",
    "wrong-type",
    "unsupported",
    "internal",
    "peer-lost",
    "failed",
    "overloaded",
)


def error_from(code: str, message: str, *, retry_after_s: float = 0.0) -> PierayError:
    """The error that a peer reported; an unknown code becomes the base class."""
    error = ERRORS.get(code, PierayError)(message)
    error.retry_after_s = retry_after_s
    return error
