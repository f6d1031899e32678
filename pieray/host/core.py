"""The heart of an InferletActor, without Ray: launches inferlets and keeps what the ended ones said."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from pieray.concurrency.stalls import Stalls
from pieray.config import Config, Limits
from pieray.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    NoRoom,
    NotFound,
    PeerLost,
    PierayError,
    Stalled,
)
from pieray.host.children.service import Attachments
from pieray.host.components import Components
from pieray.host.device.device import DeviceClient
from pieray.host.device.groups import LateDevice
from pieray.host.device.model_devices import ModelDevices
from pieray.host.ended_inferlet import EndedInferlet
from pieray.host.inferlet import Inferlet
from pieray.host.models import ModelDirectory
from pieray.host.services import Services
from pieray.host.session.grants import Grants
from pieray.host.session.session import OUTPUTS
from pieray.host.totals import Totals
from pieray.messages import Event, Launch
from pieray.programs.limits import limits_within
from pieray.texts import byte_size, check_size
from pieray.traceparent import checked_traceparent, new_traceparent
from pieray.transport import Connection
from pieray.urgency import admitted
from pieray.wasm.host import Program, WasmHost

log = logging.getLogger(__name__)

KEEP_ENDED = 256
"""Ended inferlets whose events can still be read."""
KEEP_ENDED_BYTES = 256 << 20
"""Of their texts together."""
KEEP_LAUNCHED = 10_000
"""Ids that the Controller has not asked for yet."""


class InferletHost:
    """All inferlets of one actor process.  Thread-safe."""

    def __init__(
        self,
        config: Config,
        devices: ModelDevices,
        models: ModelDirectory,
        services: Services | None = None,
        stalls: Stalls | None = None,
    ) -> None:
        self._config = config
        self.services = services or Services.of(config)
        self.attachments = Attachments(self.services.timers, self._kill_child)
        self._devices = devices
        self._models = models
        num_ready = min(config.ready_guests, config.inferlets_per_actor)
        most_guests = config.inferlets_per_actor + num_ready + config.worker_threads
        self._wasm = WasmHost(
            config.executor,
            config.worker_threads,
            most_guests=most_guests,
            is_short=devices.is_short,
            weight_of=lambda tenant: config.tenant(tenant).weight,
        )
        self._wasm.on_batch_end = self._flush
        devices.on_answered(self._flush_clients)
        self._components = Components(self._wasm)
        self._stalls = stalls or Stalls(float("inf"))
        self.grants = Grants()
        self._launched: deque[tuple[str, str]] = deque(maxlen=KEEP_LAUNCHED)
        self._dirty: set[Connection] = set()
        self._inferlets: dict[str, Inferlet | EndedInferlet] = {}
        self._ended_sizes: deque[tuple[str, int]] = deque()  # of those that have ended, the oldest first: id and bytes
        self._ended_bytes = 0  # of their texts
        self.registry_revision = 0
        """The newest that the Controller has told of; see `Registry.revision`."""
        self._num_live = 0
        self._num_leaving = 0  # of them, that have no guest any more
        self._num_returned = 0
        self._ended_tokens: Counter[str] = Counter()  # by tenant, of the ended ones, not yet told
        self._totals = Totals()
        self._next_number = 1
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def num_live(self) -> int:
        """Inferlets that run, or have ended with pages still to return; the latter hold no place."""
        return self._num_live

    @property
    def executor(self) -> str:
        return self._wasm.executor

    def warm_up(self) -> None:
        """Load the Python runtime, so that the first launch finds it mapped, and have guests of it started ahead."""
        count = min(self._config.ready_guests, self._config.inferlets_per_actor)
        self._wasm.keep_ready(self._components.python(), count)

    @property
    def num_returned(self) -> int:
        """Places that have come back to the Controller in all: of launches refused and inferlets that have left, and
        of grants that have ended."""
        return self._num_returned + self.grants.num_returned

    def take_launched(self) -> list[tuple[str, str]]:
        """Ids and names of what clients have launched by grants since this was called last, KEEP_LAUNCHED at most."""
        found: list[tuple[str, str]] = []
        while self._launched:
            found.append(self._launched.popleft())
        return found

    def counted(self) -> list[str]:
        """Ids of the inferlets that count against `inferlets` of their tenant."""
        live = (one.launch for one in self._live() if not one.log.is_ended)  # its client may launch the next by now
        return [launch.instance_id for launch in live if self._config.tenant(launch.tenant).inferlets]

    def take_tallies(self) -> dict[str, Any]:
        """What the Controller is to know of tenants that have quotas: "live", see `counted`, and "tokens", by tenant:
        how many have been computed since this was called last.  {}: no tenant has any."""
        if not self._config.tenants:
            return {}
        tokens: Counter[str] = Counter()
        for one in self._live():
            if self._config.tenant(one.launch.tenant).tokens_per_minute:
                tokens[one.launch.tenant] += one.take_tokens()
        with self._lock:
            ended, self._ended_tokens = self._ended_tokens, Counter()
        tokens.update(ended)
        return {"live": self.counted(), "tokens": {tenant: count for tenant, count in tokens.items() if count}}

    def _live(self) -> list[Inferlet]:
        return [found for found in list(self._inferlets.values()) if isinstance(found, Inferlet)]

    def check_revision(self, name: str, revision: int) -> None:
        """Raise NotFound for an installed program, as it was at that revision, if programs have changed since."""
        if revision and revision < self.registry_revision:
            raise NotFound(f"{name} may be another program by now: ask the Controller")

    def check_due(self, sent_at: float, deadline: float) -> None:
        """Raise Stalled or DeadlineExceeded where nobody may wait for a launch any more: then it must not start.

        Times are of this process's time.monotonic: past `deadline`, or if it has stood still since `sent_at`.
        """
        if self._stalls.is_since(sent_at):
            raise Stalled("the InferletActor stood still while it had the launch")
        if (late_s := time.monotonic() - deadline) > 0:
            raise DeadlineExceeded(f"the InferletActor could have launched it {late_s:.1f} s too late")

    @property
    def busy_s(self) -> float:
        """How long a worker has been at one turn of a guest, as seen by calls of this, by one thread."""
        return self._wasm.busy_s

    def launch_granted(self, launch: Launch, check: Callable[[], None], grant_id: str) -> None:
        """`launch` at a place that the Controller has granted, without waiting for a device that is being replaced.

        Raises NoRoom (the grant has ended), and InvalidRequest for what the Controller alone can place: programs by
        name, whose manifests it keeps, and children.
        """
        if not launch.source and not launch.component:
            raise InvalidRequest(f"{launch.name[:100]!r} is launched by name: ask the Controller")
        if launch.parent or launch.depth:
            raise InvalidRequest("children are launched by the Controller")
        if self._config.tenant(launch.tenant).is_counted:
            raise NoRoom(f"tenant {launch.tenant[:100]!r} has a quota that the Controller keeps: ask it")
        self.grants.take(grant_id)
        self._launch(launch, check, partial(self.grants.give_back, grant_id), wait_s=0.0)
        self._launched.append((launch.instance_id, launch.name))

    def launch(self, launch: Launch, check: Callable[[], None] = lambda: None) -> None:
        """Start an inferlet.  Raises NoRoom when full, InvalidRequest for a bad program or limits, DeviceLost.

        `check` is called when all is ready but the start, and raises what is against it.  A component that must be
        compiled first starts when it is (`Inferlet.started`): this returns at once.
        """
        self._launch(launch, check, self._return_place, wait_s=None)

    def _return_place(self) -> None:
        with self._lock:
            self._num_returned += 1

    def _launch(
        self, launch: Launch, check: Callable[[], None], give_back: Callable[[], None], wait_s: float | None
    ) -> None:
        try:
            inferlet, program = self._prepared(launch, check, give_back, wait_s)
        except BaseException:
            give_back()
            raise
        if launch.parent or launch.is_attached:
            self.attachments.expect(launch.instance_id, is_child=bool(launch.parent))
        try:
            if isinstance(program, Future):
                inferlet.start_later(self._wasm, program)
            else:
                inferlet.start(self._wasm, program)
        except BaseException:
            with self._lock:
                self._inferlets.pop(launch.instance_id, None)
            raise

    def _prepared(
        self, launch: Launch, check: Callable[[], None], give_back: Callable[[], None], wait_s: float | None
    ) -> tuple[Inferlet, Program | Future[Program]]:
        launch = admitted(launch, self._config.tenant(launch.tenant), time.time())
        if not checked_traceparent(launch.trace) and random.random() < self._config.trace_share:  # noqa: S311
            launch = replace(launch, trace=new_traceparent())
        limits = limits_within(self._config.limits_of(launch.tenant), launch.limits)
        check_size("source_bytes", limits.source_bytes, byte_size(launch.source) + len(launch.component))
        program = self._program_of(launch, limits)
        try:
            models = self._models.on(launch.model)
            if models is self._models and launch.model:
                launch = replace(launch, model="")
            device = self._devices.of(launch.model).current(wait_s)
            check()
            return self._admit(launch, limits, models, device, give_back), program
        except BaseException:
            if isinstance(program, Future):
                program.cancel()
            raise

    def _admit(
        self,
        launch: Launch,
        limits: Limits,
        models: ModelDirectory,
        device: DeviceClient | LateDevice,
        give_back: Callable[[], None],
    ) -> Inferlet:
        with self._lock:
            if self._is_closed:
                raise EngineError("this InferletActor is closing")
            most = self._config.inferlets_per_actor
            if self._num_live - self._num_leaving >= most:
                raise NoRoom(f"inferlets_per_actor: the limit is {most}; one more was launched")
            if self._num_leaving >= most:
                raise NoRoom(
                    f"{self._num_leaving} inferlets that have ended still wait for the device to let go of them"
                )
            if launch.instance_id in self._inferlets:
                raise InvalidRequest(f"an inferlet {launch.instance_id!r} exists already")
            number = self._next_number
            self._next_number += 1
            inferlet = Inferlet(
                launch,
                number,
                limits=limits,
                devices=self._devices,
                device=device,
                models=models,
                services=self.services,
                lease_pages=self._config.lease_pages,
                prefix_cache=self._config.prefix_cache,
                on_leave=partial(self._left, give_back),
                on_end=self._ended,
            )
            self._inferlets[launch.instance_id] = inferlet
            self._num_live += 1
            return inferlet

    def _left(self, give_back: Callable[[], None], _inferlet: Inferlet) -> None:
        """Its guest is gone, or was never there: its place is free."""
        with self._lock:
            self._num_leaving += 1
        give_back()

    def _ended(self, inferlet: Inferlet) -> None:
        """Its pages are back; of its state only the events are kept, and of those not more than is said above."""
        instance_id = inferlet.launch.instance_id
        self.attachments.ended(instance_id)
        tenant = inferlet.launch.tenant
        num_tokens = inferlet.take_tokens() if self._config.tenant(tenant).tokens_per_minute else 0
        with self._lock:
            self._ended_tokens[tenant] += num_tokens
            self._num_live -= 1
            self._num_leaving -= 1
            if self._inferlets.get(instance_id) is inferlet:  # else it could not even be started
                kept = self._inferlets[instance_id] = EndedInferlet(inferlet)
                self._totals.ended(kept.status())
                num_bytes = inferlet.log.num_bytes  # as of now: a late line of the log may still be counted there
                self._ended_sizes.append((instance_id, num_bytes))
                self._ended_bytes += num_bytes
            while len(self._ended_sizes) > KEEP_ENDED or (
                self._ended_bytes > KEEP_ENDED_BYTES and len(self._ended_sizes) > 1
            ):
                forgotten, size = self._ended_sizes.popleft()
                del self._inferlets[forgotten]
                self._ended_bytes -= size

    def _program_of(self, launch: Launch, limits: Limits) -> Program | Future[Program]:
        if launch.component:
            return self._components.find(launch.component, launch.name) or self._components.compile(
                launch.component, launch.name, tenant=launch.tenant, owner=launch.instance_id, wait_s=limits.wall_time_s
            )
        if not launch.source:
            raise InvalidRequest("a launch gives Python source or a wasm component; given neither")
        return self._components.python()

    def post_events(self, conn: Connection, events: list[Event]) -> None:
        """Events of a running guest: they leave with the frame that ends its worker's batch.

        A client that is gone misses events; the inferlet goes on.
        """
        try:
            lane = events[0].instance_id
            if events[-1].kind in OUTPUTS:
                conn.post(events, lane=lane)
                self._dirty.add(conn)
            else:
                conn.send(events, lane=lane)
        except PeerLost:
            return
        except PierayError as error:  # an event that cannot travel: better no client than one that waits for it
            conn.close(f"events of {events[0].instance_id} cannot be sent: {error.message}")

    def _flush(self) -> None:
        self._devices.flush()
        self.services.flush()
        self._flush_clients()

    def _flush_clients(self) -> None:
        """Send the events that were posted: one frame to each client."""
        while self._dirty:
            with contextlib.suppress(PeerLost, KeyError):
                self._dirty.pop().flush()

    def find(self, instance_id: str) -> Inferlet | EndedInferlet:
        """The inferlet; raises NotFound."""
        try:
            return self._inferlets[instance_id]
        except KeyError:
            raise NotFound(f"no inferlet {instance_id!r} runs here, and none has ended lately") from None

    def kill(self, instance_id: str, reason: str) -> None:
        """End an inferlet with `cancelled`; raises NotFound."""
        self.find(instance_id).kill(Cancelled(reason))

    def _kill_child(self, instance_id: str, reason: str) -> None:
        with contextlib.suppress(NotFound):
            self.kill(instance_id, reason)

    def totals(self) -> dict[str, Any]:
        """See `Totals.facts`; and `calls` of handlers by interface."""
        return {**self._totals.facts(one.status() for one in self._live()), "calls": self._wasm.calls()}

    def status(self) -> list[dict[str, Any]]:
        return [inferlet.status() for inferlet in list(self._inferlets.values())]

    def close(self) -> None:
        """Kill all inferlets and stop; idempotent."""
        with self._lock:
            self._is_closed = True
        for inferlet in list(self._inferlets.values()):
            inferlet.kill(Cancelled("the engine is shutting down"))
        self._components.close()
        self._wasm.close()
        self.services.close()
        self._devices.close()
