"""What the handler groups of one inferlet share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pieray.config import Limits
from pieray.errors import BadHandle, PierayError
from pieray.host.device.adapters import OpenAdapter
from pieray.host.device.commands import Queue
from pieray.host.device.embeds import EmbedTable
from pieray.host.device.outbox import Outbox
from pieray.host.device.tickets import Kind, TicketTable, WorkTicket
from pieray.host.models import ModelDirectory
from pieray.host.open_handles import OpenHandles
from pieray.host.services import Services
from pieray.host.session.client_servers import ClientServers
from pieray.host.session.files import FileInbox
from pieray.host.session.scratch import ScratchFolder
from pieray.host.session.session import EventLog, Mailbox
from pieray.host.text.textstreams import TextStreams
from pieray.messages import GREEDY, Launch, Sampler
from pieray.pages.handles import PageSpace
from pieray.pages.lineage import Lineage
from pieray.programs.capabilities import Capabilities

log = logging.getLogger(__name__)


def _nobody() -> None: ...


def _unheard(_error: PierayError) -> None: ...


@dataclass(slots=True)
class InstanceState:
    """One inferlet.  `lock` guards pages, outbox and queues: guest and reader threads both touch them."""

    launch: Launch
    number: int
    limits: Limits
    capabilities: Capabilities
    services: Services
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
    lock: threading.RLock = field(init=False)
    samplers: OpenHandles[Sampler] = field(init=False)
    matchers: OpenHandles[Any] = field(init=False)
    embeds: EmbedTable = field(init=False)
    scratch: ScratchFolder = field(init=False)
    files: FileInbox = field(init=False)
    """Files of the client, on their way to the scratch folder."""
    client_servers: ClientServers = field(init=False)
    """MCP servers that the client has brought."""
    adapters: OpenHandles[OpenAdapter] = field(init=False)
    wake: Callable[[], None] = _nobody
    """Lets the guest look at its tickets again; from any thread."""
    fail: Callable[[PierayError], None] = _unheard
    """Ends the inferlet with an error; from any thread."""
    is_closed: bool = False
    closers: list[Callable[[], None]] = field(default_factory=list)
    """Called when the guest has ended, last first: give back what handlers hold elsewhere."""

    def __post_init__(self) -> None:
        self.lock = self.tickets.lock
        self.scratch = ScratchFolder(self.limits.scratch_bytes)
        self.files = FileInbox(self.scratch, self.complete)
        self.client_servers = ClientServers(self.launch.instance_id, self.launch.client_servers, self.services.loop)
        self.samplers = OpenHandles("sampler", "plans", self.limits.plans)
        self.matchers = OpenHandles("matcher", "plans", self.limits.plans)
        self.embeds = EmbedTable(self.limits.embed_bytes)
        self.adapters = OpenHandles("adapter", "plans", self.limits.plans)

    def sampler(self, handle: int) -> Sampler:
        """The chain behind a sampler handle, greedy for 0; raises BadHandle."""
        return self.samplers.get(handle) if handle else GREEDY

    def adapter(self, handle: int) -> int:
        """The batcher's number behind an adapter handle, 0 for 0; raises BadHandle."""
        return self.adapters.get(handle).number if handle else 0

    @property
    def instance_id(self) -> str:
        return self.launch.instance_id

    def queue(self, handle: int) -> Queue:
        """The open queue behind a handle; raises BadHandle."""
        try:
            return self.queues[handle]
        except KeyError:
            raise BadHandle(f"queue {handle} is not open") from None

    def begin(self, kind: Kind, cancel: Callable[[], None] | None = None) -> int:
        """A ticket for work outside of the device, ended by `complete`; `cancel` stops that work."""
        return self.tickets.add(WorkTicket(kind, cancel))

    def on_cancel(self, ticket: int, cancel: Callable[[], None]) -> None:
        """What stops the work behind a ticket of `begin`."""
        found = self.tickets.get(ticket)
        if isinstance(found, WorkTicket):
            found.cancel = cancel

    def complete(self, ticket: int, result: object, settle: Callable[[bool], None] | None = None) -> bool:
        """The work has its result, or failed with a PierayError; from any thread.  False: the guest forgot it.

        `settle` is told whether the guest takes the result, unless this is False.
        """
        is_wanted = self.tickets.resolve(ticket, result, settle)
        if is_wanted and self.pages.num_swapped:
            with self.lock:
                self.outbox.prefetch()
        self.wake()
        return is_wanted

    def abandon(self, ticket: int) -> None:
        """The work of a ticket could not begin: nobody is told."""
        self.on_cancel(ticket, _nobody)
        self.tickets.drop((ticket,))

    def close(self) -> None:
        """The guest has ended: stop the work outside of the device, give back what is held elsewhere."""
        self.is_closed = True
        self.tickets.close()
        while self.closers:
            self._quietly(self.closers.pop())
        self.files.close()
        self.scratch.clear()

    def _quietly(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException:  # the others must be called all the same
            log.exception("%s: what it held could not be given back", self.instance_id)
