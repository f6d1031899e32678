"""A device and the parts of an inferlet without processes, for tests of handlers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from pieray.config import Limits
from pieray.errors import PierayError
from pieray.host.device.outbox import Outbox
from pieray.host.device.prefixes import Prefixes
from pieray.host.device.transfers import Transfers
from pieray.host.device.visits import Visits
from pieray.host.handlers import GuestHandlers
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory, ModelInfo, ServedModel
from pieray.host.parts import InferletParts
from pieray.host.services import Services
from pieray.host.session.session import EventLog, Mailbox
from pieray.host.tickets import TicketTable
from pieray.messages import Completed, Failed, Forward, Launch, Message
from pieray.models.tokenizer import Tokenizer, TokenizerSpec
from pieray.pages.lineage import Lineage
from pieray.pages.space import PageSpace
from pieray.programs.capabilities import Capabilities

NUMBER = 7
PAGE_SIZE = 4
VOCAB = 256


def byte_tokenizer(template: str | None = None) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = RawTokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return Tokenizer(TokenizerSpec(raw.to_str().encode(), template, (0,), {}))


class FakeDevice:
    """Records what is posted; leases when told to."""

    is_chosen = True

    def __init__(self) -> None:
        self.posted: list[Message] = []
        self.leases: list[tuple[int, float]] = []
        self.hashes: list[bytes] = []  # of each lease
        self.asked: list[Message] = []
        self.released: list[int] = []
        self.num_more: list[int] = []
        self.preempted_pages: list[tuple[int, bool]] = []
        self.error: Exception | None = None

    def post(self, messages: Sequence[Message]) -> None:
        if self.error is not None:
            raise self.error
        self.posted.extend(messages)

    def lease(
        self, inferlet: int, count: int, deadline_s: float, hashes: bytes = b"", num_tokens: int = 0, num_more: int = 0
    ) -> None:
        if self.error is not None:
            raise self.error
        assert inferlet == NUMBER
        self.leases.append((count, deadline_s))
        self.num_more.append(num_more)
        self.hashes.append(hashes)

    def preempted(self, inferlet: int, num_pages: int, *, is_whole: bool) -> None:
        assert inferlet == NUMBER
        self.preempted_pages.append((num_pages, is_whole))

    def ask_ledger(self, message: Message) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append(message)

    def release(self, inferlet: int, pages: Sequence[int]) -> None:
        assert inferlet == NUMBER
        self.released.extend(pages)


@dataclass
class FakeTimer:
    """Rings when a test says so."""

    seconds: float
    call: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def ring(self) -> None:
        assert not self.is_cancelled
        self.call()


class Bench:
    """One inferlet's handlers over a fake device."""

    def __init__(
        self,
        limits: Limits | None = None,
        lease_pages: int = 4,
        capabilities: Capabilities | None = None,
        template: str | None = None,
        tenant: str | None = None,
        num_pages: int = 64,
        services: Services | None = None,
    ) -> None:
        """`tenant`: whose pages it finds, see Prefixes; None: it looks for none.  `num_pages`: of the pool.
        `services`: those of an actor, which outlive it."""
        self.services = services or Services()
        self.failures: list[PierayError] = []
        self.timers: list[FakeTimer] = []
        self.limits = limits or Limits()
        self.device = FakeDevice()
        info = ModelInfo("fake", "llama", VOCAB, 1024, PAGE_SIZE, num_pages, "float32", "cpu")
        directory = ModelDirectory([ServedModel(info, byte_tokenizer(template))])
        self.pages = PageSpace(PAGE_SIZE, self.limits.pages)
        lineage = Lineage(PAGE_SIZE, self.pages.live_frames)
        self.tickets = TicketTable(self.limits.tickets)
        found = Prefixes(NUMBER, self.device, self.pages, lineage, tenant=tenant or "", model="fake")
        self.outbox = Outbox(
            NUMBER,
            self.device,
            self.pages,
            self.tickets,
            lease_pages=lease_pages,
            page_wait_s=9.0,
            prefixes=None if tenant is None else found,
            pool_pages=info.num_pages,
            transfers=Transfers(self.limits.pass_bytes, self.services.transfers),
            call_later=self.call_later,
            lineage=lineage,
        )
        self.log = EventLog("it", self.limits)
        self.mailbox = Mailbox(self.limits, self.tickets)
        self.parts = InferletParts(
            Identity(
                Launch("it", "it", "it.py", "def main(): ...", b"", "{}", {}),
                NUMBER,
                self.limits,
                capabilities or Capabilities(),
            ),
            self.services,
            directory,
            self.tickets,
            self.pages,
            lineage,
            self.outbox,
            Visits(None, lambda call: call(), lambda call: call()),
            self.log,
            self.mailbox,
            wake=self.wake,
            fail=self.fail,
        )
        self.handlers = GuestHandlers.of(self.parts)

    def wake(self) -> None:
        """The guest may look at its tickets again."""

    def fail(self, error: PierayError) -> None:
        """The inferlet ends."""
        self.failures.append(error)

    def change(self, *, launch: dict[str, Any] | None = None, **parts: Any) -> None:
        """The same inferlet launched with other settings: its handlers are made anew."""
        identity = self.parts.identity
        parts["identity"] = dataclasses.replace(identity, launch=dataclasses.replace(identity.launch, **(launch or {})))
        for name, value in parts.items():
            setattr(self.parts, name, value)
        self.handlers = GuestHandlers.of(self.parts)

    def call_later(self, seconds: float, call: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(seconds, call))
        return self.timers[-1]

    def forwards(self) -> list[Forward]:
        return [m for m in self.device.posted if isinstance(m, Forward)]

    def answer(self, message: Message) -> None:
        """The batcher's answer, as the device client routes it."""
        assert isinstance(message, (Completed, Failed))
        assert message.ticket >> 32 == NUMBER
        from pieray.errors import error_from

        result = message.value if isinstance(message, Completed) else error_from(message.code, message.message)
        self.outbox.answered(message.ticket & 0xFFFFFFFF, result)

    def complete_all(self, token: int = 65) -> None:
        """Answer everything posted: passes with none, samples with `token`."""
        posted, self.device.posted = self.device.posted, []
        for message in posted:
            assert isinstance(message, Message)
            self.answer(Completed(message.ticket, None))  # type: ignore[attr-defined]
            for output in getattr(message, "outputs", []):
                self.answer(Completed(output.ticket, token.to_bytes(4, "little")))

    def events(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        self.log.subscribe(0, lambda events: found.extend((e.kind, e.payload) for e in events))
        return found


def limits_json(bench: Bench) -> dict[str, dict[str, float]]:
    parsed: dict[str, dict[str, float]] = json.loads(bench.handlers.runtime.limits())
    return parsed
