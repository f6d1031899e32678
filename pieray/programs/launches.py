"""What a client asks to be launched, and what it knows of the programs that are installed on the engine."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pieray.config import Limits
from pieray.errors import InvalidRequest, PeerLost
from pieray.mapping import from_mapping
from pieray.messages import Install, Launch, decode, encode
from pieray.programs.capabilities import ALL, Capabilities
from pieray.programs.limits import limits_within
from pieray.programs.manifest import limits_below
from pieray.programs.sources import ProgramSource
from pieray.traceparent import checked_traceparent, new_traceparent
from pieray.urgency import check_priority, deadline_at

KNOWN_BYTES = 64 << 20
"""Of installed programs that a client keeps."""


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """An inferlet for `Engine.launch_many`; the fields are what `Engine.launch` takes."""

    program: str | ProgramSource
    input: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limits: Mapping[str, float] | None = None
    capabilities: Mapping[str, Any] | None = None
    attached: bool = False
    priority: int = 0
    deadline_s: float | None = None
    trace: bool | str = False
    on_model: str = ""


@dataclass(frozen=True, slots=True)
class PreparedLaunch:
    """A launch in both of its forms: `by_name` is for the Controller, `whole` for an actor."""

    by_name: Launch
    whole: Launch
    revision: int
    """Of the registry, as of which the name means that program; 0: it is the client's own, and both forms are one."""

    @property
    def has_content(self) -> bool:
        """False for what only the Controller knows: a `ProgramSource` that is nothing but a name."""
        return bool(self.whole.source or self.whole.component)

    @property
    def may_compile(self) -> bool:
        """Whether it may be a component, that has to be compiled before it starts."""
        return not self.whole.source

    @property
    def name(self) -> str:
        """Of the program, without a version."""
        return self.whole.name.partition("@")[0]

    @property
    def rank(self) -> tuple[int, float]:
        """Lower goes first, of several that a client launches."""
        return -self.whole.priority, self.whole.deadline or math.inf

    def renamed(self) -> PreparedLaunch:
        """The same with another instance id: not that of a launch that was given up."""
        instance_id = _new_id(self.name)
        return replace(
            self,
            by_name=replace(self.by_name, instance_id=instance_id),
            whole=replace(self.whole, instance_id=instance_id),
        )


def may_have_run(actor: str, instance_id: str) -> PeerLost:
    """The error of a launch whose actor was lost behind it: launched again it might do twice what it is to do once."""
    return PeerLost(
        f"{actor} was lost when it had the launch of {instance_id}, which may have run for a moment: it "
        "was not launched again; do so if it may run twice"
    )


class InstalledPrograms:
    """Installed programs as a client has found them, by the names that it has used.  Thread-safe.

    Each is as of a revision of the registry: an actor that knows of a newer one refuses it, and it is forgotten.
    """

    def __init__(self, ask: Callable[[str], Sequence[Any]]) -> None:
        """`ask(spec)` gives the revision and a frame with the Install; raises NotFound."""
        self._ask = ask
        self._known: OrderedDict[str, tuple[int, Install]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def find(self, spec: str) -> tuple[int, Install]:
        """The revision and the program that `name` or `name@version` means; raises NotFound, and what asking raises."""
        with self._lock:
            if (known := self._known.get(spec)) is not None:
                self._known.move_to_end(spec)
                return known
        revision, frame = self._ask(spec)
        (program,) = decode(frame)
        assert isinstance(program, Install)
        with self._lock:
            self._drop(spec)
            self._known[spec] = revision, program
            self._num_bytes += _size_of(program)
            while self._num_bytes > KNOWN_BYTES:
                self._drop(next(iter(self._known)))
        return revision, program

    def forget(self) -> None:
        """Programs have changed: ask again for each."""
        with self._lock:
            self._known.clear()
            self._num_bytes = 0

    def _drop(self, spec: str) -> None:
        if (known := self._known.pop(spec, None)) is not None:
            self._num_bytes -= _size_of(known[1])


def prepared(
    request: LaunchRequest,
    found: ProgramSource | tuple[str, int, Install],
    ceiling: Limits,
    *,
    user: str,
    tenant: str,
    tools: Sequence[str] = (),
) -> PreparedLaunch:
    """The launch of a program: the client's own, or an installed one, with the name that it was asked for by.

    `tools`: names of MCP servers of the client.  Raises InvalidRequest, ConfigError.
    """
    now = time.time()
    program = found if isinstance(found, ProgramSource) else found[2]
    is_own = isinstance(found, ProgramSource) and bool(found.source or found.component)
    declared = program.capabilities if is_own else dataclasses.asdict(ALL)
    granted = dict(declared if request.capabilities is None else request.capabilities)
    if tools and request.capabilities is None:
        granted["mcp"] = tuple({*granted.get("mcp", ()), *tools})
    from_mapping(Capabilities, granted, "capabilities.")
    given = dict(request.limits or {})
    limits_within(ceiling, {**limits_below(program.limits, ceiling), **given})
    message = Launch(
        _new_id(program.name),
        program.name,
        program.filename,
        "",
        b"",
        _json(request.input),
        given,
        granted,
        "",
        user,
        tenant,
        client_servers=list(tools),
        is_attached=request.attached,
        priority=check_priority(request.priority),
        deadline=deadline_at(request.deadline_s, now),
        born=now,
        trace=_traceparent(request.trace),
        model=request.on_model,
    )
    if not isinstance(found, ProgramSource):
        spec, revision, installed = found
        return PreparedLaunch(replace(message, name=spec), filled_with(message, installed, ceiling), revision)
    name = found.name if is_own or not found.version else f"{found.name}@{found.version}"
    whole = replace(
        message,
        name=name,
        source=found.source,
        component=found.component,
        version=found.version,
        limits={**limits_below(found.limits, ceiling), **given},
    )
    return PreparedLaunch(whole, whole, 0)


def filled_with(launch: Launch, program: Install | ProgramSource, ceiling: Limits) -> Launch:
    """A launch by name with the program that the name means.

    Its capabilities are those of the program's manifest, of which `launch` may keep fewer, never add; its limits are
    the manifest's where lower than `ceiling`, the engine's, unless `launch` gives others; a child's are the lower of
    its manifest's and those that its parent gives.
    """
    granted = _capabilities(program.capabilities).within(_capabilities(launch.capabilities))
    limits = limits_below(program.limits, ceiling)
    if launch.parent:
        given = {name: min(value, limits.get(name, value)) for name, value in launch.limits.items()}
    else:
        given = launch.limits
    return dataclasses.replace(
        launch,
        name=program.name,
        version=program.version,
        filename=program.filename,
        source=program.source,
        component=program.component,
        capabilities=dataclasses.asdict(granted),
        limits={**limits, **given},
    )


def frame_of(message: Launch | Install) -> bytes:
    """Raises InvalidRequest for what is no text, or text that is not Unicode."""
    try:
        return encode([message])
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"inferlet {message.name!r} cannot be sent to the engine: {error}") from None


def _capabilities(values: Mapping[str, Any]) -> Capabilities:
    return from_mapping(Capabilities, values, "capabilities.")


def _size_of(program: Install) -> int:
    return len(program.source) + len(program.component) + 1000


def _new_id(name: str) -> str:
    return f"{name}-{secrets.token_hex(6)}"


def _traceparent(wanted: bool | str) -> str:
    return checked_traceparent(wanted) if isinstance(wanted, str) else new_traceparent() if wanted else ""


def _json(arguments: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(arguments), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the arguments of an inferlet are JSON: {error}") from None


def install_of(program: ProgramSource, user: str, tenant: str) -> Install:
    """The message that has a program kept as theirs."""
    return Install(
        program.name,
        program.version,
        program.filename,
        program.source,
        program.component,
        dict(program.capabilities),
        dict(program.limits),
        program.description,
        user,
        tenant,
    )


def source_of(found: Install) -> ProgramSource:
    """The program that was installed so."""
    return ProgramSource(
        found.name,
        found.filename,
        found.source,
        found.component,
        found.version,
        found.capabilities,
        found.limits,
        found.description,
    )
