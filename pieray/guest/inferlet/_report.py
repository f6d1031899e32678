"""What a user gets to read when something goes wrong: tracebacks of the inferlet's own lines, nothing else."""

from __future__ import annotations

import asyncio
import linecache
import traceback
from collections.abc import Iterable
from typing import Any

from . import _convert, _host

_sources: set[str] = set()


def register_source(filename: str, source: str) -> None:
    """Let tracebacks show the lines of `source`, and only frames of `filename`."""
    _sources.add(filename)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


def forget_source(filename: str) -> None:
    """Undo `register_source`."""
    _sources.discard(filename)
    linecache.cache.pop(filename, None)


def format_error(error: BaseException) -> str:
    """The traceback of `error`, its causes and its group, with the inferlet's own frames only."""
    report = traceback.TracebackException.from_exception(error)
    _keep_own_frames(report, set())
    return "".join(report.format())


def _keep_own_frames(report: traceback.TracebackException, seen: set[int]) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    own = [frame for frame in report.stack if frame.filename in _sources]
    report.stack = traceback.StackSummary.from_list(own)
    for other in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if other is not None:
            _keep_own_frames(other, seen)


def log_unhandled(context: dict[str, Any]) -> None:
    """Log what asyncio hands to a loop's exception handler."""
    lines = [str(context.get("message", "unhandled error in the event loop"))]
    task = context.get("task") or context.get("future")
    if isinstance(task, asyncio.Task):
        lines[0] += f" ({task.get_name()})"
    error = context.get("exception")
    if isinstance(error, BaseException):
        lines.append(format_error(error).rstrip())
    _host.runtime.log(_host.LogLevel.ERROR, _convert.printable("\n".join(lines)))


def describe_deadlock(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Which task waits where, for the text of a Deadlock."""
    places = sorted(f"{task.get_name()} at {_place(task)}" for task in tasks)
    return "waiting for nothing: no task, ticket or timer can ever end the wait of " + "; ".join(places)


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack()
    own = [frame for frame in frames if frame.f_code.co_filename in _sources] or frames
    if not own:
        return repr(task.get_coro())
    frame = own[-1]
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({line or frame.f_code.co_name})"
