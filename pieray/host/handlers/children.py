"""WIT interface `children`: inferlets that this one launches."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

from pieray.errors import ConfigError, InvalidRequest, PierayError, QuotaExceeded, Unsupported
from pieray.host.children.family import Child, Family
from pieray.host.identity import Identity
from pieray.host.open_handles import OpenHandles
from pieray.host.services import Services
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import Kind
from pieray.messages import Launch
from pieray.programs.limits import limits_within
from pieray.programs.manifest import is_spec
from pieray.texts import byte_size, check_size

MAX_LIMITS_TEXT = 4096
MAX_REASON = 1000
INLINE = "child"
"""Name of what is launched from source."""


class ChildrenHandlers:
    """Children by handle.  They run in the parent's name, within its limits and capabilities."""

    def __init__(
        self, identity: Identity, services: Services, work: TicketWork, fail: Callable[[PierayError], None]
    ) -> None:
        self._identity = identity
        self._services = services
        self._work = work
        self._fail = fail  # ends the parent
        self._children: OpenHandles[Child] = OpenHandles("child handle", "tickets", identity.limits.tickets)
        self._deadline = time.monotonic() + identity.limits.wall_time_s
        self._family: Family | None = None

    def launch(self, program: str, source: str, input: str, limits: str, link: str) -> int:
        identity = self._identity
        identity.capabilities.require("children")
        depth = identity.launch.depth + 1
        if depth > identity.limits.child_depth:
            raise QuotaExceeded(
                f"child_depth: the limit is {identity.limits.child_depth} generations; this would be number {depth}"
            )
        _check_program(program, source)
        self._check_sizes(source, input)
        self._children.check_room()
        family = self._the_family()
        name = program.partition("@")[0] or INLINE
        message = Launch(
            f"{name}-{secrets.token_hex(6)}",
            program or INLINE,
            f"{name}.py",
            source,
            b"",
            input,
            self._limits_of(limits),
            dataclasses.asdict(identity.capabilities),
            "",
            identity.launch.user,
            identity.launch.tenant,
            identity.instance_id,
            depth,
            priority=identity.launch.priority,
            deadline=identity.launch.deadline,
            born=identity.launch.born,
            family=identity.launch.family,
            trace=identity.launch.trace,
            model=identity.launch.model,
        )
        return self._children.put(family.launch(message, is_linked=link == "linked"))

    def id(self, child: int) -> int:
        found = self._children.get(child)
        ticket = self._ticket(found, Kind.TEXT)
        self._the_family().ask_id(found, ticket)
        return ticket

    def wait(self, child: int) -> int:
        found = self._children.get(child)
        ticket = self._ticket(found, Kind.TEXT)
        self._the_family().wait(found, ticket)
        return ticket

    def receive(self, child: int) -> int:
        found = self._children.get(child)
        ticket = self._ticket(found, Kind.TEXT)
        self._the_family().receive(found, ticket)
        return ticket

    def send(self, child: int, text: str) -> int:
        found = self._children.get(child)
        check_size("message_bytes", self._identity.limits.message_bytes, byte_size(text))
        ticket = self._work.begin(Kind.NONE)
        try:
            self._the_family().send(found, text, ticket)
        except QuotaExceeded:
            self._work.tickets.drop((ticket,))
            raise
        return ticket

    def cancel(self, child: int, reason: str) -> int:
        found = self._children.get(child)
        ticket = self._work.begin(Kind.NONE)
        self._the_family().kill(found, reason[:MAX_REASON] or "cancelled by its parent", ticket)
        return ticket

    def detach(self, child: int) -> int:
        found = self._children.get(child)
        ticket = self._work.begin(Kind.TEXT)
        self._children.pop(child)
        self._the_family().detach(found, ticket)
        return ticket

    def close(self, child: int) -> None:
        self._the_family().close(self._children.pop(child))

    # --- inside ---------------------------------------------------------------------------------

    def _the_family(self) -> Family:
        if self._family is None:
            service = self._services.children
            if service is None:
                raise Unsupported("children: this engine launches none")
            self._family = Family(self._identity.limits, self._work, service, self._services.timers, self._fail)
            self._work.at_end(self._family.end)
        return self._family

    def _ticket(self, child: Child, kind: Kind) -> int:
        """A ticket that its child forgets when the guest does."""
        family = self._the_family()
        ticket = self._work.begin(kind)
        self._work.on_cancel(ticket, lambda: family.forget(child, ticket))
        return ticket

    def _limits_of(self, text: str) -> dict[str, float]:
        """The child's limits as far as they differ from the engine's: the parent's own, lowered to what was asked."""
        service = self._services.children
        assert service is not None
        if len(text) > MAX_LIMITS_TEXT:
            raise InvalidRequest(f"limits have at most {MAX_LIMITS_TEXT} characters of JSON; given {len(text)}")
        try:
            asked: Any = json.loads(text) if text.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"limits are JSON: {error}") from None
        if not isinstance(asked, dict):
            raise InvalidRequest(f"limits are a JSON object; given {type(asked).__name__}")
        try:
            limits = limits_within(self._identity.limits, asked)
        except ConfigError as error:
            raise InvalidRequest(error.message.replace("this engine allows", "its parent has")) from None
        left = self._deadline - time.monotonic()
        limits = dataclasses.replace(limits, wall_time_s=max(0.0, min(limits.wall_time_s, left)))
        theirs = dataclasses.asdict(service.ceiling)
        return {name: value for name, value in dataclasses.asdict(limits).items() if value != theirs[name]}

    def _check_sizes(self, source: str, input: str) -> None:
        limits = self._identity.limits
        check_size("source_bytes", limits.source_bytes, byte_size(source))
        check_size("message_bytes", limits.message_bytes, byte_size(input))


def _check_program(program: str, source: str) -> None:
    if bool(program) == bool(source.strip()):
        raise InvalidRequest(f"a child is a program by name, or source; given {'both' if program else 'neither'}")
    if program and not is_spec(program):
        raise InvalidRequest(
            f"a program's name is letters, digits and . _ -, perhaps with @version; given {program[:100]!r}"
        )
