"""The KV of one sequence of tokens: pages, how many of their slots are valid, the queue passes run on."""

from __future__ import annotations

import contextlib

from . import _host, _queues, kv
from ._waiting import wait_ticket
from .adapters import Adapter
from .errors import BadHandle, InvalidRequest, raises

#: Most pages asked for at one time beyond what the next pass needs.
GROWTH_PAGES = 8


class KvSequence:
    """`[0, kv_len)` hold KV; a pass writes the slots after that, which count once `commit` says so.

    Slots past kv_len may hold anything: a pass that was cancelled or failed leaves kv_len as it was, and the
    next one, later on the same queue, writes the same slots again.
    """

    __slots__ = ("_capacity", "_in_flight", "_page_size", "_queue", "adapter", "is_closed", "kv_len",
                 "model", "pages")  # fmt: skip

    def __init__(self, model: str = "", adapter: Adapter | None = None) -> None:
        self.model = model
        self.adapter = adapter
        self.pages: list[int] = []
        self.kv_len = 0
        self.is_closed = False
        self._page_size = kv.page_size()
        self._capacity = 0
        self._queue: int | None = None
        self._in_flight = 0

    def forward(self, tokens: list[int], num_more: int = 0) -> int:
        """Enqueue a pass over `tokens` on top of the valid KV; its handle.

        `num_more` tokens are expected soon after: pages come ahead of need.  One pass at a time: `commit` or
        `abandon` must follow.
        """
        if self._in_flight:
            raise InvalidRequest("this context is running a pass already: fork it to run two at once")
        end = self.kv_len + len(tokens)
        if end > self._capacity:
            self._grow(end, num_more)
        if self._queue is None:
            self._queue = _queues.acquire(self.model)
        handle: int = _host.forward.forward(self._queue, self.pages, self.kv_len, tokens, [], [])
        if self.adapter is not None:
            _host.forward.set_adapter(handle, self.adapter.id)
        self._in_flight = handle
        return handle

    def commit(self, num_tokens: int) -> None:
        """The pass in flight has run: its first `num_tokens` tokens are valid KV."""
        self.kv_len += num_tokens
        self._in_flight = 0

    def abandon(self, handle: int) -> None:
        """The pass `handle` failed or is not waited for; nothing if it was committed."""
        if self._in_flight == handle:
            self._in_flight = 0

    @raises
    async def prefill(self, tokens: list[int]) -> None:
        """Run `tokens` for their KV alone."""
        handle = self.forward(tokens)
        try:
            await wait_ticket(handle)
            _host.tickets.take_none(handle)
            self.commit(len(tokens))
        finally:
            self.abandon(handle)

    def fork(self) -> KvSequence:
        """A second sequence on the same KV, copy-on-write."""
        self.check_open()
        other = KvSequence(self.model, self.adapter)
        used = self._num_pages(self.kv_len)
        if used:
            other.pages = kv.fork(self.pages[:used])
        other.kv_len = self.kv_len
        other._capacity = used * self._page_size
        return other

    def truncate(self, length: int) -> None:
        """Keep the KV of the first `length` tokens at most, and the pages that it needs."""
        self.kv_len = min(self.kv_len, length)
        used = self._num_pages(self.kv_len)
        surplus = self.pages[used:]
        if surplus:
            self.pages = self.pages[:used]
            self._capacity = used * self._page_size
            kv.free(surplus)

    def close(self) -> None:
        """Give pages and queue back; a second time does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        pages, self.pages, self.kv_len, self._capacity = self.pages, [], 0, 0
        if self._queue is not None:
            _queues.release(self.model, self._queue)
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
        return -(-length // self._page_size)

    def _grow(self, end: int, num_more: int) -> None:
        self.check_open()
        needed = self._num_pages(end) - len(self.pages)
        ahead = self._num_pages(end + num_more) - self._num_pages(end)
        self.pages += kv.alloc(needed + min(ahead, GROWTH_PAGES))
        self._capacity = len(self.pages) * self._page_size
