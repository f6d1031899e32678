"""One inferlet in its InferletActor: state, handlers and guest, from launch to the last event."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pieray.concurrency.timers import Timer
from pieray.config import Limits
from pieray.errors import LAST_LOGS, Cancelled, EngineError, GuestFailed, PierayError, QuotaExceeded
from pieray.host.device.device import DeviceClient
from pieray.host.device.groups import LateDevice
from pieray.host.device.model_devices import ModelDevices
from pieray.host.device.model_side import ModelSide, ModelSides, SidesShare
from pieray.host.device.transfers import Transfers
from pieray.host.handlers import GuestHandlers
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory, ServedModel
from pieray.host.parts import InferletParts
from pieray.host.services import Services
from pieray.host.session.client_servers import ClientServers
from pieray.host.session.session import EventLog, Mailbox
from pieray.host.tickets import TicketTable
from pieray.host.trace import Trace, TracedUser, trace_of, traced_handlers
from pieray.messages import Event, Launch
from pieray.programs.limits import capabilities_of
from pieray.texts import byte_size, check_size, parse_json
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
        devices: ModelDevices,
        device: DeviceClient | LateDevice,
        models: ModelDirectory,
        services: Services,
        lease_pages: int,
        prefix_cache: bool,
        on_leave: Callable[[Inferlet], None],
        on_end: Callable[[Inferlet], None],
    ) -> None:
        """`device`: of the default model; those of others come from `devices`."""
        self.launch = launch
        self.number = number
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.log = EventLog(launch.instance_id, limits)
        self._limits = limits
        self._devices = devices
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
        self._tickets = TicketTable(limits.tickets)
        self._identity = Identity(launch, number, limits, capabilities_of(launch))
        self._share = SidesShare(
            self._identity,
            self._tickets,
            Transfers(limits.pass_bytes, services.transfers),
            lease_pages=lease_pages,
            is_finding=prefix_cache,
            call_later=self._call_later,
            at_once=self._at_once,
            wake=self._unpark,
            is_waiting=self._is_waiting,
            send=self.log.send,
        )
        self._numbers = {name: number for number, name in enumerate(models.names)} if len(models.names) > 1 else {}
        ModelSide(self._share, default := models.get(""), device, self._numbers.get(default.info.name))
        self._sides = ModelSides(self._share, models, self._open_side)
        self._mailbox = Mailbox(limits, self._tickets)
        self._parts = InferletParts(
            self._identity,
            services,
            models,
            self._tickets,
            self._sides,
            self.log,
            self._mailbox,
            wake=self._unpark,
            fail=self.kill,
        )
        self._handlers = GuestHandlers.of(self._parts)

    def start(self, host: WasmHost, program: Program) -> None:
        """Lease the first pages and let the guest run.  If it cannot, the pages come back and `on_end` is called."""
        try:
            trace, first = self.tracing, self._sides.first
            self._admit(first)
            if isinstance(first.device, DeviceClient):  # pages ahead of need; of several groups none is chosen yet
                with self._parts.lock:
                    first.outbox.flush()
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
                may_be_held=not self.launch.parent
                and not self.launch.deadline,  # others may wait for it, or it goes first
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

    def _admit(self, side: ModelSide) -> None:
        trace, born = self.tracing, self.launch.born or self.started_at
        side.admit(side if trace is None else TracedUser(side, trace), self.launch.instance_id if trace else "", born)

    def _open_side(self, model: ServedModel) -> ModelSide:
        """For a model that the guest has named for the first time; raises DeviceLost."""
        device = self._devices.of(model.info.name).current(0.0)
        side = ModelSide(self._share, model, device, self._numbers[model.info.name])
        try:
            self._admit(side)
        except BaseException:
            self._share.sides.remove(side)
            raise
        return side

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

    def take_tokens(self) -> int:
        """Tokens that it has computed since this was called last."""
        with self._parts.lock:
            before, self._num_reported = self._num_reported, self._sides.num_computed
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

    def _is_waiting(self) -> bool:
        guest = self._guest  # one that waits for its turn has been answered, and is about to go on
        return guest is not None and guest.is_waiting

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
            "pages": self._sides.num_handles,
            "swapped": self._num_swapped(),
            "output_bytes": self.log.output_bytes,
            **self.usage(),
        }

    def _num_swapped(self) -> int:
        """Of its pages, those that it has given up at present: they are in host memory, or to be computed again."""
        with self._parts.lock:
            return sum(len(side.pages.away_rows()) for side in self._sides.all)

    def usage(self) -> dict[str, int]:
        """See `Outbox.usage`."""
        with self._parts.lock:
            return self._sides.usage()

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
        self._sides.retire(lambda: self._on_end(self))

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
