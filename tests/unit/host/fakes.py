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
from pieray.host.device.exports import PageRequests
from pieray.host.device.model_side import ModelSide, ModelSides, SidesShare
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
        others: dict[str, ModelInfo] | None = None,
    ) -> None:
        """`tenant`: whose pages it finds, see Prefixes; None: it looks for none.  `num_pages`: of the pool.
        `services`: those of an actor, which outlive it.  `others`: models beside the default one, each on a device of
        its own (`devices`)."""
        self.services = services or Services()
        self.failures: list[PierayError] = []
        self.timers: list[FakeTimer] = []
        self.limits = limits or Limits()
        self.device = FakeDevice()
        self.tickets = TicketTable(self.limits.tickets)
        self.log = EventLog("it", self.limits)
        launch = Launch("it", "it", "it.py", "def main(): ...", b"", "{}", {}, tenant=tenant or "local")
        identity = Identity(launch, NUMBER, self.limits, capabilities or Capabilities())
        self.others = others or {}
        infos = [ModelInfo("fake", "llama", VOCAB, 1024, PAGE_SIZE, num_pages, "float32", "cpu"), *self.others.values()]
        directory = ModelDirectory([ServedModel(info, byte_tokenizer(template)) for info in infos])
        is_default = self.limits.page_wait_s == Limits().page_wait_s
        self.share = SidesShare(
            dataclasses.replace(identity, limits=dataclasses.replace(self.limits, page_wait_s=9.0))
            if is_default
            else identity,
            self.tickets,
            Transfers(self.limits.pass_bytes, self.services.transfers),
            lease_pages=lease_pages,
            is_finding=tenant is not None,
            call_later=self.call_later,
            at_once=lambda call: call(),
            wake=self.wake,
            is_waiting=lambda: True,
            send=self.log.send,
        )
        self.devices = {"fake": self.device}
        first = ModelSide(self.share, directory.get(""), self.device, 0 if self.others else None)  # type: ignore[arg-type]
        self.sides = ModelSides(self.share, directory, self.open_side)
        self.pages, self.outbox = first.pages, first.outbox
        self.mailbox = Mailbox(self.limits, self.tickets)
        self.parts = InferletParts(
            identity,
            self.services,
            directory,
            self.tickets,
            self.sides,
            self.log,
            self.mailbox,
            wake=self.wake,
            fail=self.fail,
        )
        self.handlers = GuestHandlers.of(self.parts)

    def open_side(self, model: ServedModel) -> ModelSide:
        """For a model that a handler has named."""
        name = model.info.name
        device = self.devices[name] = FakeDevice()
        return ModelSide(self.share, model, device, 1 + list(self.others).index(name))  # type: ignore[arg-type]

    def wake(self) -> None:
        """The guest may look at its tickets again."""

    def fail(self, error: PierayError) -> None:
        """The inferlet ends."""
        self.failures.append(error)

    def change(
        self, *, launch: dict[str, Any] | None = None, info: ModelInfo | None = None, visits: Visits | None = None
    ) -> None:
        """The same inferlet launched with other settings, on another model or device: its handlers are made anew."""
        identity, side = self.parts.identity, self.sides.first
        identity = dataclasses.replace(identity, launch=dataclasses.replace(identity.launch, **(launch or {})))
        self.parts.identity = self.share.identity = identity
        if info is not None:
            side.model = dataclasses.replace(side.model, info=info)
        side.visits = visits or side.visits
        side.requests = PageRequests(identity, side.pages, side.lineage, self.tickets, side.outbox, side.visits)
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
