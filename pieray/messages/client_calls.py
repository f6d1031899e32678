"""InferletActor <-> client: calls of tools that the client has brought with a launch."""

from __future__ import annotations

from dataclasses import dataclass

from pieray.messages.frame import Message, register


@register(90)
@dataclass(frozen=True, slots=True)
class ServeTools(Message):
    """This connection answers the calls of the inferlet's client servers from now on."""

    ticket: int
    instance_id: str


@register(91)
@dataclass(frozen=True, slots=True)
class ClientCall(Message):
    """To the client: call a tool, or list the tools of a server."""

    call: int  # the host's number for it
    instance_id: str
    server: str
    tool: str  # "": list the tools
    arguments: str  # JSON object


@register(92)
@dataclass(frozen=True, slots=True)
class ClientAnswer(Message):
    """From the client: what became of a call."""

    call: int
    instance_id: str
    value: str  # JSON, as the WIT's `mcp.tools` and `mcp.call` yield
    code: str  # of pieray.errors; "": it went well
    message: str


@register(93)
@dataclass(frozen=True, slots=True)
class CancelCall(Message):
    """To the client: nobody waits for the call any more."""

    call: int
    instance_id: str
