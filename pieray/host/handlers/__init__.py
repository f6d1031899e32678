"""The handlers of the WIT, one group per interface, and the object that answers a guest with all of them.

A method is named after its interface and function: `kv.alloc` is `kv_alloc`.  It raises a PierayError to
give the guest a typed error.  Nothing here blocks: the single blocking point, `tickets.wait`, is the wasm
host's, built on `tickets_flush` and `tickets_ready`.
"""

from pieray.host.handlers.adapters import AdapterHandlers
from pieray.host.handlers.chat import ChatHandlers
from pieray.host.handlers.children import ChildrenHandlers
from pieray.host.handlers.embeds import EmbedsHandlers
from pieray.host.handlers.forward import ForwardHandlers
from pieray.host.handlers.grammar import GrammarHandlers
from pieray.host.handlers.http import HttpHandlers
from pieray.host.handlers.kv import KvHandlers
from pieray.host.handlers.mcp import McpHandlers
from pieray.host.handlers.messaging import MessagingHandlers
from pieray.host.handlers.model import ModelHandlers
from pieray.host.handlers.plans import PlanHandlers
from pieray.host.handlers.queues import QueueHandlers
from pieray.host.handlers.runtime import RuntimeHandlers
from pieray.host.handlers.samplers import SamplerHandlers
from pieray.host.handlers.scratch import ScratchHandlers
from pieray.host.handlers.session import SessionHandlers
from pieray.host.handlers.store import StoreHandlers
from pieray.host.handlers.tickets import TicketHandlers


class GuestHandlers(
    TicketHandlers,
    QueueHandlers,
    KvHandlers,
    EmbedsHandlers,
    SamplerHandlers,
    ForwardHandlers,
    PlanHandlers,
    GrammarHandlers,
    AdapterHandlers,
    ModelHandlers,
    ChatHandlers,
    SessionHandlers,
    ScratchHandlers,
    MessagingHandlers,
    ChildrenHandlers,
    HttpHandlers,
    StoreHandlers,
    McpHandlers,
    RuntimeHandlers,
):
    """Every handler of one inferlet."""


__all__ = ["GuestHandlers"]
