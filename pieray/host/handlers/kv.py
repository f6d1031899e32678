"""WIT interface `kv`: pages, by handle."""

from __future__ import annotations

import numpy as np

from pieray.arrays import U32
from pieray.config import Limits
from pieray.host.device.commands import Command, Queue
from pieray.host.device.exports import check_name
from pieray.host.device.model_side import ModelSides
from pieray.host.open_handles import OpenHandles
from pieray.host.tickets import Kind, TicketTable
from pieray.texts import byte_size, check_size


class KvHandlers:
    """KV pages."""

    def __init__(self, limits: Limits, queues: OpenHandles[Queue], tickets: TicketTable, sides: ModelSides) -> None:
        self._limits = limits
        self._queues = queues
        self._tickets = tickets
        self._sides = sides
        self._lock = tickets.lock

    def page_size(self) -> int:
        return self._sides.first.pages.page_size

    def alloc(self, count: int) -> U32:
        return self.alloc_for("", count)

    def alloc_for(self, model: str, count: int) -> U32:
        with self._lock:
            return self._sides.of(model).pages.alloc(count)

    def free(self, pages: U32) -> None:
        with self._lock:
            side = self._sides.of_pages(pages)
            side.outbox.closing(pages)
            side.pages.free(pages)

    def fork(self, pages: U32) -> U32:
        with self._lock:
            return self._sides.of_pages(pages).pages.fork(pages)

    def copy(self, queue: int, src: int, src_offset: int, dst: int, dst_offset: int, count: int) -> int:
        found = self._queues.get(queue)
        with self._lock:
            side = self._sides.of_queue(found)
            side.outbox.check_room()
            ticket = self._tickets.issue(Kind.NONE)
            try:
                prepared = side.pages.stager.copy(src, src_offset, dst, dst_offset, count)
            except BaseException:
                self._tickets.drop((ticket,))
                raise
            side.outbox.stage(Command(ticket, found, prepared))
        return ticket

    def mask(self, page: int, offset: int, count: int, visible: bool) -> None:
        with self._lock:
            pages = self._sides.of_pages(np.array([page], np.uint32)).pages
            pages.mask(page, offset, count, is_visible=visible)

    def truncate(self, pages: U32, num_tokens: int) -> None:
        with self._lock:
            self._sides.of_pages(pages).pages.truncate(pages, num_tokens)

    def reserve(self, count: int) -> int:
        return self.reserve_for("", count)

    def reserve_for(self, model: str, count: int) -> int:
        with self._lock:
            return self._sides.of(model).requests.reserve(count)

    def idle(self, pages: U32) -> None:
        with self._lock:
            self._sides.of_pages(pages).pages.frame_ids(pages)
            for side in self._sides.all:
                side.outbox.leases.idle()

    def pin(self) -> None:
        with self._lock:
            for side in self._sides.all:
                side.outbox.leases.pin()

    def unpin(self) -> None:
        with self._lock:
            for side in self._sides.all:
                side.outbox.leases.unpin()

    def expect(self, count: int) -> None:
        self.expect_for("", count)

    def expect_for(self, model: str, count: int) -> None:
        with self._lock:
            side = self._sides.of(model)
            side.pages.check_limit(count)
            side.outbox.leases.expect(count)

    def export_pages(
        self, name: str, pages: U32, num_tokens: int, meta: str, access: str, ttl_ms: int, pinned: bool, replace: bool
    ) -> int:
        check_name(name)
        check_size("message_bytes", self._limits.message_bytes, byte_size(meta), "the meta")
        with self._lock:
            side = self._sides.of_pages(pages)
            exported = side.pages.exports.begin(pages, num_tokens)
            try:
                return side.requests.export(exported, name, meta, access, ttl_ms, pinned=pinned, replace=replace)
            except BaseException:
                side.pages.exports.end(exported)
                raise

    def import_pages(self, name: str) -> int:
        return self.import_for("", name)

    def import_for(self, model: str, name: str) -> int:
        check_name(name)
        with self._lock:
            return self._sides.of(model).requests.open(name)

    def unexport(self, name: str, access: str) -> int:
        return self.unexport_for("", name, access)

    def unexport_for(self, model: str, name: str, access: str) -> int:
        check_name(name)
        with self._lock:
            return self._sides.of(model).requests.remove(name, access)

    def list_exports(self, prefix: str) -> int:
        return self.list_exports_for("", prefix)

    def list_exports_for(self, model: str, prefix: str) -> int:
        check_name(prefix, least=0)
        with self._lock:
            return self._sides.of(model).requests.names(prefix)
