"""Command queues: the commands of one queue run in order, those of several in any."""

from __future__ import annotations

from . import _host
from .tickets import Ticket, take_none


def create(model: str = "") -> int:
    """Open a queue on a model; "" is the engine's default model."""
    return int(_host.queues.create(model))


def set_priority(queue: int, priority: int) -> None:
    """Higher runs first; from -100 to 100, 0 at first."""
    _host.queues.set_priority(queue, priority)


def set_reuse(queue: int, reuse: bool) -> None:
    """Whether its commands take pages that hold what they are to compute, and leave theirs to be found; at first so."""
    _host.queues.set_reuse(queue, reuse)


def flush(queue: int) -> None:
    """Send what is enqueued now, without waiting for it."""
    _host.queues.flush(queue)


def synchronize(queue: int) -> Ticket[None]:
    """A ticket that resolves when all that the queue holds now has run."""
    return Ticket(_host.queues.synchronize(queue), take_none)


def close(queue: int) -> None:
    """Close the queue; one with commands in flight is `InvalidRequest`."""
    _host.queues.close(queue)
