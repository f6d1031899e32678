"""What the inferlets of one actor share beyond their device: the ways to other actors and to the world."""

from __future__ import annotations

from dataclasses import dataclass, field

from pieray.config import Config
from pieray.host.adapters import AdapterDirectory
from pieray.host.aio import LoopThread
from pieray.host.grammars import GrammarService
from pieray.host.http.client import HttpClient
from pieray.wasm.timers import Timers


@dataclass(slots=True)
class Services:
    """Made by the actor, closed with its InferletHost.

    What an engine (or a test) does not have is None; the handlers on it are `unsupported` then.
    """

    timers: Timers = field(default_factory=Timers)
    """Calls functions at given times, on a thread of its own: they must be short."""
    grammars: GrammarService = field(default_factory=GrammarService)
    """Compiles grammars; its threads and processes start with the first."""
    loop: LoopThread = field(default_factory=LoopThread)
    """Where handlers wait for the world: HTTP, MCP servers."""
    http: HttpClient | None = None
    adapters: AdapterDirectory = field(default_factory=AdapterDirectory)
    """The engine's LoRA adapters, as its owner has loaded them so far."""

    @classmethod
    def of(cls, config: Config) -> Services:
        """The services that an engine's settings describe."""
        return cls(http=HttpClient(config.http_hosts, allow_private=config.http_private))

    def close(self) -> None:
        """Close all of them; idempotent."""
        self.timers.close()
        self.grammars.close()
        self.loop.close()
        if self.http is not None:
            self.http.close()
