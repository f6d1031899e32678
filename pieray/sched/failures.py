"""From what has gone wrong to what its inferlet is told: the one place where an error becomes a `Failed`."""

from __future__ import annotations

from collections.abc import Callable

from pieray.errors import WIT_CODES, Cancelled, DeviceLost, InvalidRequest, PierayError
from pieray.messages import Failed


def failed(ticket: int, error: PierayError) -> Failed:
    """Codes that are not for guests (a runner's `model`, for one) become `internal`."""
    return Failed(ticket, error.code if error.code in WIT_CODES else "internal", error.message)


def known(error: BaseException) -> PierayError:
    """An error of ours as it is; any other, a panic of native code too, by its class and text."""
    return error if isinstance(error, PierayError) else PierayError(f"{type(error).__name__}: {error}")


def malformed(error: BaseException) -> PierayError:
    """The error of a command that is not even well-formed, or at which native code panics."""
    if isinstance(error, (ValueError, TypeError, LookupError)):
        return InvalidRequest(f"malformed command: {error}")
    return known(error)


def dependency_failed() -> PierayError:
    return Cancelled("a command that was to write what this one reads has failed")


def error_of(work: Callable[[], None]) -> PierayError | None:
    """Do it; what has gone wrong.  Raises DeviceLost."""
    try:
        work()
    except DeviceLost:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever is thrown, the loop goes on
        return known(error)
    return None
