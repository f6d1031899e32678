"""What the handlers of `kv` ask of the ResourceManager: pages reserved, exports made, opened and taken away."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pieray.errors import Denied, DeviceLost, Evicted, InvalidRequest, NotFound, PierayError, QuotaExceeded
from pieray.host.device.commands import wire_ticket
from pieray.host.device.device import DeviceClient
from pieray.host.device.fetching import Fetching
from pieray.host.device.ledger import OnAnswer
from pieray.host.device.outbox import Outbox
from pieray.host.device.visits import Visits
from pieray.host.identity import Identity
from pieray.host.tickets import Kind, TicketTable
from pieray.messages import ExportPages, ImportPages, LeasePages, ListExports, Unexport
from pieray.messages.leases import export_print, name_is_taken
from pieray.pages.exporting import ExportedFrames
from pieray.pages.lineage import Lineage
from pieray.pages.space import PageSpace
from pieray.texts import byte_size

MAX_NAME_BYTES = 256


class PageRequests:
    """Requests of one inferlet; each gives a ticket.  All methods are called with the instance's lock held."""

    def __init__(
        self,
        identity: Identity,
        pages: PageSpace,
        lineage: Lineage,
        tickets: TicketTable,
        outbox: Outbox,
        visits: Visits,
    ) -> None:
        self._visits = visits
        self._fetching = Fetching(
            visits,
            outbox,
            (identity.tenant, identity.launch.user),
            identity.limits.page_wait_s,
            is_wanted=tickets.is_open,
            check_room=pages.check_room,
        )
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
        self._check_room()
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
        self._check_room()
        limits = self._limits
        ticket = self._tickets.issue(Kind.NONE)

        def done(result: object) -> None:
            self._pages.exports.end(exported)
            self._tickets.resolve(ticket, result)

        def written(error: object) -> None:
            try:
                if isinstance(error, PierayError):
                    raise error
                restore = self._outbox.restore(exported.rows)
                if restore is not None:
                    self._ledger.after({restore}, ticket, written)
                    return
                pages = np.array(self._pages.exports.freeze(exported), "<u4").tobytes()
            except PierayError as found:
                done(found)
                return
            quota = [limits.exports, limits.export_pages, limits.export_bytes]
            self._make_known(
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

    def _make_known(self, ticket: int, message: ExportPages, done: OnAnswer) -> None:
        """Have the export made, unless another group has one of that name; one that is to be replaced is taken away
        there when this one is made."""
        known = export_print(message.access, message.tenant, message.user, message.name)
        holding = self._visits.other_with([known])
        if holding is None:
            self._ledger.ask(ticket, message, done)
            return
        if message.is_replacing:

            def allowed(result: Any) -> None:
                if isinstance(result, Denied):  # it is another user's
                    done(result)
                else:
                    self._ledger.ask(ticket, message, made)

            def made(result: Any) -> None:
                if isinstance(result, PierayError):
                    done(result)
                else:
                    self._take_away(holding, message.name, message.access, lambda _: done(result))

            self._take_away(holding, message.name, message.access, allowed, is_checking=True)
            return

        def listed(result: Any) -> None:
            names = [] if isinstance(result, PierayError) else json.loads(result)
            if any((one["name"], one["access"]) == (message.name, message.access) for one in names):
                done(name_is_taken(message.name, message.access))
            else:
                self._ledger.ask(ticket, message, done)

        self._visits.ask(holding, lambda wire, number: ListExports(wire, number, *self._who, message.name), listed)

    def _take_away(
        self, session: DeviceClient, name: str, access: str, on_answer: OnAnswer, *, is_checking: bool = False
    ) -> None:
        """`is_checking`: only ask whether it may be."""
        self._visits.ask(
            session, lambda wire, number: Unexport(wire, number, *self._who, name, access, is_checking), on_answer
        )

    def open(self, name: str) -> int:
        """Ticket: text, as `kv.import-pages` documents it."""
        self._check_room()
        ticket = self._tickets.issue(Kind.TEXT)

        def answered(result: Any) -> None:
            if isinstance(result, (NotFound, Evicted)) and self._visits.others():
                self._fetching.fetch(ticket, name, result, lambda found: self._opened(ticket, found))
            else:
                self._opened(ticket, result)

        self._ledger.ask(ticket, ImportPages(*self._wire(ticket), *self._who, name), answered)
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
        self._check_room()
        ticket = self._tickets.issue(Kind.NONE)

        def answered(result: Any) -> None:
            if not isinstance(result, NotFound):
                self._tickets.resolve(ticket, result)
                return
            others = self._visits.others()  # by now it is known which group is its own

            def answered_there(found: Any) -> None:
                is_elsewhere = isinstance(found, (NotFound, DeviceLost))  # a group that has died has none
                if is_elsewhere and others:
                    self._take_away(others.pop(), name, access, answered_there)
                else:
                    self._tickets.resolve(ticket, result if is_elsewhere else found)

            answered_there(result)

        self._ledger.ask(ticket, Unexport(*self._wire(ticket), *self._who, name, access), answered)
        return ticket

    def names(self, prefix: str) -> int:
        """Ticket: text, as `kv.list-exports` documents it."""
        self._check_room()
        ticket = self._tickets.issue(Kind.TEXT)
        lists: list[str] = []
        others: list[DeviceClient] = []

        def answered(result: Any) -> None:
            if isinstance(result, str):
                if not lists:  # by now it is known which group is its own
                    others.extend(self._visits.others())
                lists.append(result)
            elif not lists or not isinstance(result, DeviceLost):  # a group that has died has none
                self._tickets.resolve(ticket, result)
                return
            if others:
                self._visits.ask(
                    others.pop(), lambda wire, number: ListExports(wire, number, *self._who, prefix), answered
                )
            else:
                self._tickets.resolve(ticket, self._checked(_merged(lists)))

        self._ledger.ask(ticket, ListExports(*self._wire(ticket), *self._who, prefix), answered)
        return ticket

    def _checked(self, listed: str) -> object:
        limit = self._limits.message_bytes
        if (size := byte_size(listed)) > limit:
            return QuotaExceeded(f"message_bytes: the limit is {limit}; the list has {size}: ask for a longer prefix")
        return listed

    def _check_room(self) -> None:
        """Raise QuotaExceeded over `Limits.tickets` requests, those to other groups included."""
        self._ledger.check_room()
        limit = self._limits.tickets
        if self._visits.num_open + self._fetching.num_waiting >= limit:
            raise QuotaExceeded(
                f"tickets: the limit is {limit}, as many requests to other device groups are under way; one more "
                "was made"
            )

    def _wire(self, ticket: int) -> tuple[int, int]:
        return wire_ticket(self._ledger.inferlet, ticket), self._ledger.inferlet


def check_name(name: str, least: int = 1) -> None:
    """Raise InvalidRequest for a name, or the beginning of one, that is too short or too long."""
    if not least <= byte_size(name) <= MAX_NAME_BYTES:
        raise InvalidRequest(f"a name has from {least} to {MAX_NAME_BYTES} bytes; given {byte_size(name)}")


def _merged(lists: list[str]) -> str:
    """Of what several groups have, one list."""
    if len(lists) == 1:
        return lists[0]
    return json.dumps(sorted((one for each in lists for one in json.loads(each)), key=lambda one: one["name"]))


def _u32(data: Any) -> list[int]:
    numbers: list[int] = np.frombuffer(data, "<u4").tolist()
    return numbers
