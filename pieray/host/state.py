"""What the handler groups of one inferlet share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from pieray.config import Limits
from pieray.errors import BadHandle
from pieray.host.models import ModelDirectory, TextStreams
from pieray.host.outbox import Outbox, Queue
from pieray.host.session import EventLog, Mailbox
from pieray.host.tickets import TicketTable
from pieray.pages.handles import PageSpace
from pieray.pages.lineage import Lineage


@dataclass(slots=True)
class InstanceState:
    """One inferlet.  `lock` guards pages, outbox and queues: guest and reader threads both touch them."""

    instance_id: str
    number: int
    limits: Limits
    tickets: TicketTable
    pages: PageSpace
    lineage: Lineage
    outbox: Outbox
    log: EventLog
    mailbox: Mailbox
    models: ModelDirectory
    streams: TextStreams
    queues: dict[int, Queue] = field(default_factory=dict)
    next_queue: int = 1
    lock: threading.RLock = field(default_factory=threading.RLock)

    def queue(self, handle: int) -> Queue:
        """The open queue behind a handle; raises BadHandle."""
        try:
            return self.queues[handle]
        except KeyError:
            raise BadHandle(f"queue {handle} is not open") from None
