"""The handle of an engine: launch inferlets on it, look at them, stop it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pieray.client.controller_calls import ControllerCalls
from pieray.client.controller_link import ControllerLink, LaunchPath
from pieray.client.launching import Launching
from pieray.client.link import ActorLinks
from pieray.client.process import Process
from pieray.cluster import ray_cluster
from pieray.cluster.ray_calls import asker
from pieray.concurrency.off_loop import off_loop
from pieray.config import Config
from pieray.errors import EngineError, NotFound, PierayError
from pieray.messages import Install, decode
from pieray.models.adapter_file import AdapterFacts, read_adapter
from pieray.programs.launches import (
    InstalledPrograms,
    LaunchRequest,
    PreparedLaunch,
    frame_of,
    install_of,
    prepared,
    source_of,
)
from pieray.programs.manifest import is_spec
from pieray.programs.sources import ProgramSource, embedded_inferlets, is_embedded, resolve

if TYPE_CHECKING:
    from pieray.client.tools import ClientTools

log = logging.getLogger(__name__)

ASK_S = 60.0
"""How long the Controller may take over what it is asked, as long as it says that it lives."""


class Engine:
    """A connection to a running engine.  Use as a context manager, or `close` it.  Thread-safe.

    On an event loop: `alaunch`, `alaunch_many`, `aattach`, `akill`.
    """

    def __init__(self, config: Config, controller: Any, *, owns_engine: bool, owns_ray: bool) -> None:
        """`controller`: the Ray handle of the engine's Controller, or a `ControllerLink` to it."""
        self.config = config
        self.user = "local"
        """Who answers for what this handle launches.  Nobody checks it: who may use the cluster may say anything."""
        self.tenant = "local"
        """Whose names, messages, store and quota that uses."""
        self._controller = controller
        self._calls = ControllerCalls(controller.begin if isinstance(controller, ControllerLink) else asker(controller))
        self._owns_engine = owns_engine
        self._owns_ray = owns_ray
        self._lock = threading.Lock()
        self._is_closed = False
        self.on_close: Callable[[], None] = _nothing
        """Called when this handle has been closed."""
        self._token: str = controller.token if isinstance(controller, ControllerLink) else self._ask("token")
        self._installed = InstalledPrograms(lambda spec: self._ask("resolve", spec))
        self._links = ActorLinks(peer_id=f"client-{os.getpid()}-{secrets.token_hex(4)}", token=self._token)
        path = None if isinstance(controller, ControllerLink) else LaunchPath(self._calls, self._token)
        self._launching = Launching(config, self._calls, self._links, self._installed, path=path, kill=self.kill)

    # --- inferlets -----------------------------------------------------------------------------

    def launch(
        self,
        program: str | ProgramSource,
        input: Mapping[str, Any] | None = None,
        /,
        *,
        limits: Mapping[str, float] | None = None,
        capabilities: Mapping[str, Any] | None = None,
        mcp: Mapping[str, Any] | None = None,
        attached: bool = False,
        priority: int = 0,
        deadline_s: float | None = None,
        trace: bool | str = False,
        on_model: str = "",
        **arguments: Any,
    ) -> Process:
        """Launch an inferlet by name, file or source; `input` and `arguments` are the arguments of its `main`.

        A bare name, perhaps with @version, is an embedded or installed inferlet before it is a file of this machine.
        `capabilities`: fields of `Capabilities`, in place of those that its manifest declares; of an installed one's
        they may keep fewer, never add.  `limits`: fields of `Limits`; those that are not given are its manifest's
        where these are lower than the engine's.  `mcp`: MCP servers that this client brings, by name, which the
        inferlet may call until it ends: {"command": [...]} (run here), {"url": ...} (asked from here), a server
        object of the mcp library, or any object with `list_tools` and `call_tool(name, arguments)`.  `attached`: the
        inferlet ends with this handle, or with this process however it ends; otherwise it runs on without a client.
        `priority`: from -100 to 100; where something is short, higher goes first.  `deadline_s`: in so many seconds
        its result is wanted (None and 0: no matter).  It ranks earlier ones first among those of one priority, and is
        no limit: nothing ends at it (that is `limits.wall_time_s`).  Children have both of their parent.
        `trace`: note what it and its children do, for `trace`; a W3C traceparent: as part of that trace.
        `on_model`: the served model that it, and its children, use where they name none, in place of the default one.

        Raises NotFound (no such inferlet or model), InvalidRequest (arguments are not JSON, a priority is none),
        ConfigError (a limit is unknown or above the engine's), Overloaded (no place within `launch_wait_s`, too many
        wait for one, or the tenant has used up a quota; its `retry_after_s` says when to try again), EngineError (the
        engine is gone), PeerLost (its actor was lost with it, and it may have run for a moment; what surely has not run
        is launched on another actor).
        """
        request = LaunchRequest(
            program,
            {**(input or {}), **arguments},
            limits,
            capabilities,
            attached,
            priority,
            deadline_s,
            trace,
            on_model,
        )
        tools = _tools_of(mcp) if mcp else None
        prepared = self._prepared(request, tools.names if tools is not None else ())
        self._check_open()
        return self._launching.launch(prepared, tools)

    def launch_many(
        self, requests: Iterable[LaunchRequest | tuple[str | ProgramSource, Mapping[str, Any]]]
    ) -> list[Process | PierayError]:
        """Launch many inferlets with one message to each actor; in their order, the process of each, or its error.

        A request is a `LaunchRequest`, or a pair of program and input.  An error is what `launch` of that request alone
        would raise; the others run.  If this call is interrupted, all of them end.

        Raises EngineError (this handle is closed, the engine does not answer), with none launched.
        """
        wanted = [self._prepared_or_error(request) for request in requests]
        self._check_open()
        return self._launching.launch_many(wanted)

    async def alaunch_many(
        self, requests: Iterable[LaunchRequest | tuple[str | ProgramSource, Mapping[str, Any]]]
    ) -> list[Process | PierayError]:
        """`launch_many` for an event loop; if the awaiting task is cancelled, all of the inferlets end."""
        return await _launched(lambda: self.launch_many(requests))

    def _prepared_or_error(
        self, request: LaunchRequest | tuple[str | ProgramSource, Mapping[str, Any]]
    ) -> PreparedLaunch | PierayError:
        try:
            return self._prepared(request if isinstance(request, LaunchRequest) else LaunchRequest(*request))
        except PierayError as error:
            return error

    def _prepared(self, request: LaunchRequest, tools: Sequence[str] = ()) -> PreparedLaunch:
        program = request.program
        found = self._found(program) if isinstance(program, str) else program
        return prepared(request, found, self.config.limits, user=self.user, tenant=self.tenant, tools=tools)

    def _found(self, name_or_file: str) -> ProgramSource | tuple[str, int, Install]:
        """As `find`; of an installed program the name, the registry's revision, and all of it."""
        if not is_spec(name_or_file) or is_embedded(name_or_file):
            return resolve(name_or_file)
        self._check_open()
        try:
            return name_or_file, *self._installed.find(name_or_file)
        except NotFound as missing:
            return _file_or(missing, name_or_file)

    async def alaunch(
        self, program: str | ProgramSource, input: Mapping[str, Any] | None = None, /, **options: Any
    ) -> Process:
        """`launch` for an event loop, with the same options; if the awaiting task is cancelled, the inferlet ends."""
        (process,) = await _launched(lambda: [self.launch(program, input, **options)])
        assert not isinstance(process, PierayError)
        return process

    def find(self, name_or_file: str) -> ProgramSource:
        """What `launch` would launch; an installed program comes without its source or component.

        Raises NotFound, and what `pieray.programs.sources.resolve` raises.
        """
        if is_spec(name_or_file) and not is_embedded(name_or_file):
            try:
                return self.program(name_or_file, with_content=False)
            except NotFound as missing:
                return _file_or(missing, name_or_file)
        return resolve(name_or_file)

    def attach(self, instance_id: str) -> Process:
        """The handle of an inferlet that another client launched; raises NotFound."""
        name, wire = self._ask("locate", instance_id)
        return self._launching.attached(instance_id, name, wire)[0]

    async def aattach(self, instance_id: str) -> Process:
        """`attach` for an event loop."""
        return await off_loop(self.attach, instance_id)

    def ps(self) -> list[dict[str, Any]]:
        """Inferlets that run or have ended lately, each with

        instance_id, name, state ("running", "done", "failed", "killed"), error (its code and first line, or ""),
        tenant, user, parent (an instance id, or ""), priority, started_at and ended_at (Unix time; None: it runs),
        cpu_time_s, pages, swapped (pages of those that it has given up for others at present: they are in host memory,
        or to be computed again), output_bytes, tokens_computed, tokens_found (run, and there already), pages_swapped
        (given up so, ever).  Of one whose actor does not answer (state "unreachable") less is known.
        """
        found: list[dict[str, Any]] = self._ask("ps")
        return found

    def admission(self) -> dict[str, Any]:
        """By tenant, launches that wait for a place ("waiting"), those refused one since the engine is up ("refused"),
        and what is used of quotas that the Controller keeps ("quotas": inferlets, tokens_left of the minute's)."""
        found: dict[str, Any] = self._ask("admission")
        return found

    def kill(self, instance_id: str, reason: str = "killed") -> None:
        """End an inferlet by id; raises NotFound."""
        self._ask("kill", instance_id, reason)

    async def akill(self, instance_id: str, reason: str = "killed") -> None:
        """`kill` for an event loop."""
        await off_loop(self.kill, instance_id, reason)

    def trace(self, instance_id: str) -> list[dict[str, Any]]:
        """What a traced inferlet has done so far, and then those of the inferlets that it has launched, each with

        the fields of `ps`, and traceparent, launched_at (Unix time, as the others are), ran_at (0.0: not yet), calls of
        handlers (name, began, ended, error), answers of the device (at, commands, tokens of plans), steps that it took
        part in (began, ended; passes, tokens and copies of all inferlets in it), num_dropped (calls and answers beyond
        the 20,000 that are kept).  Ended ones are kept for as long as their events.

        Raises NotFound: there is no such inferlet, or it is not traced.
        """
        found = [self._ask("trace", instance_id)]
        children: dict[str, list[str]] = {}
        for row in self.ps():
            children.setdefault(row.get("parent", ""), []).append(row["instance_id"])
        waiting = children.get(instance_id, [])
        while waiting:
            child = waiting.pop(0)
            with contextlib.suppress(NotFound):  # it has been forgotten since
                found.append(self._ask("trace", child))
            waiting += children.get(child, [])
        return found

    # --- adapters ------------------------------------------------------------------------------

    def adapters(self) -> list[dict[str, Any]]:
        """LoRA adapters loaded: name, rank, alpha, targets, num_bytes, owner (a tenant; "": all may open it)"""
        return [AdapterFacts.from_wire(one).public() for one in self._ask("adapters")]

    def load_adapter(
        self, name: str, source: str | Path | bytes, alpha: float | None = None, *, tenant: str | None = None
    ) -> dict[str, Any]:
        """Load a LoRA adapter for the inferlets of a tenant (this handle's); its facts.

        `source`: a safetensors file, a folder as PEFT saves it, or a file's bytes; `alpha` None: the folder's, else the
        rank.  Raises ModelError (the file does not fit the model), InvalidRequest (the name is taken), QuotaExceeded.
        """
        file = read_adapter(name, source, alpha, max_bytes=self.config.model.adapter_bytes)
        fields = {
            "name": name,
            "alpha": file.alpha,
            "is_rank_stabilized": file.is_rank_stabilized,
            "source": file.source,
        }
        owner = self.tenant if tenant is None else tenant
        facts = self._ask("load_adapter", fields, file.data, owner, timeout_s=180.0)
        return AdapterFacts.from_wire(facts).public()

    def unload_adapter(self, name: str, *, tenant: str | None = None) -> None:
        """Let go an adapter that was loaded so; later passes through it fail with `evicted`.  Raises NotFound."""
        self._ask("unload_adapter", name, self.tenant if tenant is None else tenant)

    def scale(self, replicas: int, *, model: str = "", drain_s: float = 600.0) -> list[dict[str, Any]]:
        """Have a model ("": the default one) on so many device groups, see `model.replicas`; what `models` gives, when
        that is so.

        Programs do not notice new ones. Of those that go, none is chosen any more; they end with the last program that
        computes there, or after `drain_s` seconds: then what still does fails with `device-lost`. Exports that they
        have end with them. Raises InvalidRequest, NotFound, and ModelError or EngineError where one could not be
        started: then there are as many as before.
        """
        wait_s = drain_s + 2 * self.config.start_timeout_s
        found: list[dict[str, Any]] = self._ask("scale", replicas, drain_s, model, timeout_s=wait_s)
        return found

    # --- exports -------------------------------------------------------------------------------

    def exports(self) -> list[dict[str, Any]]:
        """Exports of KV pages, of all tenants: tenant, owner (its user), name, access, num_pages, num_tokens, pinned,
        expires_in_ms (None: it does not), num_importers."""
        found: list[dict[str, Any]] = self._ask("exports")
        return found

    def drop_export(self, name: str, *, access: str = "", tenant: str = "", user: str = "") -> dict[str, Any]:
        """Take an export away, whoever made it; name, access, tenant and owner of what is gone.

        Inferlets that have it open keep its pages.  Raises NotFound, and InvalidRequest if more than one has the name
        and `access`, `tenant` and `user` do not say which.
        """
        dropped: dict[str, Any] = self._ask("drop_export", name, access, tenant, user)
        return dropped

    # --- programs ------------------------------------------------------------------------------

    def install(self, program: str | ProgramSource) -> dict[str, Any]:
        """Keep a program on the engine, to be launched by name; its facts, as `programs` gives them.

        The name belongs to this handle's tenant and user from then on, and what a version is never changes.  Raises
        as `launch`, Denied (the name is another's), InvalidRequest (the version is another program), QuotaExceeded.
        """
        found = resolve(program) if isinstance(program, str) else program
        facts: dict[str, Any] = self._ask("install", frame_of(install_of(found, self.user, self.tenant)))
        return facts

    def uninstall(self, name: str) -> list[str]:
        """Forget an installed `name@version`, or all versions of `name`; raises NotFound, Denied.

        Inferlets that run already go on.
        """
        dropped: list[str] = self._ask("uninstall", name, self.tenant, self.user)
        return dropped

    def programs(self) -> list[dict[str, Any]]:
        """Installed programs: name, version, description, sha256, num_bytes, filename, owner, capabilities, limits."""
        found: list[dict[str, Any]] = self._ask("programs")
        return found

    def program(self, name: str, *, with_content: bool = True) -> ProgramSource:
        """An installed program, with its source or component if wanted; raises NotFound."""
        (found,) = decode(self._ask("program", name, with_content))
        assert isinstance(found, Install)
        return source_of(found)

    # --- the engine ----------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        """Facts of the served models."""
        found: list[dict[str, Any]] = self._ask("models")
        return found

    def status(self) -> dict[str, Any]:
        """Actors (role, pid, node), pages by state, steps, transport and executor in use, and `admission`."""
        found: dict[str, Any] = self._ask("status")
        return found

    @property
    def is_open(self) -> bool:
        """False once this handle is closed, or its socket to the Controller is: it is not dialled again."""
        return not self._is_closed and not (
            isinstance(self._controller, ControllerLink) and not self._controller.is_open
        )

    def door(self) -> tuple[tuple[Any, ...], str]:
        """Endpoint of the Controller's socket, () if it has none, and the engine's token: what `connect_door` takes."""
        return tuple(self._ask("door")), self._token

    def shutdown(self) -> None:
        """Stop the engine for everybody, then close this handle."""
        self._owns_engine = True
        self.close()

    def close(self) -> None:
        """Hang up; an engine that this handle started stops with it.  Idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._links.close()
        try:
            if self._owns_engine:
                self._stop_engine()
        finally:
            if isinstance(self._controller, ControllerLink):
                self._controller.close()
            self._launching.close()
            if self._owns_ray:
                ray_cluster.leave()
            self.on_close()

    def _stop_engine(self) -> None:
        """Let the Controller end the inferlets and actors; then make sure of it, itself included."""
        if isinstance(self._controller, ControllerLink):
            self._calls.ask("shutdown", timeout_s=ASK_S)
            return
        import ray

        if not ray.is_initialized():
            log.info("this process has left Ray already; an engine in it has ended with it")
            return
        try:
            self._calls.ask("shutdown", timeout_s=ASK_S)
        except PierayError as error:
            log.info("the Controller did not stop the engine: %s", error)
        ray_cluster.end_engine_of(self._controller, self.config.namespace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside --------------------------------------------------------------------------------

    def _ask(self, method: str, *args: Any, timeout_s: float = ASK_S) -> Any:
        self._check_open()
        return self._calls.ask(method, *args, timeout_s=timeout_s)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("this engine handle is closed")


async def _launched(launch: Callable[[], list[Process | PierayError]]) -> list[Process | PierayError]:
    """What `launch` launches, off the event loop; if the awaiting task is cancelled, all of that ends."""
    lock = threading.Lock()
    is_wanted = True
    running: list[Process] = []

    def call() -> list[Process | PierayError]:
        outcomes = launch()
        with lock:  # whoever comes second knows of the other
            running.extend(one for one in outcomes if not isinstance(one, PierayError))
            is_late = not is_wanted
        if is_late:
            _end_all(running)
        return outcomes

    try:
        return await off_loop(call)
    except BaseException:
        with lock:
            is_wanted = False
            unwanted = list(running)
        if unwanted:  # they were launched, and the task was cancelled before it went on
            threading.Thread(target=_end_all, args=(unwanted,), name="pieray-unwanted", daemon=True).start()
        raise


def _end_all(processes: Iterable[Process]) -> None:
    for process in processes:
        with contextlib.suppress(PierayError):
            process.kill("its launch was cancelled")


def _file_or(missing: NotFound, name: str) -> ProgramSource:
    """The program in a file of that name, which is no installed program's."""
    with contextlib.suppress(NotFound):
        return resolve(name)
    names = ", ".join(embedded_inferlets())
    raise NotFound(f"{missing.message}; no file has that name; embedded inferlets: {names}") from None


def _tools_of(servers: Mapping[str, Any]) -> ClientTools:
    from pieray.client.tools import ClientTools  # here: an event loop and TLS take a tenth of a second to import

    return ClientTools(servers)


def _nothing() -> None: ...
