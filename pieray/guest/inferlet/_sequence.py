"""The KV of one sequence of tokens: pages, how many of their slots are valid, the queue passes run on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from . import _host, _queues, kv
from ._ranges import Ranges
from ._waiting import wait_ticket
from .adapters import Adapter
from .embeds import Embedding
from .errors import BadHandle, InvalidRequest, QuotaExceeded

if TYPE_CHECKING:
    from ._draws import Source

#: Most pages asked for at one time beyond what the next pass needs.
GROWTH_PAGES = 8
#: Tokens of a pass while others are masked.
MASKED_TOKENS = 256


class Placed(NamedTuple):
    """An image in the text: its rows stand at [start, end)."""

    start: int
    end: int
    embedding: Embedding


class KvSequence:
    """`[0, kv_len)` hold KV; a pass writes the slots after that, which count once `commit` says so.

    Slots past kv_len may hold anything: a pass that was cancelled or failed leaves kv_len as it was, and the
    next one, later on the same queue, writes the same slots again.

        tokens   0        16       32       48   kv_len
        pages    | page 7 |   0    | page 9 | page 4 ...     0: dropped, and left out of passes
    """

    __slots__ = (
        "_capacity",
        "_in_flight",
        "_num_dropped",
        "_queue",
        "adapter",
        "dropped",
        "hidden",
        "images",
        "is_closed",
        "is_pinned",
        "kv_len",
        "model",
        "page_size",
        "pages",
        "reuse",
        "source",
    )

    def __init__(self, model: str = "", adapter: Adapter | None = None, reuse: bool = True) -> None:
        self.model = model
        self.reuse = reuse
        self.adapter = adapter
        self.pages: list[int] = []
        """Handles; 0 where the page was dropped."""
        self.kv_len = 0
        self.hidden = Ranges()
        """Tokens that passes do not see (`kv.mask`), those not run yet included."""
        self.dropped = Ranges()
        """Of these, those whose pages are given back where a page holds nothing else."""
        self.images: list[Placed] = []
        """Those that stand in the text, in order, run or not."""
        self._num_dropped = 0  # slots of pages that are given back
        self.is_closed = self.is_pinned = False
        self.page_size = kv.page_size(model)
        self._capacity = 0
        self._queue: int | None = None
        self._in_flight = 0
        self.source: Source | None = None

    @property
    def queue(self) -> int:
        """The queue that passes run on."""
        if self._queue is None:
            self._queue = _queues.acquire(self.model, self.reuse)
        return self._queue

    def release(self) -> None:
        """The sequence is about to change: what runs ahead of it ends."""
        if self.source is not None:
            self.source.release()

    def claim(self) -> None:
        """The same before a pass or a plan.  Raises InvalidRequest if one is waited for."""
        if self._in_flight or (self.source is not None and self.source.is_busy):
            raise InvalidRequest("this context is running a pass already: fork it to run two at once")
        self.release()

    def forward(self, tokens: list[int], num_more: int = 0, adapter: Adapter | None = None) -> int:
        """Enqueue a pass over `tokens` on top of the valid KV; its handle.

        `num_more` tokens are expected soon after: pages come ahead of need.  `adapter` None: the sequence's own.
        One pass at a time: `commit` or `abandon` must follow.
        """
        self.claim()
        end = self.kv_len + len(tokens)
        if end > self._capacity:
            self._grow(end, num_more)
        pages, kv_len, positions = self.pages, self.kv_len, range(0)
        if self._num_dropped:
            pages, kv_len, positions = self.live_pages(), self.num_slots, range(self.kv_len, end)
        if self.images and self.images[-1].end > self.kv_len:
            handle = self._forward_seen(pages, kv_len, tokens, positions)
        elif self._num_dropped:
            handle = _host.forward.forward(self.queue, pages, kv_len, tokens, positions, [])
        else:
            handle = _host.forward.forward(self.queue, self.pages, self.kv_len, tokens, [], [])
        adapter = adapter or self.adapter
        if adapter is not None:
            _host.forward.set_adapter(handle, adapter.id)
        self._in_flight = handle
        return handle

    def _forward_seen(self, pages: list[int], kv_len: int, tokens: list[int], positions: range) -> int:
        """A pass over text and images."""
        start, end = self.kv_len, self.kv_len + len(tokens)
        if self.cut(start) != start or self.cut(end) != end:
            raise InvalidRequest("a pass runs whole images: append text behind the last one")
        parts, texts, at = [], [], start
        try:
            for image in [*(one for one in self.images if start <= one.start < end), None]:
                stop = end if image is None else image.start
                if at < stop:
                    texts.append(_host.embeds.text_for(self.model, tokens[at - start : stop - start]))
                    parts.append(texts[-1])
                if image is not None:
                    parts.append(image.embedding.id)
                    at = image.end
            return int(_host.forward.forward_embeds(self.queue, pages, kv_len, parts, positions, []))
        finally:
            if texts:
                _host.embeds.free(texts)

    def cut(self, length: int) -> int:
        """The same, or where the image begins that it would cut."""
        return next((one.start for one in self.images if one.start < length < one.end), length)

    def verify(self, tokens: list[int], drafts: list[int], sampler: int, adapter: Adapter | None = None) -> int:
        """Enqueue a verification of drafts behind `tokens`; its ticket.  As `forward` else."""
        self.claim()
        end = self.kv_len + len(tokens) + len(drafts)
        if end > self._capacity:
            self._grow(end, 0)
        adapter = adapter or self.adapter
        lora = 0 if adapter is None else adapter.id
        ticket: int = _host.forward.verify(self.queue, self.pages, self.kv_len, tokens, drafts, [], sampler, lora)
        self._in_flight = ticket
        return ticket

    def make_room(self, num_tokens: int, most: int) -> int:
        """Pages for a plan of `num_tokens` and up to `most` drawn ones; for how many of those there are pages.

        Raises QuotaExceeded if there are none for the first.
        """
        self.check_open()
        end = self.kv_len + num_tokens
        least = self._num_pages(end) - len(self.pages)
        extra = self._num_pages(end + most - 1) - len(self.pages)
        while extra > 0:
            try:
                self._add_pages(extra)
            except QuotaExceeded:
                if extra <= least:
                    raise
                extra = max(least, extra // 2)
            else:
                break
        return min(most, self._capacity - end + 1)

    def trim(self) -> None:
        """Give back pages that hold no KV."""
        if not self.is_closed:
            self.release()
            self._free_surplus()

    def commit(self, num_tokens: int) -> None:
        """The pass in flight has run: its first `num_tokens` tokens are valid KV."""
        self.kv_len += num_tokens
        self._in_flight = 0

    def commit_pass(self, handle: int, num_tokens: int) -> None:
        """`commit` of that pass, if it is still the one in flight."""
        if self._in_flight == handle and not self.is_closed:
            self.commit(num_tokens)

    def abandon(self, handle: int) -> None:
        """The pass `handle` failed or is not waited for; nothing if it was committed."""
        if self._in_flight == handle:
            self._in_flight = 0

    async def prefill(self, tokens: list[int], adapter: Adapter | None = None) -> None:
        """Run `tokens` for their KV alone; in parts where tokens are masked, for each pass has a mask then."""
        size = MASKED_TOKENS if self.hidden else len(tokens)
        begin, start = self.kv_len, 0
        while start < len(tokens):
            stop = self.cut(begin + min(start + size, len(tokens))) - begin
            if stop <= start:  # an image that is larger
                stop = next(one.end for one in self.images if one.start == begin + start) - begin
            await self._prefill(tokens[start:stop], adapter)
            start = stop

    async def _prefill(self, tokens: list[int], adapter: Adapter | None) -> None:
        handle = self.forward(tokens, adapter=adapter)
        try:
            await wait_ticket(handle)
            _host.tickets.take_none(handle)
            self.commit(len(tokens))
        finally:
            self.abandon(handle)

    def fork(self) -> KvSequence:
        """A second sequence on the same KV, copy-on-write."""
        self.check_open()
        self.release()
        other = KvSequence(self.model, self.adapter, self.reuse)
        used = self._num_pages(self.kv_len)
        if used:
            forks = iter(kv.fork([page for page in self.pages[:used] if page]))
            other.pages = [next(forks) if page else 0 for page in self.pages[:used]]
        other.kv_len = self.kv_len
        other.hidden, other.dropped = Ranges(self.hidden), Ranges(self.dropped)
        other.images = list(self.images)
        other._num_dropped = other.pages.count(0) * self.page_size
        other._capacity = used * self.page_size
        return other

    def adopt(self, pages: list[int], num_slots: int, dropped: Ranges) -> None:
        """Begin with imported pages that hold `num_slots` tokens: all of the first but those `dropped`."""
        left = iter(pages)
        self.dropped = dropped
        while (page := 0 if self._is_dropped(len(self.pages)) else next(left, None)) is not None:
            self.pages.append(page)
        self._num_dropped = self.pages.count(0) * self.page_size
        self.kv_len = num_slots + self._num_dropped
        self._capacity = len(self.pages) * self.page_size

    @property
    def num_slots(self) -> int:
        """Slots of the live pages that hold valid KV."""
        return self.kv_len - self._num_dropped

    def live_pages(self) -> list[int]:
        """The pages that are still there, in order."""
        return [page for page in self.pages if page]

    def drop(self, start: int, end: int) -> None:
        """Hide tokens [start, end) for good; pages that hold no other tokens, and are full, are given back.

        Raises InvalidRequest while a pass runs.
        """
        if self._in_flight:
            raise InvalidRequest("this context is running a pass: await it before tokens are dropped")
        self.mask(start, end, visible=False)
        self.dropped.add(start, end)
        freed = []
        for number in range(start // self.page_size, min(self._num_pages(end), self.kv_len // self.page_size)):
            if self.pages[number] and self._is_dropped(number):
                freed.append(self.pages[number])
                self.pages[number] = 0
        self._num_dropped += len(freed) * self.page_size
        if freed:
            kv.free(freed)
        self._free_surplus()

    def _is_dropped(self, number: int) -> bool:
        """Whether every token of a page was dropped."""
        start = number * self.page_size
        return self.dropped.within(start, start + self.page_size) == [(start, start + self.page_size)]

    def rewind(self, length: int) -> None:
        """Only the first `length` tokens count as valid KV; the slot behind them can be written."""
        self.kv_len = length
        number, offset = divmod(length, self.page_size)
        if number < len(self.pages) and not self.pages[number]:
            (self.pages[number],) = kv.alloc(1, self.model)  # its slots before `length` are not written: all are hidden
            self._num_dropped -= self.page_size
            for start, end in self.hidden.within(length - offset, length - offset + self.page_size):
                self._mask_slots(start, end, visible=False)

    def mask(self, start: int, end: int, *, visible: bool) -> None:
        """Hide tokens [start, end), run or not, from later passes, or show them again."""
        self.release()
        if visible:
            self.hidden.remove(start, end)
        else:
            self.hidden.add(start, end)
        self._mask_slots(start, min(end, self._capacity), visible=visible)

    def _mask_slots(self, start: int, end: int, *, visible: bool) -> None:
        while start < end:
            page, offset = divmod(start, self.page_size)
            count = min(self.page_size - offset, end - start)
            if self.pages[page]:
                kv.mask(self.pages[page], offset, count, visible)
            start += count

    def truncate(self, length: int) -> None:
        """Keep the KV of the first `length` tokens at most, and the pages that it needs.

        Raises InvalidRequest while a pass runs that would be committed behind them.
        """
        if self._in_flight:
            raise InvalidRequest("this context is running a pass: await it before it is truncated")
        self.release()
        self.images = [one for one in self.images if one.end <= length]
        for start, end in self.hidden.within(length, 1 << 32):
            self.mask(start, end, visible=True)
        self.dropped.remove(length, 1 << 32)
        self.kv_len = min(self.kv_len, length)
        self._free_surplus()
        self.rewind(self.kv_len)

    def _free_surplus(self) -> None:
        used = self._num_pages(self.kv_len)
        surplus = self.pages[used:]
        if surplus:
            self.pages = self.pages[:used]
            self._capacity = used * self.page_size
            self._num_dropped = self.pages.count(0) * self.page_size
            kv.free([page for page in surplus if page])

    def pin(self) -> None:
        """This inferlet's memory is not taken for being idle while this is open."""
        self.check_open()
        if not self.is_pinned:
            kv.pin()
            self.is_pinned = True

    def unpin(self) -> None:
        if self.is_pinned:
            self.is_pinned = False
            kv.unpin()

    def close(self) -> None:
        """Give pages and queue back; a second time does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self.unpin()
        self.release()
        self.images = []
        pages, self.pages, self.kv_len, self._capacity, self._num_dropped = self.live_pages(), [], 0, 0, 0
        if self._queue is not None:
            _queues.release(self.model, self.reuse, self._queue)
            self._queue = None
        if pages:
            kv.free(pages)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # nobody is there to be told
            self.close()

    def check_open(self) -> None:
        if self.is_closed:
            raise BadHandle("this context is closed")

    def _num_pages(self, length: int) -> int:
        return -(-length // self.page_size)

    def _grow(self, end: int, num_more: int) -> None:
        self.check_open()
        needed = self._num_pages(end) - len(self.pages)
        ahead = self._num_pages(end + num_more) - self._num_pages(end)
        self._add_pages(needed + min(ahead, GROWTH_PAGES))

    def _add_pages(self, count: int) -> None:
        self.pages += kv.alloc(count, self.model)
        before, self._capacity = self._capacity, len(self.pages) * self.page_size
        for start, stop in self.hidden.within(before, self._capacity):
            self._mask_slots(start, stop, visible=False)
