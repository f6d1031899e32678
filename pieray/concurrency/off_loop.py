"""Blocking calls for those who run on an event loop: each on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `call` on a thread and await what it returns or raises.

    The thread is a daemon of its own and none of a pool's: calls that wait never keep others from starting, and none
    keeps the interpreter from ending.  If the awaiting task is cancelled, the call runs on to its end.
    """
    import asyncio  # here: it takes longer to import than all that a client without an event loop needs

    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # of a T that may itself be None

    def run() -> None:
        value, failure = None, None
        try:
            value = call(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whoever awaits gets it
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody awaits
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name="pieray-off-loop", daemon=True).start()
    return await future
