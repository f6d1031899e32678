"""What a plan has drawn, and who takes it: the guest, when it comes to it, or the client, as it is drawn."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from pieray.errors import InvalidRequest, PierayError, QuotaExceeded
from pieray.host.text.textstreams import TextStream
from pieray.host.tickets import Kind, Ticket, TicketTable

MAX_TEXTS = 1024
"""Tokens that are made text in one call: 1 or 2 ms."""

Columns = tuple[list[int], list[str], list[float]]
"""Tokens, texts, log-probabilities; the last two may be empty."""


class NextTicket(Ticket):
    """What was drawn since the last one: all there is when the guest takes it, or asks for the next."""

    __slots__ = ("drawn",)

    def __init__(self, kind: Kind, drawn: Drawn) -> None:
        super().__init__(kind)
        self.drawn = drawn

    def value(self) -> Any:
        self.drawn.hand_out(self)
        return self.result

    def left(self, *, is_taken: bool) -> None:
        if not is_taken:
            self.drawn.forget_next(self)


class WatchTicket(Ticket):
    """Has its result whenever there is something to read."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(Kind.NONE)


class StreamTicket(Ticket):
    """Text on its way to the client; its value is all that was sent."""

    __slots__ = ("drawn", "parts", "stream")

    def __init__(self, drawn: Drawn, stream: TextStream) -> None:
        super().__init__(Kind.TEXT)
        self.drawn = drawn
        self.stream = stream
        self.parts: list[str] = []

    def left(self, *, is_taken: bool) -> None:
        if not is_taken:
            self.drawn.forget_stream(self)


class Drawn:
    """The tokens of one plan.  All methods are called with the instance's lock held, but those of tickets.

    `send` gives a text to the client and may raise; `stopped` is told that a text stream has met its stop text at so
    many drawn tokens, and `failed` of an error of who takes them: nothing more is wanted then.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        tickets: TicketTable,
        send: Callable[[str], None],
        stopped: Callable[[int, str], None],
        failed: Callable[[PierayError], None],
    ) -> None:
        self.num_prompt = len(prompt)
        self.tokens = array("I", prompt)  # and what was drawn
        self.scores = array("f")
        self.stop_tokens: frozenset[int] = frozenset()  # they have no text
        self.is_running = False
        self.error: PierayError | None = None
        self.is_awaited = False  # the guest itself waits for more, in `read`
        self.nexts: OrderedDict[NextTicket, None] = OrderedDict()  # that wait for a token
        self._taker: NextTicket | None = None  # that has one, and gets what else comes until it is taken
        self._watch: WatchTicket | None = None
        self._flow: StreamTicket | None = None
        self._tickets = tickets
        self._send = send
        self._stopped = stopped
        self._failed = failed
        self._num_given = 0  # tokens that the guest has got
        self._num_sent = 0  # tokens whose text was sent

    @property
    def count(self) -> int:
        """Tokens drawn."""
        return len(self.tokens) - self.num_prompt

    def add(self, tokens: bytes, logprobs: bytes) -> None:
        """More was drawn: tokens (u32) and, if they are scored, log-probabilities (f32)."""
        self.tokens.frombytes(tokens)
        self.scores.frombytes(logprobs)
        if self._flow is not None:
            self._flow_on(self._flow)
        if self.nexts:
            self._give()
        self._tell()

    def end(self, error: PierayError | None) -> None:
        """No more is drawn."""
        self.is_running, self.error = False, error
        if (flow := self._flow) is not None:
            self._flow = None
            self._tickets.resolve(flow.number, error or "".join(flow.parts))
        self._give()
        self._tell()

    def cut(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        if self._taker is not None:
            self.hand_out(self._taker)
        del self.tokens[self.num_prompt + num_tokens :]
        del self.scores[num_tokens:]
        self._num_given = min(self._num_given, num_tokens)
        self._num_sent = min(self._num_sent, num_tokens)

    def close(self) -> None:
        """The guest has given the plan back."""
        if self._watch is not None:
            self._tickets.drop((self._watch.number,))

    # --- tickets that each have a part -----------------------------------------------------------

    def next(self, ticket: NextTicket) -> None:
        """Resolve the ticket with what was drawn since the last one, now or when there is more."""
        if self._taker is not None:
            self.hand_out(self._taker)
        self.nexts[ticket] = None
        self._give()

    def _give(self) -> None:
        """Resolve those that wait: the first when there is a token, the rest when there will be none."""
        while self.nexts and (not self.is_running or (self._taker is None and self._num_given < self.count)):
            if self._taker is not None:
                self.hand_out(self._taker)
            ticket, _ = self.nexts.popitem(last=False)
            is_last = self._num_given == self.count
            self._taker = ticket
            self._tickets.resolve(ticket.number, self.error if is_last else None)

    def hand_out(self, ticket: NextTicket) -> None:
        """The ticket's value is what was drawn and nobody has got, unless it has one."""
        if self._taker is not ticket:
            return
        self._taker = None
        if ticket.is_open and ticket.result is None:
            tokens = self.tokens[self.num_prompt + self._num_given :].tobytes()
            scores = self.scores[self._num_given :].tobytes()
            ticket.result = [tokens, scores] if ticket.kind is Kind.DISTRIBUTION else tokens
            self._num_given = self.count

    def forget_next(self, ticket: NextTicket) -> None:
        """The guest has forgotten a ticket: what it would have got is the next one's."""
        with self._tickets.lock:
            self.nexts.pop(ticket, None)
            if self._taker is ticket:
                self._taker = None
                self._give()

    # --- reading ---------------------------------------------------------------------------------

    def read(self, stream: TextStream | None, most: int) -> Columns | None:
        """What nobody has got, at most `most` tokens (0: all); None: nothing, and more may come.

        Raises the error that the plan has ended with, behind the last token.
        """
        if self._taker is not None:
            self.hand_out(self._taker)
        start = self._num_given
        if start == self.count:
            if self.is_running:
                self.is_awaited = True
                return None
            if self.error is not None:
                raise type(self.error)(self.error.message)
        self.is_awaited = False
        most = min(most or MAX_TEXTS, MAX_TEXTS) if stream is not None else most
        tokens = self.tokens[self.num_prompt + start : self.num_prompt + start + most if most else None].tolist()
        texts = self._texts(tokens, start, stream) if stream is not None else []
        tokens = tokens[: len(texts)] if stream is not None else tokens
        self._num_given = start + len(tokens)
        self._tell()
        return tokens, texts, self.scores[start : self._num_given].tolist()

    def watch(self) -> int:
        """A ticket that has its result whenever `read` has something to tell."""
        if self._watch is None or not self._watch.is_open:
            self._watch = WatchTicket()
            self._tickets.add(self._watch)
            self._tell()
        return self._watch.number

    def _tell(self) -> None:
        has_news = self._num_given < self.count or not self.is_running
        if self._watch is not None:
            self._watch.is_done = has_news
            self._tickets.has_news |= has_news
        if self.is_awaited and has_news:
            self._tickets.has_news = True

    # --- straight to the client ------------------------------------------------------------------

    def stream(self, ticket: StreamTicket) -> None:
        """Send the text of what is drawn and not read, and of what will be.  Raises InvalidRequest for too much."""
        if self._flow is not None:
            raise InvalidRequest("stream: the text of this plan goes to the client already")
        self._num_sent = max(self._num_sent, self._num_given)
        if self.count - self._num_sent > MAX_TEXTS:
            raise InvalidRequest(
                f"stream: at most {MAX_TEXTS} tokens may be drawn and not read before; "
                f"{self.count - self._num_sent} are: read them"
            )
        self._flow = ticket
        if self._num_sent < self.count:
            self._flow_on(ticket)
        if not self.is_running and self._flow is not None:
            self.end(self.error)

    def forget_stream(self, ticket: StreamTicket) -> None:
        """Nobody waits for it any more: nothing more is sent."""
        with self._tickets.lock:
            if self._flow is ticket:
                self._flow = None

    def _flow_on(self, flow: StreamTicket) -> None:
        start, self._num_sent = self._num_sent, self.count
        try:
            texts = self._texts(self.tokens[self.num_prompt + start :].tolist(), start, flow.stream)
            self._send_all(flow, texts)
        except PierayError as error:
            self._flow = None
            self._tickets.resolve(flow.number, error)
            self._failed(error)

    def _send_all(self, flow: StreamTicket, texts: list[str]) -> None:
        """As one message; one by one where a limit allows only some of them."""
        text = texts[0] if len(texts) == 1 else "".join(texts)
        if not text:
            return
        try:
            self._send(text)
            flow.parts.append(text)
        except QuotaExceeded:
            if len(texts) == 1:
                raise
            for part in filter(None, texts):
                self._send(part)
                flow.parts.append(part)

    def _texts(self, tokens: list[int], start: int, stream: TextStream) -> list[str]:
        """The text of each token, up to the one that completes a stop text: what lies behind that is forgotten."""
        texts: list[str] = []
        for token in tokens:
            texts.append("" if token in self.stop_tokens else stream.push(token))
            if stream.stopped_by:
                self._stopped(start + len(texts), stream.stopped_by)
                break
        return texts
