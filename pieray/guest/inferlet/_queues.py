"""Queues for contexts: one each while the limit allows, then shared."""

from __future__ import annotations

from collections import Counter

from . import _host, queue
from ._idle import held
from .errors import QuotaExceeded

_idle: dict[tuple[str, bool], list[int]] = {}
_users: dict[tuple[str, bool], Counter[int]] = {}


def acquire(model: str, reuse: bool) -> int:
    """A queue on `model` that no other context uses, or, past the inferlet's limit, the one that fewest use.  With
    `reuse` or without, see `queue.set_reuse`."""
    users = _users.setdefault((model, reuse), Counter())
    idle = _idle.setdefault((model, reuse), [])
    if idle:
        chosen = idle.pop()
    else:
        try:
            chosen = queue.create(model)
            if not reuse:
                queue.set_reuse(chosen, False)
        except QuotaExceeded:
            if not users:
                raise
            chosen = min(users, key=users.__getitem__)
    users[chosen] += 1
    held.num_contexts += 1
    return chosen


def release(model: str, reuse: bool, chosen: int) -> None:
    """Give back what `acquire` returned; queues stay open for the next context."""
    users = _users[model, reuse]
    users[chosen] -= 1
    held.num_contexts -= 1
    if not users[chosen]:
        del users[chosen]
        _idle[model, reuse].append(chosen)


_host.at_install(_idle.clear)
_host.at_install(_users.clear)
