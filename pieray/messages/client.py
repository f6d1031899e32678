"""Client <-> InferletActor, and the launch that the Controller passes on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pieray.messages.frame import Message, register


@register(40)
@dataclass(frozen=True, slots=True)
class Attach(Message):
    """Stream the inferlet's events to this connection, from number `cursor` on."""

    ticket: int
    instance_id: str
    cursor: int


@register(41)
@dataclass(frozen=True, slots=True)
class SendText(Message):
    """A message of the client to the inferlet."""

    ticket: int
    instance_id: str
    text: str


@register(42)
@dataclass(frozen=True, slots=True)
class Kill(Message):
    """End the inferlet now; its result becomes `cancelled`."""

    ticket: int
    instance_id: str
    reason: str


@register(43)
@dataclass(frozen=True, slots=True)
class Event(Message):
    """One thing an inferlet did, numbered from 0."""

    instance_id: str
    number: int
    kind: str  # "text", "data", "file", "log", "result", "error"; the last two end the stream
    payload: str | bytes
    """text; "data": JSON {name, value}; "file": bytes, see `file_part`, in order, as many as the file needs; "log":
    "level: text"; "result": JSON; "error": JSON {code, message}"""


def file_part(name: str, size: int, offset: int, data: bytes) -> bytes:
    """Payload of a "file" event: a line of JSON {name, size, offset}, and behind it the bytes from `offset` on."""
    return b"".join((json.dumps({"name": name, "size": size, "offset": offset}).encode(), b"\n", data))


def read_file_part(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """What `file_part` was given: {name, size, offset}, and the bytes."""
    head, _, data = payload.partition(b"\n")
    return json.loads(head), data


@register(44)
@dataclass(frozen=True, slots=True)
class AskUsage(Message):
    """What the inferlet has used so far; its Completed has what `Outbox.usage` gives."""

    ticket: int
    instance_id: str


@register(59)
@dataclass(frozen=True, slots=True)
class AwaitStart(Message):
    """Answer once the inferlet runs, or with the error why it never will: its component may have to be compiled."""

    ticket: int
    instance_id: str


@register(45)
@dataclass(frozen=True, slots=True)
class SendFile(Message):
    """A part of a file of the client to the inferlet; the parts come in order, the next once this is answered."""

    ticket: int
    instance_id: str
    name: str
    offset: int
    data: bytes
    is_last: bool


@register(50)
@dataclass(frozen=True, slots=True)
class Launch(Message):
    """Start an inferlet; travels in a Ray call.

    With neither `source` nor `component`, `name` (or "name@version") is that of an installed or embedded program,
    and `capabilities` are what is left of those that its manifest declares.
    """

    instance_id: str
    name: str  # of the program, for people
    filename: str  # shown in tracebacks
    source: str  # Python source, or "" when `component` is given
    component: bytes  # a wasm component, or b""
    input: str  # JSON
    limits: dict[str, float]  # fields of Limits that differ from the engine's defaults
    capabilities: dict[str, Any] = field(default_factory=dict)  # fields of Capabilities; absent ones are denied
    version: str = ""  # of the program
    user: str = "local"  # who answers for it, as the client says
    tenant: str = "local"  # whose names, messages, store and quota it uses
    parent: str = ""  # instance id of the inferlet that launches this one, or ""
    depth: int = 0  # 0 for a client's own, else its parent's + 1
    client_servers: list[str] = field(default_factory=list)  # names of MCP servers that the client answers for
    is_attached: bool = False  # it ends with the connection that its client binds it to (`Bind`), or soon without one
    priority: int = 0  # higher goes first; children have their parent's, as they have the next two
    deadline: float = 0.0  # Unix time at which its result is wanted; 0: no matter.  A hint: nothing ends at it
    born: float = 0.0  # Unix time at which the root of its family was launched; 0: when it comes to the engine
    family: str = ""  # instance id of that root; a launch of a client's is one, whatever it says
    trace: str = ""  # W3C traceparent of whoever wants it traced, which children have too; "": nobody does
    model: str = ""  # name of the served model that it means where it names none, as its children do; "": the engine's


@register(47)
@dataclass(frozen=True, slots=True)
class LaunchHere(Message):
    """Start an inferlet at a place that the Controller has granted, and stream its events to this connection.

    Its Completed has the actor's time.monotonic.  Refused with what has an error's code; with `engine`, `stalled`,
    `deadline` or `device-lost` it may be tried elsewhere, with `not-found` the name may mean another program by now.
    """

    ticket: int
    instance_id: str
    grant: str
    sent_at: float  # by the actor's time.monotonic, see `pieray.concurrency.stalls`
    deadline: float  # the same: past it nobody waits for it any more
    launch: bytes  # a frame with the Launch
    revision: int = 0  # of the registry, as of which its name means that program; 0: it is the client's own


@register(58)
@dataclass(frozen=True, slots=True)
class Install(Message):
    """A program for the engine's registry, with what its manifest declares; travels in a Ray call."""

    name: str
    version: str
    filename: str
    source: str  # Python source, or "" when `component` is given
    component: bytes
    capabilities: dict[str, Any]
    limits: dict[str, float]
    description: str
    user: str  # who owns the name, with the tenant
    tenant: str
