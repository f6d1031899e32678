"""WIT interface `messaging`: messages between inferlets of a tenant, by way of the Broker."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.errors import PeerLost
from pieray.host.broker.calls import ANSWER_S, BrokerCalls
from pieray.host.identity import Identity
from pieray.host.open_handles import OpenHandles
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import Kind
from pieray.messages import Broadcast, Next, Pull, Push, Subscribe, Unsubscribe


@dataclass(slots=True)
class _Subscription:
    number: int  # the actor's, at the Broker
    generation: int = 0  # of the connection that it was made over


class MessagingHandlers:
    """See `pieray/wit/pieray.wit`.  A text that was pulled and not taken goes back to its place."""

    def __init__(self, identity: Identity, calls: BrokerCalls, work: TicketWork) -> None:
        self._identity = identity
        self._broker = calls
        self._subscriptions: OpenHandles[_Subscription] = OpenHandles(
            "subscription", "subscriptions", identity.limits.subscriptions
        )
        work.at_end(self._close_subscriptions)

    def push(self, queue: str, text: str, timeout_ms: int) -> int:
        who = self._who()
        self._broker.check_name("queue name", queue)
        size = self._broker.check_text(text)
        return self._broker.ask(
            Kind.NONE,
            lambda n: Push(n, *who, queue, text, timeout_ms),
            num_bytes=size,
            within_s=timeout_ms / 1e3 + ANSWER_S,
        )

    def pull(self, queue: str) -> int:
        who = self._who()
        self._broker.check_name("queue name", queue)
        return self._broker.ask(Kind.TEXT, lambda n: Pull(n, *who, queue), settle=self._broker.keep)

    def broadcast(self, topic: str, text: str, timeout_ms: int) -> int:
        who = self._who()
        self._broker.check_name("topic name", topic)
        size = self._broker.check_text(text)
        return self._broker.ask(
            Kind.NONE,
            lambda n: Broadcast(n, *who, topic, text, timeout_ms),
            num_bytes=size,
            within_s=timeout_ms / 1e3 + ANSWER_S,
        )

    def subscribe(self, topic: str) -> int:
        who = self._who()
        self._broker.check_name("topic name", topic)
        client = self._broker.client
        found = _Subscription(client.new_number())
        handle = self._subscriptions.put(found)

        def make(number: int) -> Subscribe:
            found.generation = client.generation
            return Subscribe(number, *who, topic, found.number)

        try:
            return self._broker.ask(
                Kind.TOKENS,
                make,
                within_s=ANSWER_S,
                value=lambda _: handle.to_bytes(4, "little"),
                settle=lambda _, is_taken: self._settled(handle, is_taken),
            )
        except BaseException:
            self._subscriptions.drop(handle)
            raise

    def next(self, subscription: int) -> int:
        tenant, _ = self._who()
        found = self._subscriptions.get(subscription)
        if found.generation not in (0, self._broker.client.generation):  # 0: it is still to be made
            raise PeerLost("the Broker that kept this subscription is gone; subscribe again")
        return self._broker.ask(Kind.TEXT, lambda n: Next(n, tenant, found.number), settle=self._broker.keep)

    def unsubscribe(self, subscription: int) -> None:
        self._who()
        self._unsubscribe(self._subscriptions.pop(subscription))

    def _who(self) -> tuple[str, str]:
        """Tenant and inferlet; raises Denied."""
        self._identity.capabilities.require("messaging")
        return self._identity.tenant, self._identity.instance_id

    def _settled(self, handle: int, is_taken: bool) -> None:
        """Close a subscription that the guest will never hear of."""
        if not is_taken and (found := self._subscriptions.drop(handle)) is not None:
            self._unsubscribe(found)

    def _close_subscriptions(self) -> None:
        for found in self._subscriptions.values():
            self._unsubscribe(found)

    def _unsubscribe(self, found: _Subscription) -> None:
        self._broker.tell(Unsubscribe(self._identity.tenant, found.number))
