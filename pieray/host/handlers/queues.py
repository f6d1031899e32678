"""WIT interface `queues`."""

from __future__ import annotations

from pieray.errors import InvalidRequest
from pieray.host.device.commands import Queue, SyncTicket
from pieray.host.device.model_side import ModelSides
from pieray.host.open_handles import OpenHandles
from pieray.host.tickets import TicketTable
from pieray.tenants import MAX_PRIORITY
from pieray.urgency import command_priority


class QueueHandlers:
    """Command queues (paper, section 4)."""

    def __init__(self, queues: OpenHandles[Queue], tickets: TicketTable, sides: ModelSides, priority: int) -> None:
        """`priority`: of the launch."""
        self._queues = queues
        self._tickets = tickets
        self._sides = sides
        self._priority = priority

    def create(self, model: str) -> int:
        with self._tickets.lock:
            side = self._sides.of(model)
        queue = Queue(0, command_priority(self._priority, 0), self._sides.name_of(side))
        queue.handle = self._queues.put(queue)
        return queue.handle

    def set_priority(self, queue: int, priority: int) -> None:
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise InvalidRequest(f"priority is from -{MAX_PRIORITY} to {MAX_PRIORITY}; given {priority}")
        self._queues.get(queue).priority = command_priority(self._priority, priority)

    def set_reuse(self, queue: int, reuse: bool) -> None:
        self._queues.get(queue).is_reusing = reuse

    def flush(self, queue: int) -> None:
        found = self._queues.get(queue)
        with self._tickets.lock:
            self._sides.of_queue(found).outbox.flush()

    def synchronize(self, queue: int) -> int:
        found = self._queues.get(queue)
        with self._tickets.lock:
            ticket = self._tickets.add(SyncTicket(found))
            if found.outstanding:
                found.syncs[ticket] = None
            else:
                self._tickets.resolve(ticket, None)
        return ticket

    def close(self, queue: int) -> None:
        found = self._queues.get(queue)
        with self._tickets.lock:
            if found.outstanding:
                raise InvalidRequest(
                    f"queue {queue} has {len(found.outstanding)} commands outstanding; wait for them before closing it"
                )
            self._queues.pop(queue)
