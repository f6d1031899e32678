"""The heart of an InferletActor, without Ray: launches inferlets, serves their clients."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pieray.config import Config, Limits, from_mapping
from pieray.errors import Cancelled, EngineError, InvalidRequest, NotFound, PeerLost, PierayError, QuotaExceeded
from pieray.host.device import DeviceClient
from pieray.host.inferlet import Inferlet
from pieray.host.models import ModelDirectory
from pieray.messages import Attach, Completed, Event, Failed, Kill, Launch, Message, SendText
from pieray.transport import Connection
from pieray.wasm import python_runtime
from pieray.wasm.host import Program, WasmHost

log = logging.getLogger(__name__)

KEEP_ENDED = 256
"""Ended inferlets whose events can still be read."""


class InferletHost:
    """All inferlets of one actor process.  Thread-safe."""

    def __init__(self, config: Config, device: DeviceClient, models: ModelDirectory) -> None:
        self._config = config
        self._device = device
        self._models = models
        self._wasm = WasmHost(config.executor, config.worker_threads)
        self._wasm.on_batch_end = self._flush
        self._dirty: set[Connection] = set()
        self._programs: dict[str, Program] = {}
        self._inferlets: OrderedDict[str, Inferlet] = OrderedDict()
        self._num_live = 0
        self._next_number = 1
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def num_live(self) -> int:
        """Inferlets that hold a place: running, or ended with pages still to return."""
        return self._num_live

    @property
    def executor(self) -> str:
        return self._wasm.executor

    def warm_up(self) -> None:
        """Load the Python runtime, so that the first launch finds it mapped."""
        self._python_program()

    def launch(self, launch: Launch) -> None:
        """Start an inferlet.  Raises EngineError when full, InvalidRequest for a bad program or limits."""
        limits = self._limits_of(launch)
        size = len(launch.source) + len(launch.component)
        if size > limits.source_bytes:
            raise QuotaExceeded(f"source_bytes: the limit is {limits.source_bytes}; given {size}")
        program = self._program_of(launch)
        inferlet = self._admit(launch, limits)
        try:
            inferlet.start(self._wasm, program)
        except BaseException:
            self._ended(inferlet)
            with self._lock:
                del self._inferlets[launch.instance_id]
            raise

    def _limits_of(self, launch: Launch) -> Limits:
        values: dict[str, Any] = {**dataclasses.asdict(self._config.limits), **launch.limits}
        return from_mapping(Limits, values, "limits.")

    def _admit(self, launch: Launch, limits: Limits) -> Inferlet:
        with self._lock:
            if self._is_closed:
                raise EngineError("this InferletActor is closing")
            if self._num_live >= self._config.inferlets_per_actor:
                raise EngineError(f"inferlets_per_actor: the limit is {self._config.inferlets_per_actor}; "
                                  "one more was launched")  # fmt: skip
            if launch.instance_id in self._inferlets:
                raise InvalidRequest(f"an inferlet {launch.instance_id!r} exists already")
            number = self._next_number
            self._next_number += 1
            inferlet = Inferlet(launch, number, limits=limits, device=self._device, models=self._models,
                                lease_pages=self._config.lease_pages, on_end=self._ended)  # fmt: skip
            self._inferlets[launch.instance_id] = inferlet
            self._num_live += 1
            return inferlet

    def _ended(self, _inferlet: Inferlet) -> None:
        with self._lock:
            self._num_live -= 1
            ended = [i for i, f in self._inferlets.items() if f.log.is_ended]
            for instance_id in ended[: max(0, len(ended) - KEEP_ENDED)]:
                del self._inferlets[instance_id]

    def _program_of(self, launch: Launch) -> Program:
        if launch.component:
            return self._wasm.load(launch.component, launch.name)
        if not launch.source:
            raise InvalidRequest("a launch gives Python source or a wasm component; given neither")
        return self._python_program()

    def _python_program(self) -> Program:
        with self._lock:
            if "python" not in self._programs:
                path: Path = python_runtime.component_path()
                self._programs["python"] = self._wasm.load(path, "python-runtime")
            return self._programs["python"]

    def replace_device(self, device: DeviceClient) -> None:
        """Launch on another device group from now on; inferlets of the lost one have been told."""
        self._device = device

    def post_events(self, conn: Connection, events: list[Event]) -> None:
        """Events of a running guest: they leave with the frame that ends its worker's batch.

        A client that is gone misses events; the inferlet goes on.
        """
        with contextlib.suppress(PeerLost):
            if events[-1].kind == "text":
                conn.post(events)
                self._dirty.add(conn)
            else:
                conn.send(events)

    def _flush(self) -> None:
        self._device.flush()
        while self._dirty:
            with contextlib.suppress(PeerLost, KeyError):
                self._dirty.pop().flush()

    def find(self, instance_id: str) -> Inferlet:
        """The inferlet; raises NotFound."""
        try:
            return self._inferlets[instance_id]
        except KeyError:
            raise NotFound(f"no inferlet {instance_id!r} runs here, and none has ended lately") from None

    def kill(self, instance_id: str, reason: str) -> None:
        """End an inferlet with `cancelled`; raises NotFound."""
        self.find(instance_id).kill(Cancelled(reason))

    def status(self) -> list[dict[str, Any]]:
        return [inferlet.status() for inferlet in list(self._inferlets.values())]

    def close(self) -> None:
        """Kill all inferlets and stop; idempotent."""
        with self._lock:
            self._is_closed = True
        for inferlet in list(self._inferlets.values()):
            inferlet.kill(Cancelled("the engine is shutting down"))
        self._wasm.close()
        self._device.close()


class ClientService:
    """Serves clients' connections: attach, send, kill."""

    def __init__(self, host: InferletHost) -> None:
        self._host = host
        self._attached: dict[int, list[tuple[Inferlet, Callable[[list[Event]], None]]]] = {}

    def on_connect(self, conn: Connection) -> None:
        self._attached[id(conn)] = []

    def on_messages(self, conn: Connection, messages: list[Message]) -> None:
        for message in messages:
            if not isinstance(message, (Attach, SendText, Kill)):
                log.warning("client %s sent %s, which is none of its business", conn.peer_id, type(message).__name__)
                continue
            try:
                self._serve(conn, message)
            except PierayError as error:
                conn.send([Failed(message.ticket, error.code, error.message)])

    def _serve(self, conn: Connection, message: Attach | SendText | Kill) -> None:
        inferlet = self._host.find(message.instance_id)
        if isinstance(message, Attach):
            conn.send([Completed(message.ticket, None)])
            sink = partial(self._host.post_events, conn)
            self._attached[id(conn)].append((inferlet, sink))
            inferlet.log.subscribe(message.cursor, sink)
            conn.flush()
            return
        if isinstance(message, SendText):
            inferlet.deliver(message.text)
        else:
            inferlet.kill(Cancelled(message.reason))
        conn.send([Completed(message.ticket, None)])

    def on_close(self, conn: Connection, _error: PeerLost) -> None:
        for inferlet, sink in self._attached.pop(id(conn), []):
            inferlet.log.unsubscribe(sink)

