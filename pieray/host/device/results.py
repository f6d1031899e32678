"""Results that a guest waits for: outputs of its passes, and what is computed by itself."""

from __future__ import annotations

from collections.abc import Callable

from pieray.errors import PierayError
from pieray.host.device.commands import TICKET_MASK, Pass, wire_ticket
from pieray.host.device.ledger import OnAnswer
from pieray.host.device.transfers import Transfers
from pieray.host.tickets import Kind, Ticket, TicketTable
from pieray.messages import Message, Output


class ResultTicket(Ticket):
    """What is computed for a guest: of a pass, which closes with the last of its outputs, or by itself."""

    __slots__ = ("_results", "pass_")

    def __init__(self, kind: Kind, results: Results) -> None:
        super().__init__(kind)
        self.pass_: Pass | None = None
        self._results = results

    def left(self, *, is_taken: bool) -> None:
        self._results.left(self.number, self.pass_, is_taken=is_taken)


class Results:
    """Of one inferlet.  All methods but `left` are called with the instance's lock held."""

    def __init__(self, inferlet: int, tickets: TicketTable, transfers: Transfers) -> None:
        self._inferlet = inferlet
        self._tickets = tickets
        self._transfers = transfers

    def ask(self, pass_: Pass, kind: Kind, output: Callable[[int], Output], num_bytes: int) -> int:
        """Ask a pass that is not sent yet for one more output, made for its ticket as it travels; the ticket.

        `num_bytes` of its value (0: a few).  Raises QuotaExceeded.
        """
        result = self.open_result(kind, num_bytes, "the values of this output have")
        result.pass_ = pass_
        pass_.num_open += 1
        if not pass_.outputs:
            self._tickets.uncount(pass_.ticket)
        pass_.outputs.append(output(wire_ticket(self._inferlet, result.number)))
        return result.number

    def open_result(self, kind: Kind, num_bytes: int, what: str) -> ResultTicket:
        """An open ticket for a result of so many bytes; `what`: see Transfers.  Raises QuotaExceeded."""
        ticket = ResultTicket(kind, self)
        number = self._tickets.add(ticket)
        try:
            self._transfers.expect(number, num_bytes, what)
        except BaseException:
            self._tickets.drop((number,))
            raise
        return ticket

    def left(self, result: int, pass_: Pass | None, *, is_taken: bool) -> None:
        """A result was taken, or forgotten: one of a pass that is not sent yet is not computed then."""
        with self._tickets.lock:
            if pass_ is not None and not is_taken and not pass_.is_sent:
                pass_.outputs[:] = [o for o in pass_.outputs if o.ticket & TICKET_MASK != result]
                self._transfers.ended(result)
            self._transfers.forgotten(result)
            if pass_ is None:
                return
            pass_.num_open -= 1
            if not pass_.num_open:
                self._tickets.drop((pass_.ticket,))


class OwnMessages:
    """The host's own messages to the batcher, and who is told what comes of each.  Called with the instance's lock."""

    def __init__(self, number: Callable[[], int], post: Callable[[list[Message]], None]) -> None:
        """`number` gives tickets."""
        self._number, self._post = number, post
        self._waiting: dict[int, OnAnswer] = {}

    def post(self, message: Callable[[int], Message], on_answer: OnAnswer) -> None:
        """Post what is made of a ticket."""
        ticket = self._number()
        self._waiting[ticket] = on_answer
        self._post([message(ticket)])

    def answered(self, ticket: int, result: object) -> bool:
        """The answer to one of them; False if it is not."""
        on_answer = self._waiting.pop(ticket, None)
        if on_answer is not None:
            on_answer(result)
        return on_answer is not None

    def end(self, error: PierayError | None) -> None:
        """No answer comes any more; all are told, if there is an error."""
        waiting, self._waiting = self._waiting, {}
        for on_answer in waiting.values() if error is not None else ():
            on_answer(error)
