"""An InferletActor's side of a device group: its links to the Batcher and the ResourceManager."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from pieray.errors import DeviceLost, PeerLost, PierayError, ProtocolError
from pieray.host.device.commands import TICKET_MASK
from pieray.host.device.decodes import HeldDecodes, columns
from pieray.host.device.device_user import DeviceUser
from pieray.host.device.routing import HOST, DeviceLink, inferlet_of, result_of, tell_of_pages
from pieray.messages import (
    CancelInferlet,
    CloseLease,
    Completed,
    ExportPages,
    Failed,
    Forward,
    GroupNews,
    LeasePages,
    Message,
    OpenInferlet,
    OpenLease,
    PlanTokens,
    Preempt,
    Preempted,
    Reclaimed,
    ReclaimSpare,
    ReleasePages,
    RunEnded,
    Sampled,
)
from pieray.transport import Connection, Endpoint, connect
from pieray.urgency import SERVICE_TOKENS

log = logging.getLogger(__name__)

SHORT_S = 0.02
"""A request for pages that has no answer for so long waits in line."""
MANY_WAIT = 8
"""Inferlets that wait for pages at one time, from which on it is in vain to start others."""


class DeviceClient:
    """One session: posts commands, routes answers to inferlets by number, retires inferlets in the safe order.

    `peer_id` is of this session alone: when one of the two links breaks, the other is closed too, and pages are fenced
    and freed by that id.  `on_lost` is told once, behind all tenants; `on_answered` behind each frame of the batcher's;
    `on_news` of what the group tells of itself, from before this object is complete.
    """

    is_chosen = True
    """See `LateDevice`."""

    def __init__(
        self,
        *,
        batcher: Endpoint,
        resource_manager: Endpoint,
        peer_id: str,
        token: str,
        timeout_s: float,
        on_lost: Callable[[DeviceClient, DeviceLost], None],
        on_answered: Callable[[], None] = lambda: None,
        on_news: Callable[[DeviceClient, GroupNews], None] = lambda _session, _news: None,
    ) -> None:
        self._tenants: dict[int, DeviceUser] = {}
        self._holding: set[int] = set()  # inferlets that may have pages
        self._standing: dict[int, tuple[str, int]] = {}  # tenant and priority
        self._on_news = on_news
        self._leasing: dict[int, tuple[float, int]] = {}  # who has asked for pages: since when, tokens computed by then
        self._lost: DeviceLost | None = None
        self._on_lost = on_lost
        self._on_answered = on_answered
        self._retiring: dict[int, tuple[int, Callable[[], None]]] = {}
        self._next_ticket = itertools.count(1)
        self._lock = threading.Lock()
        self._decodes = HeldDecodes()
        self._posting = threading.Lock()  # what is posted for an inferlet keeps its order against its held passes
        self._answering = 0  # the thread that reads the batcher's answers, while it does
        self._is_due = False  # that thread has posted something itself

        def dial(endpoint: Endpoint, on_messages: Callable[[list[Message]], None]) -> Connection:
            service = DeviceLink(on_messages, self._link_lost, self._refused)
            return connect(endpoint, service, role="inferlets", peer_id=peer_id, token=token, timeout_s=timeout_s)

        self._ledger = dial(resource_manager, self._from_ledger)
        try:
            self._batcher = dial(batcher, self._from_batcher)
        except BaseException:
            self._ledger.close("the batcher did not answer")
            raise
        if self._lost is not None:  # the ledger's link broke meanwhile, when this one could not be closed yet
            self._batcher.close("the device group is gone")
            raise self._new_lost()

    @property
    def lost(self) -> DeviceLost | None:
        """Why the device group is gone, or None."""
        return self._lost

    def is_short(self, tenant: str, priority: int) -> bool:
        """Whether many inferlets of the tenant, of no lower priority and with no more service than a new one has had,
        wait for pages: a new one without a deadline would only wait too, see `pieray.leases.rank`."""
        if self._lost is not None or len(self._leasing) < MANY_WAIT:
            return False
        least, latest, num_waiting = (tenant, priority), time.monotonic() - SHORT_S, 0
        for number, (since, num_tokens) in list(self._leasing.items()):
            own = self._standing.get(number, ("", 0))
            is_before = own[0] == tenant and own >= least and num_tokens < SERVICE_TOKENS
            num_waiting += since < latest and is_before
            if num_waiting == MANY_WAIT:
                return True
        return False

    def _new_lost(self) -> DeviceLost:
        """An error for one caller: one that many raise would collect all their tracebacks."""
        assert self._lost is not None
        return DeviceLost(self._lost.message)

    def admit(
        self,
        number: int,
        tenant: DeviceUser,
        owner: str = "",
        priority: int = 0,
        deadline: float = 0.0,
        born: float = 0.0,
        family: str = "",
        traced_as: str = "",
    ) -> None:
        """Route answers for inferlet `number` to `tenant` from now on; its share of the device is its owner's, and who
        gets pages first is decided by the rest, see OpenLease; `traced_as` as OpenInferlet has it."""
        if self._lost is not None:
            raise self._new_lost()
        self._tenants[number] = tenant
        self._standing[number] = owner, priority
        try:
            if owner:
                self.post([OpenInferlet(number, owner, traced_as)])
                self.ask_ledger(OpenLease(number, owner, priority, deadline, born, family))
        except BaseException:
            self._tenants.pop(number, None)
            self._standing.pop(number, None)
            raise

    def post(self, messages: Sequence[Message]) -> None:
        """Collect an inferlet's messages for the batcher; `flush` sends them, those of all inferlets as one frame, in
        which passes of one token are rows of one message.

        Megabytes travel in parts, in the inferlet's lane: they hold up nobody else's.
        """
        inferlet = inferlet_of(messages[0]) if messages else HOST
        if self._answering == threading.get_ident():
            self._is_due = True
        with self._posting:
            if now := self._decodes.split(inferlet, messages):
                self._post(self._batcher, now, inferlet)
            elif self._lost is not None:
                raise self._new_lost()

    def lease(
        self, inferlet: int, count: int, deadline_s: float, hashes: bytes = b"", num_tokens: int = 0, num_more: int = 0
    ) -> None:
        message = LeasePages(inferlet << 32, inferlet, count, deadline_s, hashes, num_tokens, num_more)
        if count:
            self._leasing[inferlet] = time.monotonic(), num_tokens
        self._post(self._ledger, [message], inferlet)

    def preempted(self, inferlet: int, num_pages: int, *, is_whole: bool) -> None:
        """Tell the ResourceManager that the inferlet has given up pages."""
        if is_whole:
            self._holding.discard(inferlet)
        with contextlib.suppress(DeviceLost):
            self.ask_ledger(Preempted(inferlet, num_pages, is_whole))

    def ask_ledger(self, message: Message) -> None:
        """Collect an inferlet's message for the ResourceManager; `flush` sends it."""
        self._post(self._ledger, [message], inferlet_of(message))

    def release(self, inferlet: int, pages: Sequence[int]) -> None:
        """Give pages of an inferlet back that is not retired yet."""
        with contextlib.suppress(DeviceLost):
            self.ask_ledger(ReleasePages(inferlet, np.asarray(pages, "<u4").tobytes()))

    def _post(self, link: Connection, messages: Sequence[Message], lane: int) -> None:
        if self._lost is not None:
            raise self._new_lost()
        try:
            link.post(messages, lane=lane)
        except PeerLost as error:
            raise DeviceLost(error.message) from error

    def flush(self) -> None:
        """Send what was posted: one frame to each peer that has any."""
        for link in (self._batcher, self._ledger):
            self._flush(link)

    def _flush(self, link: Connection) -> None:
        try:
            if link is self._batcher:
                self._post_decodes()
            link.flush()
        except PeerLost as error:
            self._link_lost(error)

    def _post_decodes(self) -> None:
        """Passes of one token, as columns where nothing of their inferlets waits that they might overtake."""
        with self._posting:
            rows: list[Forward] = []
            for inferlet, passes in self._decodes.take():
                if self._batcher.holds(inferlet):
                    self._batcher.post(passes, lane=inferlet)
                else:
                    rows += passes
            if rows:
                self._batcher.post([columns(rows)])

    def retire(self, number: int, done: Callable[[], None]) -> None:
        """The inferlet has ended: once no step touches its pages, give them back, then call `done`."""
        if self._lost is not None:
            self._tenants.pop(number, None)
            self._standing.pop(number, None)
            done()
            return
        ticket = next(self._next_ticket) & TICKET_MASK
        with self._lock:
            self._retiring[ticket] = (number, done)
        try:
            with self._posting:  # commands that have not left
                self._decodes.drop(number)
                self._batcher.drop_lane(number)
            self._post(self._batcher, [CancelInferlet(ticket, number)], number)
            self.flush()
        except DeviceLost:
            self._finish_retiring(ticket)

    def _finish_retiring(self, ticket: int) -> None:
        with self._lock:  # behind all that was given back before: see _give_back_spare
            found = self._retiring.pop(ticket, None)
            if found is None:
                return
            number, done = found
            self._tenants.pop(number, None)
            self._standing.pop(number, None)
            self._leasing.pop(number, None)
            self._holding.discard(number)
            with contextlib.suppress(PeerLost):
                self._ledger.post([CloseLease(number)], lane=number)
        try:
            self._ledger.flush()
        except PeerLost:
            log.info("the resource manager is gone; it needs no word that inferlet %d has ended", number)
        done()

    def _from_batcher(self, messages: list[Message]) -> None:
        """Give out answers.

        What guests post meanwhile is not sent on here, unless this posts something itself: it leaves when the guests
        that can run have run, so that inferlets in step with each other stay in step, in few large batches.
        """
        self._answering, self._is_due = threading.get_ident(), False
        self._give_out(messages)
        self._answering = 0
        if self._is_due:
            self.flush()
        else:
            self._flush(self._ledger)
        self._on_answered()

    def _give_out(self, messages: list[Message]) -> None:
        answers: dict[int, list[tuple[int, object]]] = {}
        for message in messages:
            if isinstance(message, (Completed, Failed, RunEnded)):
                result = result_of(message)
            elif isinstance(message, PlanTokens):
                for row in message.rows():
                    answers.setdefault(row.ticket >> 32, []).append((row.ticket & TICKET_MASK, row))
                continue
            elif isinstance(message, Sampled):
                tickets, samples = (np.frombuffer(c, "<u8").tolist() for c in (message.tickets, message.sample_tickets))
                for place, (ticket, sample) in enumerate(zip(tickets, samples, strict=True)):
                    token = message.tokens[4 * place : 4 * place + 4]
                    answers.setdefault(ticket >> 32, []).extend(
                        ((sample & TICKET_MASK, token), (ticket & TICKET_MASK, None))
                    )
                continue
            else:
                raise ProtocolError(f"a batcher does not send {type(message).__name__}")
            answers.setdefault(message.ticket >> 32, []).append((message.ticket & TICKET_MASK, result))
        for number, items in answers.items():
            if number == HOST:
                for ticket, _ in items:
                    self._finish_retiring(ticket)
            elif (tenant := self._tenants.get(number)) is not None:
                tenant.answered(items)

    def _from_ledger(self, messages: list[Message]) -> None:
        is_news = True
        for message in messages:
            if isinstance(message, GroupNews):  # the first comes before the batcher is dialled
                self._on_news(self, message)
                continue
            is_news = False
            if isinstance(message, ReclaimSpare):
                self._give_back_spare()
            elif isinstance(message, Preempt):
                if (tenant := self._tenants.get(message.inferlet)) is not None:
                    tenant.preempt(*(np.frombuffer(pages, "<u4").tolist() for pages in (message.kept, message.shared)))
            elif isinstance(message, (Completed, Failed)):
                number = message.ticket >> 32
                if not message.ticket & TICKET_MASK:
                    self._leasing.pop(number, None)
                if (tenant := self._tenants.get(number)) is not None:
                    tell_of_pages(tenant, message)
                    self._holding.add(number)  # behind it: what it gives up meanwhile takes it out
        if not is_news:
            self.flush()

    def _refused(self, message: Message, error: PierayError) -> None:
        """A command or request that cannot travel (it is larger than a frame) fails alone."""
        ticket: int = getattr(message, "ticket", 0)
        tenant = self._tenants.get(ticket >> 32)
        if tenant is not None and isinstance(message, ExportPages):  # of the ledger's requests it alone may be long
            tenant.ledger_answered(ticket & TICKET_MASK, error)
        elif tenant is not None:
            tenant.answered([(ticket & TICKET_MASK, error)])

    def _give_back_spare(self) -> None:
        now = time.monotonic()
        self._holding &= self._tenants.keys()
        holding = list(self._holding)
        idle = [number for number in holding if (one := self._tenants.get(number)) is not None and one.is_idle(now)]
        for number in holding:
            with self._lock:  # ReleasePages behind the inferlet's CloseLease would name pages that it has no more
                tenant = self._tenants.get(number)
                pages = tenant.reclaim() if tenant is not None else []
                if pages:
                    with contextlib.suppress(PeerLost):
                        self._ledger.post([ReleasePages(number, np.asarray(pages, "<u4").tobytes())], lane=number)
        with contextlib.suppress(DeviceLost):
            self.ask_ledger(Reclaimed(np.array(idle, "<u4").tobytes()))

    def _link_lost(self, error: PeerLost) -> None:
        with self._lock:
            if self._lost is not None:
                return
            self._lost = lost = DeviceLost(f"the device group is gone: {error.message}")
        for link in (getattr(self, "_batcher", None), getattr(self, "_ledger", None)):
            if link is not None:
                link.close("the device group is gone")
        for number, tenant in list(self._tenants.items()):
            try:
                tenant.device_lost(lost)
            except BaseException:  # the others must hear of it all the same
                log.exception("inferlet %d could not be told", number)
        for ticket in list(self._retiring):
            self._finish_retiring(ticket)
        self._on_lost(self, lost)

    def close(self, reason: str = "this InferletActor is closing") -> None:
        """Hang up: to inferlets, the device group is lost.  Idempotent."""
        self._link_lost(PeerLost(reason))
