"""Inferlets that this one launches.  Capability: children."""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import Any

from . import _convert, _host
from ._waiting import check_timeout, wait_ticket, within
from .errors import Cancelled, InvalidRequest
from .tickets import take_none, take_text


def launch(
    program: str | Callable[..., Any] = "",
    /,
    *,
    source: str = "",
    limits: Mapping[str, float] | None = None,
    linked: bool = False,
    **arguments: Any,
) -> Child:
    """Launch a program by name, Python `source`, or a function of this program, with `arguments` for its main.

    A function runs in a child of its own, on this program's source: its arguments and its result travel as JSON,
    nothing else does.  `limits`: fields of the engine's limits, each at most this inferlet's own.  `linked`: if the
    child fails, so does this inferlet.  If it cannot be launched, waiting for it tells.

    Code that is not trusted, such as a model's, belongs in a child with limits: an `exec` that loops ends the inferlet
    that runs it.
    """
    name = ""
    if isinstance(program, str):
        name = program
    else:
        source = _source_of(program)
    text = _convert.to_json("the arguments of a child", arguments)
    given = dict(_convert.instance("limits", limits or {}, Mapping))  # type: ignore[type-abstract]
    link = _host.LinkKind.LINKED if _convert.boolean("linked", linked) else _host.LinkKind.NONE
    return Child(_host.children.launch(name, source, text, _convert.to_json("limits", given) if given else "", link))


def _source_of(function: Callable[..., Any]) -> str:
    """This program's source, with `function` as its main."""
    name = getattr(function, "__name__", "")
    module = sys.modules.get(getattr(function, "__module__", ""))
    if module is None or getattr(module, name, None) is not function or not inspect.isfunction(function):
        raise InvalidRequest(f"a child runs a function of this program's top level; given {_convert.shown(function)}")
    lines = linecache.getlines(str(module.__file__))
    if not lines:
        raise InvalidRequest(f"the source of {name} is not known here; give source=")
    return "".join(lines) + ("" if name == "main" else f"\n\nmain = {name}\n")


class Child:
    """A child: await it for its result, iterate it for the texts that it sends, close it or leave it to the end.

    It ends with this inferlet unless it is detached.  `async with` closes it, which ends it if it runs.
    """

    def __init__(self, id: int) -> None:
        self.id = id
        self._left: list[int] = []  # receives whose waiter gave up: the next one takes them over
        self._is_closed = False

    def __await__(self) -> Generator[Any, None, Any]:
        return self.wait().__await__()

    async def wait(self, timeout: float | None = None) -> Any:
        """What its main returned; raises its error (RemoteFailed if its own code raised), or DeadlineExceeded after
        `timeout` seconds, and the child runs on."""
        check_timeout(timeout)
        return _convert.load(await self._text(_host.children.wait(self.id), timeout, "has not ended", is_long=True))

    async def instance_id(self) -> str:
        """Its instance id, once it runs."""
        return await self._text(_host.children.id(self.id), None, "")

    async def receive(self, timeout: float | None = None) -> str:
        """The next text that it sends.  Raises Cancelled when it has ended and sent no more."""
        check_timeout(timeout)
        ticket = self._left.pop() if self._left else _host.children.receive(self.id)
        is_taken = False
        try:
            await within(wait_ticket(ticket, keep=True, is_long=True), timeout, "the child has sent nothing")
            is_taken = True
            return take_text(ticket)
        finally:
            if not is_taken:
                self._left.append(ticket)

    async def __aiter__(self) -> AsyncIterator[str]:
        """The texts that it sends, until it ends; `wait` says how."""
        while True:
            try:
                text = await self.receive()
            except Cancelled:
                return
            yield text

    async def send(self, text: str) -> None:
        """A message that its `session.receive` gets."""
        await _none(_host.children.send(self.id, text))

    async def cancel(self, reason: str = "") -> None:
        """End it; waiting for it raises Cancelled."""
        await _none(_host.children.cancel(self.id, reason))

    async def detach(self) -> str:
        """Let it outlive this inferlet; its instance id.  This handle closes."""
        self._is_closed = True
        return await self._text(_host.children.detach(self.id), None, "")

    def close(self) -> None:
        """Give the handle back; a child that runs is ended.  Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            _host.children.close(self.id)

    async def __aenter__(self) -> Child:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    async def _text(self, ticket: int, timeout: float | None, what: str, *, is_long: bool = False) -> str:
        await within(wait_ticket(ticket, is_long=is_long), timeout, f"the child {what}")
        return take_text(ticket)


async def _none(ticket: int) -> None:
    await wait_ticket(ticket)
    take_none(ticket)
