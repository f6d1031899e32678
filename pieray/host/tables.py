"""What a guest has opened, by handle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pieray.config import Limits
from pieray.host.device.adapter_commands import OpenAdapter
from pieray.host.device.commands import Queue
from pieray.host.device.embeds import EmbedTable
from pieray.host.device.programs import OpenProgram
from pieray.host.open_handles import OpenHandles
from pieray.host.text.textstreams import MAX_STREAMS, TextStream
from pieray.messages import GREEDY, Sampler

if TYPE_CHECKING:
    from pieray.grammar import Matcher


class HandleTables:
    """A table per kind, each with its limit."""

    def __init__(self, limits: Limits) -> None:
        self.queues: OpenHandles[Queue] = OpenHandles("queue", "queues", limits.queues)
        self.samplers: OpenHandles[Sampler] = OpenHandles("sampler", "plans", limits.plans)
        self.matchers: OpenHandles[Matcher] = OpenHandles("matcher", "plans", limits.plans)
        self.adapters: OpenHandles[OpenAdapter] = OpenHandles("adapter", "plans", limits.plans)
        self.programs: OpenHandles[OpenProgram] = OpenHandles("tensor program", "programs", limits.programs)
        self.streams: OpenHandles[TextStream] = OpenHandles("text stream", "text streams", MAX_STREAMS)
        self.embeds = EmbedTable(limits.embed_bytes)

    def sampler(self, handle: int) -> Sampler:
        """The chain behind a sampler handle, greedy for 0; raises BadHandle."""
        return self.samplers.get(handle) if handle else GREEDY

    def adapter(self, handle: int) -> int:
        """The batcher's number behind an adapter handle, 0 for 0; raises BadHandle."""
        return self.adapters.get(handle).number if handle else 0
