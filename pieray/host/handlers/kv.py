"""WIT interface `kv`: pages, by handle."""

from __future__ import annotations

from pieray.arrays import U32
from pieray.config import Limits
from pieray.host.device.commands import Command, Queue
from pieray.host.device.exports import PageRequests, check_name
from pieray.host.device.outbox import Outbox
from pieray.host.open_handles import OpenHandles
from pieray.host.tickets import Kind, TicketTable
from pieray.pages.handles import PageSpace
from pieray.texts import byte_size, check_size


class KvHandlers:
    """KV pages."""

    def __init__(
        self,
        limits: Limits,
        queues: OpenHandles[Queue],
        pages: PageSpace,
        tickets: TicketTable,
        outbox: Outbox,
        requests: PageRequests,
    ) -> None:
        self._limits = limits
        self._queues = queues
        self._pages = pages
        self._tickets = tickets
        self._outbox = outbox
        self._requests = requests
        self._lock = tickets.lock

    def page_size(self) -> int:
        return self._pages.page_size

    def alloc(self, count: int) -> U32:
        with self._lock:
            return self._pages.alloc(count)

    def free(self, pages: U32) -> None:
        with self._lock:
            self._outbox.closing(pages)
            self._pages.free(pages)

    def fork(self, pages: U32) -> U32:
        with self._lock:
            return self._pages.fork(pages)

    def copy(self, queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> int:
        found = self._queues.get(queue)
        with self._lock:
            self._outbox.check_room()
            ticket = self._tickets.issue(Kind.NONE)
            try:
                prepared = self._pages.stage_copy(src, src_offset, dst, dst_offset, count)
            except BaseException:
                self._tickets.drop((ticket,))
                raise
            self._outbox.stage(Command(ticket, found, prepared))
        return ticket

    def mask(self, page: int, offset: int, count: int, visible: bool) -> None:
        with self._lock:
            self._pages.mask(page, offset, count, is_visible=visible)

    def truncate(self, pages: U32, num_tokens: int) -> None:
        with self._lock:
            self._pages.truncate(pages, num_tokens)

    def reserve(self, count: int) -> int:
        with self._lock:
            return self._requests.reserve(count)

    def idle(self, pages: U32) -> None:
        with self._lock:
            self._pages.frame_ids(pages)
            self._outbox.leases.idle()

    def pin(self) -> None:
        with self._lock:
            self._outbox.leases.pin()

    def unpin(self) -> None:
        with self._lock:
            self._outbox.leases.unpin()

    def expect(self, count: int) -> None:
        with self._lock:
            self._pages.check_limit(count)
            self._outbox.leases.expect(count)

    def export_pages(
        self, name: str, pages: U32, num_tokens: int, meta: str, access: str, ttl_ms: int, pinned: bool, replace: bool
    ) -> int:
        check_name(name)
        check_size("message_bytes", self._limits.message_bytes, byte_size(meta), "the meta")
        with self._lock:
            exported = self._pages.begin_export(pages, num_tokens)
            try:
                return self._requests.export(exported, name, meta, access, ttl_ms, pinned=pinned, replace=replace)
            except BaseException:
                self._pages.end_export(exported)
                raise

    def import_pages(self, name: str) -> int:
        check_name(name)
        with self._lock:
            return self._requests.open(name)

    def unexport(self, name: str, access: str) -> int:
        check_name(name)
        with self._lock:
            return self._requests.remove(name, access)

    def list_exports(self, prefix: str) -> int:
        check_name(prefix, least=0)
        with self._lock:
            return self._requests.names(prefix)
