"""The inferlet's log.  `print` goes there too.  Lone surrogates in a line are logged as escapes."""

from __future__ import annotations

from typing import Any

from . import _convert, _host


def _log(level: Any, message: str, args: tuple[object, ...]) -> None:
    _host.runtime.log(level, _convert.printable(str(message) % args if args else str(message)))


def debug(message: str, *args: object) -> None:
    """Log a detail; `args` fill the message's % fields."""
    _log(_host.LogLevel.DEBUG, message, args)


def info(message: str, *args: object) -> None:
    """Log an event."""
    _log(_host.LogLevel.INFO, message, args)


def warning(message: str, *args: object) -> None:
    """Log what may go wrong."""
    _log(_host.LogLevel.WARNING, message, args)


def error(message: str, *args: object) -> None:
    """Log what went wrong."""
    _log(_host.LogLevel.ERROR, message, args)
