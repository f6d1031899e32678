"""What one inferlet consists of, as its InferletActor has it; `GuestHandlers.of` gives each handler what it uses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from pieray.errors import PierayError
from pieray.host.device.model_side import ModelSides
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory
from pieray.host.services import Services
from pieray.host.session.client_servers import ClientServers
from pieray.host.session.files import FileInbox
from pieray.host.session.scratch import ScratchFolder
from pieray.host.session.session import EventLog, Mailbox
from pieray.host.tables import HandleTables
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import TicketTable


@dataclass(slots=True)
class InferletParts:
    """`lock` guards sides and handle tables: guest and reader threads both touch them."""

    identity: Identity
    services: Services
    models: ModelDirectory
    tickets: TicketTable
    sides: ModelSides
    log: EventLog
    mailbox: Mailbox
    wake: Callable[[], None]
    """Lets the guest look at its tickets again; from any thread."""
    fail: Callable[[PierayError], None]
    """Ends the inferlet with an error; from any thread."""
    lock: threading.RLock = field(init=False)
    tables: HandleTables = field(init=False)
    work: TicketWork = field(init=False)
    scratch: ScratchFolder = field(init=False)
    files: FileInbox = field(init=False)
    """Files of the client, on their way to the scratch folder."""
    client_servers: ClientServers = field(init=False)
    """MCP servers that the client has brought."""

    def __post_init__(self) -> None:
        launch, limits = self.identity.launch, self.identity.limits
        self.lock = self.tickets.lock
        self.tables = HandleTables(limits)
        self.work = TicketWork(launch.instance_id, self.tickets, prefetch=self.prefetch, wake=self.wake)
        self.scratch = ScratchFolder(limits.scratch_bytes)
        self.files = FileInbox(self.scratch, self.work.complete)
        self.client_servers = ClientServers(launch.instance_id, launch.client_servers, self.services.loop)

    def prefetch(self) -> None:
        """Ask for the pages that were given up, if any: the guest goes on."""
        for side in self.sides.all:
            if side.pages.num_swapped:
                with self.lock:
                    side.outbox.prefetch()

    def close(self) -> None:
        """The guest has ended: stop the work outside of the device, give back what is held elsewhere."""
        self.work.close()
        self.files.close()
        self.scratch.clear()
