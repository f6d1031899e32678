"""One inferlet in its InferletActor: state, handlers and guest, from launch to the last event."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from pieray.concurrency.timers import Timer
from pieray.config import Limits
from pieray.errors import LAST_LOGS, Cancelled, DeviceLost, EngineError, GuestFailed, PierayError, QuotaExceeded
from pieray.host.device.device import DeviceClient
from pieray.host.device.groups import LateDevice
from pieray.host.device.outbox import Outbox
from pieray.host.device.prefixes import Prefixes
from pieray.host.device.transfers import Transfers
from pieray.host.device.visits import Visits
from pieray.host.handlers import GuestHandlers
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory
from pieray.host.parts import InferletParts
from pieray.host.services import Services
from pieray.host.session.client_servers import ClientServers
from pieray.host.session.session import EventLog, Mailbox
from pieray.host.tickets import TicketTable
from pieray.host.trace import Trace, TracedUser, trace_of, traced_handlers
from pieray.messages import Event, Launch, RunTokens
from pieray.pages.lineage import Lineage
from pieray.pages.space import PageSpace
from pieray.programs.limits import capabilities_of
from pieray.texts import byte_size, check_size, parse_json
from pieray.urgency import command_priority
from pieray.wasm.host import Guest, Outcome, Program, WasmHost

ERROR_CHARS = 200
"""Of an error, in the facts for `pieray ps`."""


class Inferlet:
    """Thread-safe: the guest calls its handlers on a worker thread, answers come on reader threads."""

    def __init__(
        self,
        launch: Launch,
        number: int,
        *,
        limits: Limits,
        device: DeviceClient | LateDevice,
        models: ModelDirectory,
        services: Services,
        lease_pages: int,
        prefix_cache: bool,
        on_leave: Callable[[Inferlet], None],
        on_end: Callable[[Inferlet], None],
    ) -> None:
        self.launch = launch
        self.number = number
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.log = EventLog(launch.instance_id, limits)
        self._limits = limits
        self._device = device
        self._on_leave = on_leave
        self._on_end = on_end
        self._has_left = False
        self._timers = services.timers
        self._guest: Guest | None = None
        self._killed: PierayError | None = None
        self._loading: Future[Program] | None = None
        self._num_reported = 0  # of tokens computed, by `take_tokens`
        self._has_begun = False  # to run, or to end without having run
        launched_at = self.started_at if launch.parent else launch.born or self.started_at
        self.tracing = Trace(launch.trace, launched_at) if launch.trace else None
        self.started: Future[None] = Future()
        """Done when its guest runs, or with the error why it never will."""
        model = models.get("").info
        self._pages = PageSpace(model.page_size, limits.pages)
        lineage = Lineage(self._pages.page_size, self._pages.live_frames)
        prefixes = Prefixes(number, device, self._pages, lineage, tenant=launch.tenant, model=model.name)
        self._tickets = TicketTable(limits.tickets)
        if isinstance(device, LateDevice):
            device.lock = self._tickets.lock
        self._outbox = Outbox(
            number,
            device,
            self._pages,
            self._tickets,
            lease_pages=lease_pages,
            page_wait_s=limits.page_wait_s,
            call_later=self._call_later,
            lineage=lineage,
            prefixes=prefixes if prefix_cache else None,
            pool_pages=model.num_pages,
            priority=command_priority(launch.priority, 0),
            transfers=Transfers(limits.pass_bytes, services.transfers),
        )
        self._mailbox = Mailbox(limits, self._tickets)
        self._parts = InferletParts(
            Identity(launch, number, limits, capabilities_of(launch)),
            services,
            models,
            self._tickets,
            self._pages,
            lineage,
            self._outbox,
            Visits(device if isinstance(device, LateDevice) else None, self._visited, self._at_once),
            self.log,
            self._mailbox,
            wake=self._unpark,
            fail=self.kill,
        )
        self._handlers = GuestHandlers.of(self._parts)

    def start(self, host: WasmHost, program: Program) -> None:
        """Lease the first pages and let the guest run.  If it cannot, the pages come back and `on_end` is called."""
        try:
            launch, trace = self.launch, self.tracing
            self._device.admit(
                self.number,
                self if trace is None else TracedUser(self, trace),
                launch.tenant,
                launch.priority,
                launch.deadline,
                launch.born or self.started_at,
                launch.family,
                "" if trace is None else launch.instance_id,
            )
            if isinstance(self._device, DeviceClient):  # pages ahead of need; of several groups none is chosen yet
                with self._parts.lock:
                    self._outbox.flush()
            guest = host.spawn(
                program,
                self._handlers if trace is None else traced_handlers(self._handlers, trace),
                self._limits,
                input=self.launch.input,
                source=self.launch.source or None,
                filename=self.launch.filename,
                on_exit=self._exited,
                name=self.launch.instance_id,
                tenant=self.launch.tenant,
                priority=self.launch.priority,
                may_be_held=not launch.parent and not launch.deadline,  # others may wait for it, or it goes first
            )
        except BaseException:
            self._retire()
            raise
        self._guest = guest
        if trace is not None:
            trace.ran_at = time.time()
        guest.unpark()  # for answers that came while `_guest` was not known yet
        if self._killed is not None:
            guest.kill(self._killed)

        self.started.set_result(None)

    def start_later(self, host: WasmHost, loading: Future[Program]) -> None:
        """Start once the program is loaded; if it cannot be, or the inferlet is killed before, it ends with the error.
        Till then it has a place and a mailbox, and no pages."""
        self._loading = loading
        loading.add_done_callback(lambda loaded: self._start_loaded(host, loaded))

    def _start_loaded(self, host: WasmHost, loaded: Future[Program]) -> None:
        if not self._begins():
            return
        if (error := loaded.exception()) is not None:
            self._end_unstarted(error)
            return
        try:
            self.start(host, loaded.result())
        except BaseException as failed:  # noqa: BLE001 - nobody else hears of it; `start` has given back what it had
            self._tell_unstarted(failed)

    def _begins(self) -> bool:
        """True once: for who starts it, or ends it before it has run."""
        with self._parts.lock:
            is_first, self._has_begun = not self._has_begun, True
            return is_first

    def _end_unstarted(self, error: BaseException) -> None:
        """Its end, if it never had a guest nor anything of the device."""
        self._leave()
        self._tell_unstarted(error)
        self._parts.close()
        self._on_end(self)

    def _tell_unstarted(self, error: BaseException) -> None:
        if not isinstance(error, PierayError):
            error = EngineError(f"{self.launch.name} could not be started: {error!r}")
        self._mailbox.close()
        self.log.end("error", json.dumps({"code": error.code, "message": error.message}))
        self.started.set_exception(error)

    def deliver(self, text: str) -> None:
        """A message of the client; raises QuotaExceeded or Cancelled."""
        self._mailbox.put(text)
        self._parts.prefetch()
        self._unpark()

    def deliver_file(self, name: str, data: bytes) -> None:
        """A file of the client; raises InvalidRequest, QuotaExceeded or Cancelled."""
        self._parts.files.put(name, data)

    @property
    def client_servers(self) -> ClientServers | None:
        """Tools that the client has brought."""
        return self._parts.client_servers

    @property
    def scratch_bytes(self) -> int:
        """The limit that a file must not exceed."""
        return self._limits.scratch_bytes

    def kill(self, error: PierayError) -> None:
        """End the inferlet with `error` as its result; idempotent."""
        self._killed = error
        if self._guest is not None:
            self._guest.kill(error)
        elif self._loading is not None:
            if self._begins():
                self._end_unstarted(error)
            self._loading.cancel()

    def answered(self, answers: Sequence[tuple[int, object]]) -> None:
        outbox = self._outbox
        with self._parts.lock:
            for ticket, result in answers:
                if isinstance(result, RunTokens):
                    outbox.drew(ticket, result.tokens, result.logprobs, result.counts)
                else:
                    outbox.answered(ticket, result)
            has_news, self._tickets.has_news = self._tickets.has_news, False
        if has_news:
            self._unpark()

    def granted(self, pages: list[int], num_found: int) -> None:
        with self._parts.lock:
            self._outbox.leases.granted(pages, num_found)
        self._unpark()  # a command that can now be bound may turn out to have failed

    def lease_failed(self, error: PierayError) -> None:
        with self._parts.lock:
            self._outbox.leases.lease_failed(error)
        self._unpark()

    def ledger_answered(self, ticket: int, result: object) -> None:
        with self._parts.lock:
            self._outbox.ledger.answered(ticket, result)
        self._unpark()

    def device_lost(self, error: DeviceLost) -> None:
        with self._parts.lock:
            self._outbox.fail_all(error)
        self._unpark()

    def reclaim(self) -> list[int]:
        if not self._pages.has_unused:
            return []
        with self._parts.lock:
            return self._outbox.leases.reclaim()

    def is_idle(self, now: float) -> bool:
        guest = self._guest  # one that waits for its turn has been answered, and is about to go on
        return self._outbox.leases.is_idle(now) and guest is not None and guest.is_waiting

    def preempt(self, kept: Sequence[int], shared: Sequence[int]) -> None:
        with self._parts.lock:
            self._outbox.preempt(kept, shared)

    def take_tokens(self) -> int:
        """Tokens that it has computed since this was called last."""
        with self._parts.lock:
            before, self._num_reported = self._num_reported, self._outbox.num_computed
            return self._num_reported - before

    def _call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        def locked() -> None:
            with self._parts.lock:
                call()
            self._unpark()

        return self._timers.at(time.monotonic() + seconds, locked)

    def _at_once(self, call: Callable[[], None]) -> None:
        """On a thread that holds no lock."""
        self._timers.at(time.monotonic(), call)

    def _visited(self, call: Callable[[], None]) -> None:
        """Another device group than its own has answered."""
        with self._parts.lock:
            call()
        self._device.flush()
        self._unpark()

    def status(self) -> dict[str, Any]:
        """Facts for `pieray ps`."""
        guest, launch = self._guest, self.launch
        state, error = _state_of(
            self.log.ending, is_started=guest is not None, is_killed=isinstance(self._killed, Cancelled)
        )
        return {
            "instance_id": launch.instance_id,
            "name": launch.name,
            "state": state,
            "error": error,
            "tenant": launch.tenant,
            "user": launch.user,
            "parent": launch.parent,
            "priority": launch.priority,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "cpu_time_s": guest.cpu_time_s if guest else 0.0,
            "pages": self._pages.num_handles,
            "swapped": self._num_swapped(),
            "output_bytes": self.log.output_bytes,
            **self.usage(),
        }

    def _num_swapped(self) -> int:
        """Of its pages, those that it has given up at present: they are in host memory, or to be computed again."""
        with self._parts.lock:
            return len(self._pages.away_rows())

    def usage(self) -> dict[str, int]:
        """See `Outbox.usage`."""
        with self._parts.lock:
            return self._outbox.usage()

    def trace(self) -> dict[str, Any]:
        """See `trace_of`."""
        return trace_of(self.tracing, self.status())

    def _unpark(self) -> None:
        if self._guest is not None:
            self._guest.unpark()

    def _exited(self, outcome: Outcome) -> None:
        try:
            self._mailbox.close()
            self._leave()  # who hears of the end launches the next one in its place
            self._tell_end(outcome)
        finally:
            self.ended_at = time.time()
            self._retire()

    def _leave(self) -> None:
        """Its place is free: it has no guest any more.  Its pages are still to come back."""
        if not self._has_left:
            self._has_left = True
            self._on_leave(self)

    def _retire(self) -> None:
        self._leave()
        self._parts.close()
        with self._parts.lock:
            self._outbox.close()
            self._parts.visits.close()
        self._device.retire(self.number, lambda: self._on_end(self))

    def _tell_end(self, outcome: Outcome) -> None:
        try:
            self._handlers.printed.end()
            if outcome.error is not None:
                raise outcome.error
            value = outcome.value or "null"
            self._check_result(value)
        except PierayError as error:
            error = outcome.error or error
            self.log.end("error", json.dumps({"code": error.code, "message": self._with_logs(error)}))
        else:
            self.log.end("result", value)

    def _with_logs(self, error: PierayError) -> str:
        """The error's text, and what the inferlet logged before it: who catches it may have seen no event."""
        lines = [] if isinstance(error, Cancelled) else self.log.last_logs()
        if not lines:
            return error.message
        return "\n".join([error.message.rstrip("\n"), LAST_LOGS, *(f"  {line}" for line in lines)])

    def _check_result(self, value: str) -> None:
        """Raises QuotaExceeded, and GuestFailed for what is no JSON (which compiled guests may return)."""
        size, limits, used = byte_size(value), self._limits, self.log.output_bytes
        check_size("message_bytes", limits.message_bytes, size, "the result")
        if used + size > limits.output_bytes:
            raise QuotaExceeded(
                f"output_bytes: the limit is {limits.output_bytes}; {used} are used, the result has {size}"
            )
        try:
            parse_json(value)
        except ValueError as error:
            raise GuestFailed(f"the result is not JSON: {error}") from None


def _state_of(ending: Event | None, *, is_started: bool, is_killed: bool) -> tuple[str, str]:
    """ "starting", "running", "done", "failed" or "killed", and the code and first line of the error, or ""."""
    if ending is None:
        return "running" if is_started else "starting", ""
    if ending.kind == "result":
        return "done", ""
    problem = json.loads(ending.payload)
    line = problem["message"].partition("\n")[0]
    return "killed" if is_killed else "failed", f"{problem['code']}: {line}"[:ERROR_CHARS]
