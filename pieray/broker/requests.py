"""What InferletActors ask of a Broker: which call of the exchange or the store each message means."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from typing import TypeAlias

from pieray.broker.buffer import Answer, Caller
from pieray.broker.exchange import Exchange
from pieray.broker.store import Store
from pieray.messages import (
    Broadcast,
    Next,
    Pull,
    Push,
    Settle,
    StoreDelete,
    StoreGet,
    StoreNames,
    StorePut,
    StorePutIf,
    Subscribe,
    Unsubscribe,
    Withdraw,
)

Asking: TypeAlias = Push | Pull | Broadcast | Subscribe | Next
Telling: TypeAlias = Unsubscribe | Withdraw | Settle
Storing: TypeAlias = StoreGet | StorePut | StorePutIf | StoreDelete | StoreNames
REQUESTS = (
    Push,
    Pull,
    Broadcast,
    Subscribe,
    Next,
    Unsubscribe,
    Withdraw,
    Settle,
    StoreGet,
    StorePut,
    StorePutIf,
    StoreDelete,
    StoreNames,
)


class Requests:
    """Not thread-safe: the service holds its lock over the books in each call, and in each step of `store`."""

    def __init__(self, exchange: Exchange, store: Store) -> None:
        self._exchange = exchange
        self._store = store

    def ask(self, peer: str, message: Asking) -> list[Answer]:
        """Answers that it has brought about: its own at once or later, and those of others."""
        exchange = self._exchange
        if isinstance(message, Next):
            return exchange.next(Caller(peer, message.ticket, "", message.tenant), message.subscription)
        caller = Caller(peer, message.ticket, message.inferlet, message.tenant)
        if isinstance(message, Pull):
            return exchange.pull(caller, message.tenant, message.name)
        if isinstance(message, Subscribe):
            return exchange.subscribe(caller, message.tenant, message.name, message.subscription)
        send = exchange.push if isinstance(message, Push) else exchange.broadcast
        return send(caller, message.tenant, message.name, message.text, _deadline(message.timeout_ms))

    def tell(self, peer: str, message: Telling) -> list[Answer]:
        """Answers of others that it has brought about; it has none itself."""
        if isinstance(message, Withdraw):
            return self._exchange.withdraw(peer, message.ticket)
        if isinstance(message, Settle):
            return self._exchange.settle(peer, message.ticket, message.is_taken)
        return self._exchange.unsubscribe(peer, message.subscription)

    def store(self, message: Storing) -> Generator[None, None, str | int | None]:
        """Its answer, in the steps that it takes; raises what the store does."""
        store, tenant = self._store, message.tenant
        if isinstance(message, StoreGet):
            return store.get(tenant, message.key)
        if isinstance(message, StorePut):
            yield from store.putting(
                tenant, message.key, message.value, ttl_s=message.ttl_ms / 1e3, max_bytes=message.max_bytes
            )
            return None
        if isinstance(message, StorePutIf):
            expected = None if message.is_absent else message.expected
            return int(
                (yield from store.putting_if(tenant, message.key, expected, message.value, max_bytes=message.max_bytes))
            )
        if isinstance(message, StoreDelete):
            return int(store.delete(tenant, message.key))
        return (yield from store.naming(tenant, message.prefix, message.max_bytes))


def _deadline(timeout_ms: int) -> float:
    return time.monotonic() + timeout_ms / 1e3 if timeout_ms else -math.inf
