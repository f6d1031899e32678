"""Every handler of one inferlet."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.host.broker.calls import BrokerCalls
from pieray.host.device.adapter_commands import AdapterDirectory
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
from pieray.host.handlers.programs import ProgramHandlers
from pieray.host.handlers.queues import QueueHandlers
from pieray.host.handlers.runtime import RuntimeHandlers
from pieray.host.handlers.samplers import SamplerHandlers
from pieray.host.handlers.scratch import ScratchHandlers
from pieray.host.handlers.session import SessionHandlers
from pieray.host.handlers.slow_work import SlowWork
from pieray.host.handlers.store import StoreHandlers
from pieray.host.handlers.tickets import TicketHandlers
from pieray.host.parts import InferletParts


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
    programs: ProgramHandlers
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
    def of(cls, parts: InferletParts) -> GuestHandlers:
        """The handlers of the inferlet that consists of `parts`."""
        identity, services, models, tables, work = (
            parts.identity,
            parts.services,
            parts.models,
            parts.tables,
            parts.work,
        )
        limits, tickets, sides = identity.limits, parts.tickets, parts.sides
        slow = SlowWork(identity, services, models)

        def broker_calls() -> BrokerCalls:
            return BrokerCalls(identity, work, services.timers, lambda: services.broker)

        passes = ForwardHandlers(limits, tables, tickets, sides)
        plans = PlanHandlers(limits, tables, tickets, sides)
        return cls(
            tickets=TicketHandlers(tickets, sides),
            queues=QueueHandlers(tables.queues, tickets, sides, identity.launch.priority),
            kv=KvHandlers(limits, tables.queues, tickets, sides),
            embeds=EmbedsHandlers(limits, tables, tickets, sides, identity.tenant),
            samplers=SamplerHandlers(models, tables.samplers),
            forward=passes,
            plans=plans,
            programs=ProgramHandlers(limits, tables, tickets, sides, passes, plans),
            grammar=GrammarHandlers(identity, models, tables.matchers, services.grammars, slow, work),
            adapters=AdapterHandlers(
                identity,
                AdapterDirectory() if identity.launch.model else services.adapters,
                tables.adapters,
                parts.scratch,
                tickets,
                sides.first.outbox,
            ),
            model=ModelHandlers(models, tables.streams, slow),
            chat=ChatHandlers(models, slow),
            session=SessionHandlers(parts.log, parts.mailbox, parts.scratch, parts.files, slow, work),
            scratch=ScratchHandlers(parts.scratch),
            messaging=MessagingHandlers(identity, broker_calls(), work),
            children=ChildrenHandlers(identity, services, work, parts.fail),
            http=HttpHandlers(identity, services, work),
            store=StoreHandlers(identity, broker_calls()),
            mcp=McpHandlers(identity, services, parts.client_servers, slow, work),
            runtime=RuntimeHandlers(identity, tables, sides, parts.log, parts.scratch, services.timers, work),
            printed=Printed(parts.log),
        )
