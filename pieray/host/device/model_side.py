"""What an inferlet has of each model that it uses: pages, commands on their way, the device that computes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pieray.arrays import U32
from pieray.errors import DeviceLost, InvalidRequest, PierayError
from pieray.host.device.commands import Pass, Queue
from pieray.host.device.device import DeviceClient
from pieray.host.device.device_user import DeviceUser
from pieray.host.device.exports import PageRequests
from pieray.host.device.groups import LateDevice
from pieray.host.device.ledger import CallLater
from pieray.host.device.outbox import Outbox
from pieray.host.device.plan_settings import PlanContext
from pieray.host.device.prefixes import Prefixes
from pieray.host.device.transfers import Transfers
from pieray.host.device.visits import Visits
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory, ModelInfo, ServedModel
from pieray.host.tickets import TicketTable
from pieray.messages import RunTokens, Sampler
from pieray.pages.handles import HandleTable, generations_of, table_of
from pieray.pages.lineage import LOG_BYTES, Lineage
from pieray.pages.space import PageSpace
from pieray.urgency import command_priority


@dataclass(slots=True)
class SidesShare:
    """What all sides of one inferlet have in common."""

    identity: Identity
    tickets: TicketTable
    transfers: Transfers
    lease_pages: int
    """See `Config.lease_pages`."""
    is_finding: bool
    """See `Config.prefix_cache`."""
    call_later: CallLater
    at_once: Callable[[Callable[[], None]], None]
    """Call it on a thread that holds no lock."""
    wake: Callable[[], None]
    """Lets the guest look at its tickets again; from any thread."""
    is_waiting: Callable[[], bool]
    """Whether the guest waits, and has been told all."""
    send: Callable[[str], None]
    """A text to the client; raises QuotaExceeded."""
    passes: dict[int, Pass] = field(default_factory=dict)
    """Passes that are not answered, by ticket."""
    sides: list[ModelSide] = field(default_factory=list)
    """In the order in which they were opened."""


class ModelSide:
    """One model's, as the device client sees an inferlet (`DeviceUser`).  The parts are used with its lock held."""

    def __init__(
        self, share: SidesShare, model: ServedModel, device: DeviceClient | LateDevice, number: int | None = None
    ) -> None:
        """`number`: which of the engine's models it is, less than `config.MAX_MODELS`; None: the one that there is."""
        self.model = model
        self.number = number or 0
        self.device = device
        self._share = share
        identity, tickets, info = share.identity, share.tickets, model.info
        limits, launch = identity.limits, identity.launch
        handles = HandleTable("page") if number is None else HandleTable("page", generations_of(number))
        self.pages = PageSpace(info.page_size, limits.pages, handles, self._num_elsewhere)
        log_bytes = LOG_BYTES + (limits.embed_bytes if info.image else 0)  # what it has seen is in it
        self.lineage = Lineage(info.page_size, self.pages.live_frames, log_bytes)
        self._lock = tickets.lock
        if isinstance(device, LateDevice):
            device.lock = self._lock
        prefixes = Prefixes(identity.number, device, self.pages, self.lineage, tenant=launch.tenant, model=info.name)
        self.outbox = Outbox(
            identity.number,
            device,
            self.pages,
            tickets,
            lease_pages=share.lease_pages,
            page_wait_s=limits.page_wait_s,
            call_later=share.call_later,
            lineage=self.lineage,
            prefixes=prefixes if share.is_finding else None,
            pool_pages=info.num_pages,
            priority=command_priority(launch.priority, 0),
            transfers=share.transfers,
            passes=share.passes,
        )
        self.visits = Visits(device if isinstance(device, LateDevice) else None, self._visited, share.at_once)
        self.requests = PageRequests(identity, self.pages, self.lineage, tickets, self.outbox, self.visits)
        self.plans = PlanContext(identity, tickets, self.pages, self.lineage, self.outbox, share.send)
        share.sides.append(self)

    @property
    def info(self) -> ModelInfo:
        """Facts of the model."""
        return self.model.info

    def admit(self, user: DeviceUser, trace_id: str, born: float) -> None:
        """Make the inferlet known to the device, which answers `user`: this, or who notes the answers too.
        `trace_id`: under which its steps are noted, or ""."""
        identity, launch = self._share.identity, self._share.identity.launch
        self.device.admit(
            identity.number, user, launch.tenant, launch.priority, launch.deadline, born, launch.family, trace_id
        )

    def retire(self, done: Callable[[], None]) -> None:
        """The guest has ended; `done` is called when the device has let go of its pages."""
        with self._lock:
            self.outbox.close()
            self.visits.close()
        self.device.retire(self._share.identity.number, done)

    def fitted(self, chain: Sampler) -> Sampler:
        """The chain as it is for this model's vocabulary.  Raises InvalidRequest for one that is made for another."""
        vocab = self.info.vocab_size
        if chain.bias_tokens and (most := int(np.frombuffer(chain.bias_tokens, "<u4").max())) >= vocab:
            raise InvalidRequest(f"token ids of {self.info.name} are below {vocab}; the sampler's bias names {most}")
        if chain.allowed and len(chain.allowed) != -(-vocab // 32) * 4:
            raise InvalidRequest(
                f"what the sampler allows is not of the vocabulary of {self.info.name}, which has {vocab} tokens"
            )
        return replace(chain, allowed=chain.allowed[: -(-vocab // 8)])

    def _num_elsewhere(self) -> int:
        return sum(side.pages.num_claimed for side in self._share.sides if side is not self)

    def _visited(self, call: Callable[[], None]) -> None:
        """Another device group than its own has answered."""
        with self._lock:
            call()
        self.device.flush()
        self._share.wake()

    # --- called by the device client, on its threads: see DeviceUser ------------------------------

    def answered(self, answers: Sequence[tuple[int, object]]) -> None:
        outbox, tickets = self.outbox, self._share.tickets
        with self._lock:
            for ticket, result in answers:
                if isinstance(result, RunTokens):
                    outbox.drew(ticket, result.tokens, result.logprobs, result.counts)
                else:
                    outbox.answered(ticket, result)
            has_news, tickets.has_news = tickets.has_news, False
        if has_news:
            self._share.wake()

    def granted(self, pages: list[int], num_found: int) -> None:
        with self._lock:
            self.outbox.leases.granted(pages, num_found)
        self._share.wake()  # a command that can now be bound may turn out to have failed

    def lease_failed(self, error: PierayError) -> None:
        with self._lock:
            self.outbox.leases.lease_failed(error)
        self._share.wake()

    def ledger_answered(self, ticket: int, result: object) -> None:
        with self._lock:
            self.outbox.ledger.answered(ticket, result)
        self._share.wake()

    def device_lost(self, error: DeviceLost) -> None:
        with self._lock:
            self.outbox.fail_all(error)
        self._share.wake()

    def reclaim(self) -> list[int]:
        if not self.pages.has_unused:
            return []
        with self._lock:
            return self.outbox.leases.reclaim()

    def is_idle(self, now: float) -> bool:
        return self.outbox.leases.is_idle(now) and self._share.is_waiting()

    def preempt(self, kept: Sequence[int], shared: Sequence[int]) -> None:
        with self._lock:
            self.outbox.preempt(kept, shared)


class ModelSides:
    """Of one inferlet: the default model's from the start, another one's from when it is first named."""

    def __init__(self, share: SidesShare, models: ModelDirectory, open_: Callable[[ServedModel], ModelSide]) -> None:
        """`share` has the default model's already; `open_` makes another one's, and raises DeviceLost."""
        (self.first,) = share.sides
        self.all: Sequence[ModelSide] = share.sides
        """In the order in which they were opened."""
        self._vocabularies = {one.info.vocab_size for one in models.all}
        self.models = models
        self._open = open_
        self._by_name = {"": self.first, self.first.info.name: self.first}

    def of(self, name: str) -> ModelSide:
        """The side of the model of that name, "" for the default one.  Raises NotFound, and DeviceLost while no device
        group serves it."""
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name[name] = self._open(self.models.get(name))
            found.outbox.leases.num_pins = self.first.outbox.leases.num_pins  # it is the inferlet that is pinned
        return found

    def of_queue(self, queue: Queue) -> ModelSide:
        """Of the queue's model."""
        return self._by_name[queue.model]

    def of_pages(self, handles: U32) -> ModelSide:
        """Of the model that the pages are of, as far as their handles tell.  Raises InvalidRequest for pages of several
        models."""
        if len(self.all) == 1 or len(handles) == 0:
            return self.first
        number = table_of(handles)
        if number is None:
            raise InvalidRequest("the pages of one call are of one model; given are pages of several")
        return next((side for side in self.all if side.number == number), self.first)

    def name_of(self, side: ModelSide) -> str:
        """Of its model, as queues have it: "" is the default one."""
        return "" if side is self.first else side.info.name

    def fitted(self, chain: Sampler, queue: Queue) -> Sampler:
        """The chain as commands of the queue draw with it, see `ModelSide.fitted`."""
        if chain.has_programs:
            self.check_programs(queue)
        is_any = len(self._vocabularies) == 1 or not (chain.bias_tokens or chain.allowed)
        return chain if is_any else self.of_queue(queue).fitted(chain)

    def check_adapter(self, adapter: int, queue: Queue) -> None:
        """Raise InvalidRequest for an adapter, which is of the default model, on another one."""
        if adapter and (side := self.of_queue(queue)) is not self.first:
            raise InvalidRequest(
                f"adapters are of {self.first.info.name}, the default model; this is for {side.info.name}"
            )

    def check_programs(self, queue: Queue) -> None:
        """Raise InvalidRequest unless the queue is of the default model, by whose sizes tensor programs are checked."""
        if (side := self.of_queue(queue)) is not self.first:
            raise InvalidRequest(
                f"tensor programs are of {self.first.info.name}, the default model; this is for {side.info.name}"
            )

    @property
    def num_handles(self) -> int:
        """Pages held."""
        return sum(side.pages.num_handles for side in self.all)

    @property
    def num_computed(self) -> int:
        """Tokens computed."""
        return sum(side.outbox.num_computed for side in self.all)

    def flush(self) -> None:
        """The guest waits or flushes: all that is staged may go."""
        for side in self.all:
            side.outbox.flush()

    def retire(self, done: Callable[[], None]) -> None:
        """The guest has ended; `done` is called once every device has let go of its pages."""
        left = list(self.all)
        count = itertools.count(1)

        def retired() -> None:
            if next(count) == len(left):
                done()

        for side in left:
            side.retire(retired)

    def usage(self) -> dict[str, int]:
        """See `Outbox.usage`: of all together."""
        found = [side.outbox.usage() for side in self.all]
        return {name: sum(one[name] for one in found) for name in found[0]}
