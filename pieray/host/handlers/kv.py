"""WIT interface `kv`: pages, by handle."""

from __future__ import annotations

from pieray.host.device.commands import Command
from pieray.host.device.exports import PageRequests, check_name
from pieray.host.device.tickets import Kind
from pieray.host.handlers.base import U32, HandlerGroup
from pieray.host.state import InstanceState
from pieray.texts import byte_size, check_size


class KvHandlers(HandlerGroup):
    """KV pages."""

    def __init__(self, state: InstanceState) -> None:
        super().__init__(state)
        self._requests = PageRequests(state)

    def page_size(self) -> int:
        return self._state.pages.page_size

    def alloc(self, count: int) -> U32:
        state = self._state
        with state.lock:
            return state.pages.alloc(count)

    def free(self, pages: U32) -> None:
        state = self._state
        with state.lock:
            state.outbox.closing(pages)
            state.pages.free(pages)

    def fork(self, pages: U32) -> U32:
        state = self._state
        with state.lock:
            return state.pages.fork(pages)

    def copy(self, queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> int:
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
            state.outbox.stage(Command(ticket, found, prepared))
        return ticket

    def mask(self, page: int, offset: int, count: int, visible: bool) -> None:
        state = self._state
        with state.lock:
            state.pages.mask(page, offset, count, is_visible=visible)

    def truncate(self, pages: U32, num_tokens: int) -> None:
        state = self._state
        with state.lock:
            state.pages.truncate(pages, num_tokens)

    def reserve(self, count: int) -> int:
        with self._state.lock:
            return self._requests.reserve(count)

    def idle(self, pages: U32) -> None:
        state = self._state
        with state.lock:
            state.pages.frame_ids(pages)
            state.outbox.leases.idle()

    def pin(self) -> None:
        with self._state.lock:
            self._state.outbox.leases.pin()

    def unpin(self) -> None:
        with self._state.lock:
            self._state.outbox.leases.unpin()

    def expect(self, count: int) -> None:
        state = self._state
        with state.lock:
            state.pages.check_limit(count)
            state.outbox.leases.expect(count)

    def export_pages(
        self, name: str, pages: U32, num_tokens: int, meta: str, access: str, ttl_ms: int, pinned: bool, replace: bool
    ) -> int:
        state = self._state
        check_name(name)
        check_size("message_bytes", state.limits.message_bytes, byte_size(meta), "the meta")
        with state.lock:
            lent = state.pages.lend(pages, num_tokens)
            try:
                return self._requests.export(lent, name, meta, access, ttl_ms, pinned=pinned, replace=replace)
            except BaseException:
                state.pages.end_loan(lent)
                raise

    def import_pages(self, name: str) -> int:
        check_name(name)
        with self._state.lock:
            return self._requests.open(name)

    def unexport(self, name: str, access: str) -> int:
        check_name(name)
        with self._state.lock:
            return self._requests.remove(name, access)

    def list_exports(self, prefix: str) -> int:
        check_name(prefix, least=0)
        with self._state.lock:
            return self._requests.names(prefix)
