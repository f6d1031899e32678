"""InferletActor <-> Broker: messages between inferlets, and the key-value store.

Each request with a `ticket` gets exactly one Completed or Failed, also after a Withdraw.  Every message names the
tenant whose it is: each has its own line and window, over one connection too.
"""

from __future__ import annotations

from dataclasses import dataclass

from pieray.messages.frame import Message, register


@register(70)
@dataclass(frozen=True, slots=True)
class Push(Message):
    """Put a text at the end of a queue; Completed(None) once it is in."""

    ticket: int
    tenant: str
    inferlet: str  # instance id: who is named when others wait for it
    name: str
    text: str
    timeout_ms: int  # how long it may wait for room


@register(71)
@dataclass(frozen=True, slots=True)
class Pull(Message):
    """Completed(text) with the front of the queue; the queue keeps it, out of reach, until Settle(ticket)."""

    ticket: int
    tenant: str
    inferlet: str
    name: str


@register(72)
@dataclass(frozen=True, slots=True)
class Broadcast(Message):
    """Give a text to every subscription of a topic, or to none; Completed(None) once they have it."""

    ticket: int
    tenant: str
    inferlet: str
    name: str
    text: str
    timeout_ms: int


@register(73)
@dataclass(frozen=True, slots=True)
class Subscribe(Message):
    """Completed(None): texts broadcast from now on are kept for the subscription."""

    ticket: int
    tenant: str
    inferlet: str
    name: str
    subscription: int  # the sender's number for it


@register(74)
@dataclass(frozen=True, slots=True)
class Next(Message):
    """Completed(text) with the subscription's next text; kept until Settle(ticket), as by Pull."""

    ticket: int
    tenant: str
    subscription: int


@register(75)
@dataclass(frozen=True, slots=True)
class Unsubscribe(Message):
    """Forget a subscription; its waiting Nexts fail with `cancelled`."""

    tenant: str
    subscription: int


@register(76)
@dataclass(frozen=True, slots=True)
class Withdraw(Message):
    """The request is not wanted any more: if it waits, it fails with `cancelled` and changes nothing."""

    ticket: int
    tenant: str


@register(77)
@dataclass(frozen=True, slots=True)
class Settle(Message):
    """What became of the text of a Pull or Next: the guest took it, or it goes back to its old place."""

    ticket: int  # of the Pull or Next
    tenant: str
    is_taken: bool


@register(78)
@dataclass(frozen=True, slots=True)
class Credit(Message):
    """Messages of this cost have been served: the peer may send as much again of this tenant's.  Both ways."""

    tenant: str
    cost: int


@register(80)
@dataclass(frozen=True, slots=True)
class StoreGet(Message):
    """Completed(text), or Failed(not-found)."""

    ticket: int
    tenant: str
    key: str


@register(81)
@dataclass(frozen=True, slots=True)
class StorePut(Message):
    """Completed(None)."""

    ticket: int
    tenant: str
    key: str
    value: str
    ttl_ms: int  # 0: for ever
    max_bytes: int  # that the tenant may have in the store, as far as the asking inferlet is concerned


@register(82)
@dataclass(frozen=True, slots=True)
class StorePutIf(Message):
    """Completed(1) if the value there was the expected one, else Completed(0)."""

    ticket: int
    tenant: str
    key: str
    expected: str
    is_absent: bool  # expected is that there is no value
    value: str
    max_bytes: int


@register(83)
@dataclass(frozen=True, slots=True)
class StoreDelete(Message):
    """Completed(1) if it was there, else Completed(0)."""

    ticket: int
    tenant: str
    key: str


@register(84)
@dataclass(frozen=True, slots=True)
class StoreNames(Message):
    """Completed(JSON list of keys), or Failed(quota) if they are too many to be told."""

    ticket: int
    tenant: str
    prefix: str
    max_bytes: int  # of the answer
