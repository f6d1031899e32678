"""WIT interface `queues`."""

from __future__ import annotations

from pieray.errors import InvalidRequest, QuotaExceeded
from pieray.host.device.commands import Queue, SyncTicket
from pieray.host.handlers.base import HandlerGroup
from pieray.tenants import MAX_PRIORITY
from pieray.urgency import command_priority


class QueueHandlers(HandlerGroup):
    """Command queues (paper, section 4)."""

    def create(self, model: str) -> int:
        state = self._state
        state.models.get(model)
        if len(state.queues) >= state.limits.queues:
            raise QuotaExceeded(f"queues: the limit is {state.limits.queues} open; one more was asked for")
        handle = state.next_queue
        state.next_queue += 1
        state.queues[handle] = Queue(handle, command_priority(state.launch.priority, 0))
        return handle

    def set_priority(self, queue: int, priority: int) -> None:
        if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            raise InvalidRequest(f"priority is from -{MAX_PRIORITY} to {MAX_PRIORITY}; given {priority}")
        self._state.queue(queue).priority = command_priority(self._state.launch.priority, priority)

    def set_reuse(self, queue: int, reuse: bool) -> None:
        self._state.queue(queue).is_reusing = reuse

    def flush(self, queue: int) -> None:
        state = self._state
        state.queue(queue)
        with state.lock:
            state.outbox.flush()

    def synchronize(self, queue: int) -> int:
        state = self._state
        found = state.queue(queue)
        with state.lock:
            ticket = state.tickets.add(SyncTicket(found))
            if found.outstanding:
                found.syncs[ticket] = None
            else:
                state.tickets.resolve(ticket, None)
        return ticket

    def close(self, queue: int) -> None:
        state = self._state
        found = state.queue(queue)
        with state.lock:
            if found.outstanding:
                raise InvalidRequest(
                    f"queue {queue} has {len(found.outstanding)} commands outstanding; wait for them before closing it"
                )
            del state.queues[queue]
