"""WIT interface `kv`: pages, by handle."""

from __future__ import annotations

from pieray.host.handlers.base import U32, HandlerGroup
from pieray.host.outbox import Command
from pieray.host.tickets import Kind


class KvHandlers(HandlerGroup):
    """KV pages."""

    def kv_page_size(self) -> int:
        return self._state.pages.page_size

    def kv_alloc(self, count: int) -> U32:
        state = self._state
        with state.lock:
            return state.pages.alloc(count)

    def kv_free(self, pages: U32) -> None:
        state = self._state
        with state.lock:
            state.pages.free(pages)

    def kv_fork(self, pages: U32) -> U32:
        state = self._state
        with state.lock:
            return state.pages.fork(pages)

    def kv_copy(self, queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> int:
        state = self._state
        found = state.queue(queue)
        with state.lock:
            state.outbox.check_room()
            ticket = state.tickets.issue(Kind.NONE)
            try:
                prepared = state.pages.stage_copy(src, src_offset, dst, dst_offset, count)
            except BaseException:
                state.tickets.drop((ticket,))
                raise
            state.lineage.record_copy(prepared)
            state.outbox.stage(Command(ticket, found, prepared))
        return ticket
