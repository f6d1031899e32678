"""Commands of one inferlet to the batcher, as they wait and travel, and the queues they are in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np

from pieray.errors import PierayError
from pieray.host.tickets import Kind, Ticket
from pieray.messages import CopyTokens, Forward, Message, Output
from pieray.pages.lineage import Lineage
from pieray.pages.prepared import Prepared
from pieray.pages.space import PageSpace

TICKET_MASK = (1 << 32) - 1
INTERNAL = 0
"""Guest ticket of commands that the host itself adds (copy-on-write)."""


PROGRAMMED = 1 << 62
"""As the adapter of what a tensor program may have changed: nobody finds that by its content, or computes it again."""


def wire_ticket(inferlet: int, ticket: int) -> int:
    """The number under which a guest's ticket travels: unique on the connection."""
    return inferlet << 32 | ticket


class Queue:
    """A guest's command queue: what it has outstanding, and who waits for that."""

    __slots__ = ("handle", "is_reusing", "model", "outstanding", "priority", "syncs")

    def __init__(self, handle: int, priority: int = 0, model: str = "") -> None:
        self.handle = handle
        self.model = model
        """Its name; "" for the default one."""
        self.priority = priority
        """Of its commands, see `pieray.urgency.command_priority`."""
        self.is_reusing = True  # whether its commands take pages that hold what they are to write
        self.outstanding: OrderedDict[int, None] = OrderedDict()  # tickets, which grow: the oldest is the least
        self.syncs: OrderedDict[int, None] = OrderedDict()  # each waits for the commands with lesser tickets

    def synced(self) -> list[int]:
        """Take out the syncs that have nothing to wait for any more."""
        oldest = next(iter(self.outstanding), None)
        done = []
        while self.syncs and (oldest is None or next(iter(self.syncs)) < oldest):
            done.append(self.syncs.popitem(last=False)[0])
        return done


class SyncTicket(Ticket):
    """Waits for what a queue had outstanding."""

    __slots__ = ("_queue",)

    def __init__(self, queue: Queue) -> None:
        super().__init__(Kind.NONE)
        self._queue = queue

    def left(self, *, is_taken: bool) -> None:  # noqa: ARG002 - as Ticket.left
        self._queue.syncs.pop(self.number, None)


class Text(NamedTuple):
    """Tokens that a command runs, each of which attends all that is before it."""

    kv_len: int
    tokens: bytes  # u32
    positions: bytes  # u32; b"": kv_len, kv_len + 1, ...
    adapter: int
    media: bytes = b""  # as `ForwardStep` has it


class Command:
    """One enqueued command; `ticket` is the guest's."""

    __slots__ = ("hashes", "is_sent", "is_sought", "prepared", "queue", "ticket")
    num_skippable: int = 0
    """Of the first tokens that it runs, how many it need not run itself where what they leave is there."""
    num_computed: int = 0
    """Tokens that it has run, once it has finished, or up to now."""
    writes_behind_copies: ClassVar[bool] = False
    """Whether `prepared.copies` are copy-on-write, to be sent ahead, and not the command itself."""

    def __init__(self, ticket: int, queue: Queue, prepared: Prepared) -> None:
        self.ticket = ticket
        self.queue = queue
        self.prepared = prepared
        self.is_sent = False
        self.hashes: list[bytes] | None = None  # to be looked up; None: nobody has looked what
        self.is_sought = False  # whether its pages that are away have been looked up by what they held

    def text(self) -> Text | None:
        """What it runs, if that is plain text; it is not sent yet."""
        return None

    def skip(self, num_tokens: int) -> None:
        """The first tokens that it was to run are not run: what they leave is there."""
        raise NotImplementedError

    def message(self, inferlet: int) -> Message:
        """The command as it travels, its pages physical."""
        return self._copies(inferlet, self.ticket)

    def copy_on_write(self, inferlet: int) -> Message:
        """Its copies alone, as they travel ahead of it."""
        return self._copies(inferlet, INTERNAL)

    def _copies(self, inferlet: int, ticket: int) -> Message:
        copies = [list(c) for c in self.prepared.copies]
        return CopyTokens(wire_ticket(inferlet, ticket), inferlet, self.queue.handle, self.queue.priority, copies)

    def messages(self, inferlet: int) -> list[Message]:
        """All that it takes, in order; the answer to the last is the command's."""
        return [self.message(inferlet)]

    def trace(self, lineage: Lineage) -> None:
        """The command is sent, and its copies with it: note what it writes, as far as that is known."""
        if self.prepared.frame_copies:
            lineage.add_copies(self.prepared.frame_copies)

    def settled(self, result: object) -> object:
        """What the ticket yields, of the batcher's answer or an error; the pages are still pinned."""
        return result


class Pass(Command):
    """A forward pass and the outputs asked of it."""

    writes_behind_copies = True
    __slots__ = (
        "adapter",
        "embeds",
        "kv_len",
        "looks_at_pages",
        "mask",
        "media",
        "num_open",
        "num_skipped",
        "num_tokens",
        "output_bytes",
        "outputs",
        "positions",
        "programs",
        "tokens",
    )

    def __init__(
        self,
        ticket: int,
        queue: Queue,
        prepared: Prepared,
        kv_len: int,
        tokens: bytes,
        positions: bytes,
        mask: bytes,
        embeds: list[bytes],
        media: bytes = b"",
    ) -> None:
        """`media`: of what images the embeddings are, as `ForwardStep` has it; of others nobody knows."""
        super().__init__(ticket, queue, prepared)
        self.kv_len = kv_len
        self.tokens = tokens
        self.num_tokens = len(tokens) // 4
        self.positions = positions
        self.mask: bytes | bytearray = mask
        self.embeds = embeds
        self.media = media
        self.adapter = 0  # the batcher's number
        self.programs: list[int] = []  # the batcher's numbers of tensor programs
        self.looks_at_pages = False  # whether one of them does
        self.outputs: list[Output] = []
        self.num_open = 0  # outputs that the guest has neither taken nor forgotten
        self.output_bytes = 0  # of lists that travel with them
        self.num_skipped = 0

    def output_tickets(self) -> list[int]:
        """The guest's, of the outputs that are or will be computed."""
        return [output.ticket & TICKET_MASK for output in self.outputs]

    def trace(self, lineage: Lineage) -> None:
        super().trace(lineage)
        if self.embeds and not self.media:
            lineage.give_up()
        else:
            run = (self.kv_len, self.tokens, self.positions, bytes(self.mask), b"", self._content)
            lineage.add_forward(self.prepared.frames, *run, self.embeds, self.media)

    def text(self) -> Text | None:
        if self.mask or (self.embeds and not self.media):
            return None
        return Text(self.kv_len, self.tokens, self.positions, self._content, self.media)

    @property
    def _content(self) -> int:
        return PROGRAMMED if self.programs else self.adapter

    @property
    def num_skippable(self) -> int:  # type: ignore[override]
        if self.num_tokens == 1:
            return 0
        return min((output.row for output in self.outputs), default=self.num_tokens - 1)

    def skip(self, num_tokens: int) -> None:
        self.num_skipped = num_tokens
        self.is_sent = True  # no more outputs of the rows that are left out

    @property
    def num_computed(self) -> int:  # type: ignore[override]
        return self.num_tokens - self.num_skipped

    def message(self, inferlet: int) -> Message:
        tokens, positions, outputs, skipped = self.tokens, self.positions, self.outputs, self.num_skipped
        if skipped:
            tokens, positions = tokens[4 * skipped :], positions[4 * skipped :]
            outputs = [replace(output, row=output.row - skipped) for output in outputs]
            self.embeds = without_first(self.embeds, skipped)
        message = Forward(
            wire_ticket(inferlet, self.ticket),
            inferlet,
            self.queue.handle,
            self.queue.priority,
            self.prepared.pages.tobytes(),
            self.kv_len + skipped,
            tokens,
            positions,
            bytes(self.mask),
            outputs,
            self.adapter,
            self.embeds,
            self.programs,
        )
        self.mask, self.embeds = b"", []  # megabytes, perhaps, that thousands of passes in flight need no more
        return message


def without_first(embeds: list[bytes], num_tokens: int) -> list[bytes]:
    """`Forward.embeds` of a pass without its first tokens."""
    if not embeds:
        return []
    rows = np.frombuffer(embeds[0], "<u4")
    first = int(np.searchsorted(rows, num_tokens))
    left = (part[first * (len(part) // len(rows)) :] for part in embeds[1:])
    return [(rows[first:] - num_tokens).astype("<u4").tobytes(), *left] if first < len(rows) else []


class Run(Command):
    """A command that grows while the batcher runs it: of a decode plan."""

    writes_behind_copies = True
    __slots__ = ("is_entered",)
    is_stopped: bool

    def __init__(self, ticket: int, queue: Queue, prepared: Prepared) -> None:
        super().__init__(ticket, queue, prepared)
        self.is_entered = False  # whether others may find what it was to run before it drew anything

    def drew(self, tokens: bytes, logprobs: bytes, counts: bytes) -> bool:
        """The batcher tells what it has drawn; whether the run should have more pages."""
        raise NotImplementedError

    def num_wanted(self) -> int:
        """Pages that it should have soon, beyond those bound."""
        raise NotImplementedError

    def num_lacking(self) -> int:
        """Pages that it must have, now that it is on its last one; 0 before."""
        raise NotImplementedError

    def is_starving(self) -> bool:
        """Whether it cannot go on without one."""
        raise NotImplementedError

    def grown(self) -> None:
        """It has been given what pages there are."""
        raise NotImplementedError

    def give_up(self, error: PierayError) -> None:
        """It must end for want of pages: `error` is its result."""
        raise NotImplementedError

    def preempt(self) -> bool:
        """Its pages are wanted by others; whether the batcher is to be told to stop it."""
        raise NotImplementedError

    def is_to_go_on(self, result: object) -> bool:
        """Whether that is how it ended, so that nobody is told."""
        raise NotImplementedError

    def go_on(self) -> None:
        """It is one that is not sent yet again, of what is left."""
        raise NotImplementedError


class Restore(Command):
    """Frames get their memory back: done when it holds what it did."""

    writes_behind_copies = True
    __slots__ = ("_pages",)

    def __init__(self, ticket: int, queue: Queue, prepared: Prepared, pages: PageSpace) -> None:
        super().__init__(ticket, queue, prepared)
        self._pages = pages

    def message(self, inferlet: int) -> Message:
        """A copy of each page's first token onto itself: it comes behind whatever brings the page back.  Not of pages
        that were found, which hold what they do."""
        is_found = self._pages.is_known(self.prepared.rows)
        copies = [[page, 0, page, 0, 1] for page in self.prepared.pages[~is_found].tolist()]
        return CopyTokens(wire_ticket(inferlet, self.ticket), inferlet, self.queue.handle, self.queue.priority, copies)
