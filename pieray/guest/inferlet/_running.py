"""What `asyncio.run` does, on a TicketLoop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

from ._loop import TicketLoop


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """The result of `main`; then everything else is cancelled."""
    loop = TicketLoop()  # type: ignore[abstract]  # only for typeshed
    try:
        return loop.run_until_complete(main)
    finally:
        _cancel_all(loop)
        loop.close()


def _cancel_all(loop: TicketLoop) -> None:
    """Cancel what still runs and close what is still open, reporting what goes wrong with it."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for task in _failed(tasks):
        loop.call_exception_handler(
            {"message": "a task failed while it was cancelled", "task": task, "exception": task.exception()}
        )
    if loop._generators:
        loop.run_until_complete(loop.shutdown_asyncgens())


def _failed(tasks: set[asyncio.Task[Any]]) -> Iterator[asyncio.Task[Any]]:
    return (task for task in tasks if not task.cancelled() and task.exception() is not None)
