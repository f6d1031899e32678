"""What a run does, an event each; and server-sent events (WHATWG HTML, section 9.2), as the server sends them."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from pieray_client.errors import of_run


@dataclass(frozen=True, slots=True)
class Text:
    """It sent a text."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Log:
    """It logged a line, which begins with its level."""

    number: int
    line: str


@dataclass(frozen=True, slots=True)
class Data:
    """It emitted a value under a name."""

    number: int
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class FilePart:
    """It sent a file of `size` bytes; `data` are those from `offset` on.  `Run.file` gives it whole."""

    number: int
    name: str
    size: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """It has ended; `value` is what its `main` returned."""

    number: int
    value: Any


Event: TypeAlias = Text | Log | Data | FilePart | Result


class EventReader:
    """Makes events of the lines of a stream; `last` is the number of the last event."""

    def __init__(self, last: int = -1) -> None:
        self.last = last
        self.is_over = False
        """The run has ended, and how has been read."""
        self.begin()

    def begin(self) -> None:
        """Another stream goes on behind the last event: what has come of the next one comes again."""
        self._kind = ""
        self._number = -1
        self._data: list[str] = []

    def take(self, line: str) -> Event | None:
        """The event that ends with this line.  Raises RunFailed: the run has ended with an error."""
        if not line:
            return self._whole()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._number = int(value)
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        return None

    def _whole(self) -> Event | None:
        kind, data = self._kind, "\n".join(self._data)
        self._kind, self._data = "", []
        if not kind:  # a comment
            return None
        self.last = max(self.last, self._number)
        value = json.loads(data)
        number = self._number
        found: Event
        if kind == "text":
            found = Text(number, value)
        elif kind == "log":
            found = Log(number, value)
        elif kind == "data":
            found = Data(number, value["name"], value["value"])
        elif kind == "file":
            part = base64.b64decode(value["data"])
            found = FilePart(number, value["name"], value["size"], value["offset"], part)
        elif kind == "result":
            self.is_over = True
            found = Result(number, value)
        elif kind == "error":
            self.is_over = True
            raise of_run(value)
        else:  # a kind that a newer server knows
            return None
        return found
