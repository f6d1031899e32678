"""What the handlers of `kv` ask of the ResourceManager: pages reserved, exports made, opened and taken away."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pieray.errors import InvalidRequest, PierayError, QuotaExceeded
from pieray.host.device.commands import wire_ticket
from pieray.host.device.outbox import Outbox
from pieray.host.identity import Identity
from pieray.host.tickets import Kind, TicketTable
from pieray.messages import ExportPages, ImportPages, LeasePages, ListExports, Message, Unexport
from pieray.pages.handles import ExportedFrames, PageSpace
from pieray.pages.lineage import Lineage
from pieray.texts import byte_size

MAX_NAME_BYTES = 256


class PageRequests:
    """Requests of one inferlet; each gives a ticket.  All methods are called with the instance's lock held."""

    def __init__(
        self, identity: Identity, pages: PageSpace, lineage: Lineage, tickets: TicketTable, outbox: Outbox
    ) -> None:
        self._limits = identity.limits
        self._who = (identity.tenant, identity.launch.user)
        self._pages = pages
        self._lineage = lineage
        self._tickets = tickets
        self._outbox = outbox
        self._ledger = outbox.ledger
        self._num_coming = 0  # pages asked for by `reserve`

    def reserve(self, count: int) -> int:
        """Ticket: none.  Raises QuotaExceeded."""
        self._ledger.check_room()
        ticket = self._tickets.issue(Kind.NONE)
        try:
            short = self._pages.reserve(count, self._num_coming)
        except BaseException:
            self._tickets.drop((ticket,))
            raise
        self._outbox.leases.wake()
        self._num_coming += short

        def granted(result: Any) -> None:
            self._num_coming -= short
            if isinstance(result, PierayError):
                self._pages.unreserve()
                self._tickets.resolve(ticket, result)
            else:
                self._outbox.leases.granted(_u32(result[0]), is_own=True)
                self._tickets.resolve(ticket, None)

        if short:
            wire = self._wire(ticket)
            self._ledger.ask(ticket, LeasePages(*wire, short, self._limits.page_wait_s), granted)
        else:
            self._tickets.resolve(ticket, None)
        return ticket

    def export(
        self, exported: ExportedFrames, name: str, meta: str, access: str, ttl_ms: int, *, pinned: bool, replace: bool
    ) -> int:
        """Ticket: none, once what was staged before has written the pages and they are kept."""
        self._ledger.check_room()
        limits = self._limits
        ticket = self._tickets.issue(Kind.NONE)

        def done(result: object) -> None:
            self._pages.end_export(exported)
            self._tickets.resolve(ticket, result)

        def written(error: object) -> None:
            try:
                if isinstance(error, PierayError):
                    raise error
                restore = self._outbox.restore(exported.rows)
                if restore is not None:
                    self._ledger.after({restore}, ticket, written)
                    return
                pages = np.array(self._pages.freeze(exported), "<u4").tobytes()
            except PierayError as found:
                done(found)
                return
            quota = [limits.exports, limits.export_pages, limits.export_bytes]
            self._ledger.ask(
                ticket,
                ExportPages(
                    *self._wire(ticket),
                    *self._who,
                    name,
                    access,
                    pages,
                    exported.written.astype("<u8").tobytes(),
                    exported.num_tokens,
                    meta,
                    ttl_ms / 1000,
                    limits.pin_time_s if pinned else 0.0,
                    replace,
                    quota,
                ),
                done,
            )

        self._ledger.after(self._outbox.writers_of(frozenset(exported.rows.tolist())), ticket, written)
        return ticket

    def open(self, name: str) -> int:
        """Ticket: text, as `kv.import-pages` documents it."""
        self._ledger.check_room()
        ticket = self._tickets.issue(Kind.TEXT)
        self._ledger.ask(ticket, ImportPages(*self._wire(ticket), *self._who, name), lambda r: self._opened(ticket, r))
        return ticket

    def _opened(self, ticket: int, result: Any) -> None:
        if isinstance(result, PierayError):
            self._tickets.resolve(ticket, result)
            return
        pages, written, num_tokens, meta, access, owner = result
        try:
            handles = self._pages.adopt(_u32(pages), np.frombuffer(written, "<u8"))
        except QuotaExceeded as error:
            self._ledger.release(_u32(pages))
            self._tickets.resolve(ticket, error)
            return
        self._lineage.give_up()
        facts = {"pages": handles.tolist(), "num_tokens": num_tokens, "meta": meta, "access": access, "owner": owner}
        if not self._tickets.resolve(ticket, json.dumps(facts)):  # the guest has forgotten the ticket
            self._pages.free(handles)

    def remove(self, name: str, access: str) -> int:
        """Ticket: none."""
        self._ledger.check_room()
        ticket = self._tickets.issue(Kind.NONE)
        return self._ask(ticket, Unexport(*self._wire(ticket), *self._who, name, access))

    def names(self, prefix: str) -> int:
        """Ticket: text, as `kv.list-exports` documents it."""
        self._ledger.check_room()
        ticket = self._tickets.issue(Kind.TEXT)
        return self._ask(ticket, ListExports(*self._wire(ticket), *self._who, prefix))

    def _ask(self, ticket: int, message: Message) -> int:
        limit = self._limits.message_bytes

        def answered(result: object) -> None:
            if isinstance(result, str) and (size := byte_size(result)) > limit:
                result = QuotaExceeded(
                    f"message_bytes: the limit is {limit}; the list has {size}: ask for a longer prefix"
                )
            self._tickets.resolve(ticket, result)

        self._ledger.ask(ticket, message, answered)
        return ticket

    def _wire(self, ticket: int) -> tuple[int, int]:
        return wire_ticket(self._ledger.inferlet, ticket), self._ledger.inferlet


def check_name(name: str, least: int = 1) -> None:
    """Raise InvalidRequest for a name, or the beginning of one, that is too short or too long."""
    if not least <= byte_size(name) <= MAX_NAME_BYTES:
        raise InvalidRequest(f"a name has from {least} to {MAX_NAME_BYTES} bytes; given {byte_size(name)}")


def _u32(data: Any) -> list[int]:
    numbers: list[int] = np.frombuffer(data, "<u4").tolist()
    return numbers
