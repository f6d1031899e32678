"""Host functions for a component's imports: the callbacks that wasmtime calls, made once per host.

Each callback finds its guest through `running`, lifts, calls, encodes, and catches everything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from ctypes import c_void_p, memmove
from operator import attrgetter
from typing import Any, cast

from pieray.errors import PierayError
from pieray.wasm import codecs, native
from pieray.wasm.call_counts import CallCounts
from pieray.wasm.fibers import DONE, FiberGuest
from pieray.wasm.guest import Guest, running
from pieray.wasm.handlers import DEFERRABLE
from pieray.wasm.parks import FuturePark, Later, LaterPark, Park, TicketPark
from pieray.wasm.signatures import HANDLERS, Signature
from pieray.wasm.threads import ThreadGuest

log = logging.getLogger(__name__)

#: (guest, context, address of the arguments) -> image of the result; empty where there is no result
Plain = Callable[[Guest, int, int], bytes]
#: the same, or what the guest has to wait for
Blocking = Callable[[Guest, int, int], bytes | Park]


def plain_callback(function: Plain) -> Any:
    """A host function that completes without suspending its guest, in either executor."""

    def callback(_env: int, context: int, _type: int, args: int, _nargs: int, results: int, _nresults: int) -> int:
        guest = running.guest
        try:
            image = function(guest, context, args)
            if image:
                native.Image.from_address(results).raw = image
            return 0
        except BaseException as error:  # noqa: BLE001 - nothing may leave a callback
            return guest.trap(error)

    return native.SyncCallback(callback)


def blocking_callback(function: Blocking, executor: str) -> Any:
    """A host function that may park its guest."""
    return _fiber_callback(function) if executor == "fiber" else _thread_callback(function)


def _fiber_callback(function: Blocking) -> Any:
    def callback(
        _env: int,
        context: int,
        _type: int,
        args: int,
        _nargs: int,
        results: int,
        _nresults: int,
        error_out: int,
        continuation_out: int,
    ) -> None:
        guest = cast("FiberGuest", running.guest)
        continuation = DONE
        try:
            answer = function(guest, context, args)
            image = answer if isinstance(answer, bytes) else answer.resolve()
            if image is None:
                guest.suspend(cast("Park", answer), results)
                continuation = guest.continuation
            elif image:
                native.Image.from_address(results).raw = image
        except BaseException as error:  # noqa: BLE001 - nothing may leave a callback
            c_void_p.from_address(error_out).value = guest.trap(error)
        memmove(continuation_out, continuation, len(continuation))

    return native.AsyncCallback(callback)


def _thread_callback(function: Blocking) -> Any:
    def call(guest: Guest, context: int, args: int) -> bytes:
        answer = function(guest, context, args)
        if isinstance(answer, bytes):
            return answer
        image = cast("ThreadGuest", guest).block(answer)
        if image is None:
            assert guest.error is not None
            raise guest.error
        return image

    return plain_callback(call)


def handler_name(interface: str, function: str) -> str:
    """The method behind a WIT function, as a path from Handlers: `kv.export-pages` is "kv.export_pages"."""
    return f"{interface}.{function}".replace("-", "_")


def handler_callback(interface: str, function: str, signature: Signature, executor: str, calls: Iterator[int]) -> Any:
    """The callback for one function of the handler API; each call takes the next of `calls`."""
    lift = codecs.lifter(signature.params)
    if (interface, function) == ("tickets", "wait"):
        return blocking_callback(_wait(lift, calls), executor)
    name = handler_name(interface, function)
    encode = codecs.result_encoder(signature.ok, is_fallible=signature.is_fallible)
    if (interface, function) in DEFERRABLE:
        assert signature.is_fallible, "an error has to be told"
        return blocking_callback(_deferrable(name, lift, encode, calls), executor)
    if signature.is_fallible:
        return plain_callback(_fallible(name, lift, encode, calls))
    return plain_callback(_infallible(name, lift, encode, calls))


def _infallible(name: str, lift: codecs.Lifter, encode: codecs.Encoder, calls: Iterator[int]) -> Plain:
    find = attrgetter(name)

    def call(guest: Guest, _context: int, args: int) -> bytes:
        next(calls)
        return encode(find(guest.handlers)(*lift(args, guest.message_cap)))

    return call


def _fallible(name: str, lift: codecs.Lifter, encode: codecs.Encoder, calls: Iterator[int]) -> Plain:
    find = attrgetter(name)

    def call(guest: Guest, _context: int, args: int) -> bytes:
        next(calls)
        try:
            return encode(find(guest.handlers)(*lift(args, guest.message_cap)))
        except PierayError as error:
            return codecs.error_result(error)
        except BaseException as error:
            log.exception("handler %s of %r failed", name, guest)
            return codecs.error_result(PierayError(f"handler {name} failed: {error!r}"))

    return call


def _deferrable(name: str, lift: codecs.Lifter, encode: codecs.Encoder, calls: Iterator[int]) -> Blocking:
    find = attrgetter(name)

    def call(guest: Guest, _context: int, args: int) -> bytes | Park:
        next(calls)
        try:
            value = find(guest.handlers)(*lift(args, guest.message_cap))
            if isinstance(value, Later):
                return LaterPark(value, encode)
            return FuturePark(guest, value, encode) if isinstance(value, Future) else encode(value)
        except PierayError as error:
            return codecs.error_result(error)
        except BaseException as error:
            log.exception("handler %s of %r failed", name, guest)
            return codecs.error_result(PierayError(f"handler {name} failed: {error!r}"))

    return call


def _wait(lift: codecs.Lifter, calls: Iterator[int]) -> Blocking:
    def call(guest: Guest, _context: int, args: int) -> bytes | Park:
        next(calls)
        try:
            tickets, timeout_ms = lift(args, guest.message_cap)
            handlers = guest.handlers.tickets
            handlers.flush()
        except PierayError as error:
            return codecs.error_result(error)
        except BaseException as error:
            log.exception("tickets.flush of %r failed", guest)
            return codecs.error_result(PierayError(f"tickets.flush failed: {error!r}"))
        return TicketPark(handlers, tickets, timeout_ms)

    return call


def handler_callbacks(executor: str, counts: CallCounts) -> dict[str, dict[str, Any]]:
    """interface -> function -> callback, for all of the handler API."""
    return {
        interface: {
            name: handler_callback(interface, name, s, executor, counts.counter(interface))
            for name, s in functions.items()
        }
        for interface, functions in HANDLERS.items()
    }
