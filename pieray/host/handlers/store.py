"""WIT interface `store`: text by key, per tenant, kept by the Broker."""

from __future__ import annotations

from pieray.host.broker.calls import ANSWER_S, BrokerCalls
from pieray.host.identity import Identity
from pieray.host.tickets import Kind
from pieray.messages import StoreDelete, StoreGet, StoreNames, StorePut, StorePutIf

MAX_NAMES_BYTES = 1 << 20
"""Of one answer of `names`."""


def _flag(value: int) -> bytes:
    return value.to_bytes(4, "little")


class StoreHandlers:
    """See `pieray/wit/pieray.wit`."""

    def __init__(self, identity: Identity, calls: BrokerCalls) -> None:
        self._identity = identity
        self._broker = calls

    def get(self, key: str) -> int:
        tenant = self._tenant(key)
        return self._broker.ask(Kind.TEXT, lambda n: StoreGet(n, tenant, key), within_s=ANSWER_S)

    def put(self, key: str, value: str, ttl_ms: int) -> int:
        tenant, most = self._tenant(key), self._identity.limits.store_bytes
        size = self._broker.check_text(value)
        return self._broker.ask(
            Kind.NONE, lambda n: StorePut(n, tenant, key, value, ttl_ms, most), num_bytes=size, within_s=ANSWER_S
        )

    def put_if(self, key: str, expected: str, is_absent: bool, value: str) -> int:
        tenant, most = self._tenant(key), self._identity.limits.store_bytes
        size = self._broker.check_text(value) + self._broker.check_text(expected)
        return self._broker.ask(
            Kind.TOKENS,
            lambda n: StorePutIf(n, tenant, key, expected, is_absent, value, most),
            num_bytes=size,
            within_s=ANSWER_S,
            value=_flag,
        )

    def delete(self, key: str) -> int:
        tenant = self._tenant(key)
        return self._broker.ask(Kind.TOKENS, lambda n: StoreDelete(n, tenant, key), within_s=ANSWER_S, value=_flag)

    def names(self, prefix: str) -> int:
        tenant = self._tenant(prefix, least=0)
        most = min(self._identity.limits.message_bytes, MAX_NAMES_BYTES)
        return self._broker.ask(Kind.TEXT, lambda n: StoreNames(n, tenant, prefix, most), within_s=ANSWER_S)

    def _tenant(self, key: str, least: int = 1) -> str:
        """The tenant whose store it is; raises Denied, InvalidRequest."""
        self._identity.capabilities.require("store")
        self._broker.check_name("key", key, least)
        return self._identity.tenant
