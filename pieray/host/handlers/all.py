"""Every handler of one inferlet."""

from __future__ import annotations

from dataclasses import dataclass

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
from pieray.host.handlers.printed import Printed
from pieray.host.handlers.queues import QueueHandlers
from pieray.host.handlers.runtime import RuntimeHandlers
from pieray.host.handlers.samplers import SamplerHandlers
from pieray.host.handlers.scratch import ScratchHandlers
from pieray.host.handlers.session import SessionHandlers
from pieray.host.handlers.store import StoreHandlers
from pieray.host.handlers.tickets import TicketHandlers
from pieray.host.state import InstanceState


@dataclass(slots=True)
class GuestHandlers:
    """An object per interface of the WIT, by its name; and what the guest prints."""

    tickets: TicketHandlers
    queues: QueueHandlers
    kv: KvHandlers
    embeds: EmbedsHandlers
    samplers: SamplerHandlers
    forward: ForwardHandlers
    plans: PlanHandlers
    grammar: GrammarHandlers
    adapters: AdapterHandlers
    model: ModelHandlers
    chat: ChatHandlers
    session: SessionHandlers
    scratch: ScratchHandlers
    messaging: MessagingHandlers
    children: ChildrenHandlers
    http: HttpHandlers
    store: StoreHandlers
    mcp: McpHandlers
    runtime: RuntimeHandlers
    printed: Printed

    @classmethod
    def of(cls, state: InstanceState) -> GuestHandlers:
        return cls(
            tickets=TicketHandlers(state),
            queues=QueueHandlers(state),
            kv=KvHandlers(state),
            embeds=EmbedsHandlers(state),
            samplers=SamplerHandlers(state),
            forward=ForwardHandlers(state),
            plans=PlanHandlers(state),
            grammar=GrammarHandlers(state),
            adapters=AdapterHandlers(state),
            model=ModelHandlers(state),
            chat=ChatHandlers(state),
            session=SessionHandlers(state),
            scratch=ScratchHandlers(state),
            messaging=MessagingHandlers(state),
            children=ChildrenHandlers(state),
            http=HttpHandlers(state),
            store=StoreHandlers(state),
            mcp=McpHandlers(state),
            runtime=RuntimeHandlers(state),
            printed=Printed(state.log),
        )
