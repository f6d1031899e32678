"""What the inferlets of one actor share beyond their device: the ways to other actors and to the world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pieray.concurrency.fair_pool import FairPool
from pieray.concurrency.loop_thread import LoopThread
from pieray.concurrency.timers import Timers
from pieray.config import Config, Limits
from pieray.host.broker.client import BrokerClient
from pieray.host.children.service import ChildService
from pieray.host.device.adapter_commands import AdapterDirectory
from pieray.host.device.transfers import ActorTransfers
from pieray.host.text.grammars import GrammarService
from pieray.host.text.textwork import TextWorkers
from pieray.world.http.client import HttpClient
from pieray.world.mcp.servers import ToolServers

WORK_THREADS = 2


@dataclass(slots=True)
class Services:
    """Made by the actor, closed with its InferletHost.

    What an engine (or a test) does not have is None; the handlers on it are `unsupported` then.
    """

    timers: Timers = field(default_factory=Timers)
    """Calls functions at given times, on a thread of its own: they must be short."""
    broker: BrokerClient | None = None
    """Messages between inferlets, and the key-value store."""
    grammars: GrammarService = field(default_factory=GrammarService)
    """Compiles grammars; its threads and processes start with the first."""
    texts: TextWorkers = field(default_factory=TextWorkers)
    """Tokenizes, renders and parses long texts; its threads and processes start with the first."""
    threads: FairPool = field(default_factory=lambda: FairPool("working for handlers", WORK_THREADS))
    """Does what takes longer than guests should wait for each other, where the libraries let others run meanwhile."""
    loop: LoopThread = field(default_factory=LoopThread)
    """Where handlers wait for the world: HTTP, MCP servers."""
    http: HttpClient | None = None
    children: ChildService | None = None
    """Launches inferlets for inferlets."""
    adapters: AdapterDirectory = field(default_factory=AdapterDirectory)
    """The engine's LoRA adapters, as its owner has loaded them so far."""
    transfers: ActorTransfers = field(default_factory=lambda: ActorTransfers.of(Limits()))
    """Bytes of passes that all inferlets have under way."""
    mcp: ToolServers | None = None
    """MCP servers of the operator; those of clients are each inferlet's."""

    @classmethod
    def of(cls, config: Config) -> Services:
        """The services that an engine's settings describe."""
        http = HttpClient(config.http_hosts, allow_private=config.http_private)
        services = cls(http=http, mcp=ToolServers(config.mcp), transfers=ActorTransfers.of(config.limits))
        assert services.mcp is not None
        services.loop.before_close(services.mcp.close)
        return services

    def broker_status(self) -> dict[str, Any]:
        """Whether the link to the broker is up; if not, why."""
        return {"is_up": False, "error": "this actor has none"} if self.broker is None else self.broker.status()

    def flush(self) -> None:
        """Send what was posted while guests ran."""
        if self.broker is not None:
            self.broker.flush()

    def close(self) -> None:
        """Close all of them; idempotent."""
        if self.children is not None:
            self.children.close()
        self.timers.close()
        if self.broker is not None:
            self.broker.close()
        self.grammars.close()
        self.texts.close()
        self.threads.close()
        self.loop.close()
        if self.http is not None:
            self.http.close()
