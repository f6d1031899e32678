"""Requests and answers, for clients of both kinds: what is sent, and what comes back as types."""

from __future__ import annotations

import base64
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from pieray_client.errors import ClientError, Overloaded, TimedOut, Unavailable

Content: TypeAlias = bytes | str | PathLike[str]
"""Bytes, or the path of a file."""

CONNECT_S = 10.0
SILENT_S = 60.0
"""The server says something every 20 s at least: a stream that is silent for so long is dead."""
SLICE_S = 5.0
"""With a timeout, an idle stream is looked at so often."""
BACK_OFF_S = 0.5
LONGEST_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run stands."""

    id: str
    program: str
    state: str
    """running, done, failed or killed."""
    created: int
    """Unix time."""
    num_events: int
    result: Any = None
    """Of one that is done."""
    error: Mapping[str, Any] | None = None
    """Of one that has failed or was killed: {message, code, ...}."""


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """A program that may be run."""

    name: str
    version: str
    description: str
    is_embedded: bool


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that a run has sent."""

    name: str
    size: int


def launch_body(
    input: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
    *,
    limits: Mapping[str, float] | None,
    priority: int,
    deadline_s: float | None,
    messages: Sequence[str],
    files: Mapping[str, Content],
    keep_s: float,
) -> dict[str, Any]:
    """Of `POST /v1/inferlets/NAME/runs`; the answer comes at once."""
    body: dict[str, Any] = {"input": {**(input or {}), **arguments}, "wait": False, "keep_s": keep_s}
    body |= {"messages": list(messages)} if messages else {}
    body |= {"priority": priority} if priority else {}
    body |= {"limits": dict(limits)} if limits is not None else {}
    body |= {"deadline_s": deadline_s} if deadline_s is not None else {}
    if files:
        rows = ((name, base64.b64encode(content(data)).decode()) for name, data in files.items())
        body["files"] = [{"name": name, "data": data} for name, data in rows]
    return body


def content(data: Content) -> bytes:
    return data if isinstance(data, bytes) else Path(data).read_bytes()


def program_body(path: str | PathLike[str], source: str | None) -> dict[str, str]:
    """Of `POST /v1/inferlets`."""
    file = Path(path)
    return {"filename": file.name, "source": file.read_text(encoding="utf-8") if source is None else source}


def base_of(url: str) -> str:
    """The server's own URL, of one that may end in /v1 as OpenAI's clients have it."""
    return url.rstrip("/").removesuffix("/v1")


def headers_of(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def launch_path(name: str) -> str:
    return f"/v1/inferlets/{quote(name, safe='@')}/runs"


def run_path(run_id: str, *more: str) -> str:
    return "/".join(["/v1/runs", quote(run_id, safe=""), *(quote(part) for part in more)])


def new_key() -> str:
    """An idempotency key: a launch that is sent again happens once."""
    return uuid.uuid4().hex


def state_of(row: Mapping[str, Any]) -> RunState:
    names = ("id", "program", "state", "created", "num_events")
    return RunState(**{name: row[name] for name in names}, result=row.get("result"), error=row.get("error"))


def program_of(row: Mapping[str, Any]) -> ProgramFacts:
    is_embedded = bool(row.get("is_embedded", False))
    return ProgramFacts(row["name"], row["version"], row["description"], is_embedded)


class Tries:
    """How often a request is sent, and how long to wait between."""

    def __init__(self, max_retries: int) -> None:
        self._left = max_retries
        self._wait_s = BACK_OFF_S

    def wait_after(self, error: ClientError) -> float:
        """Seconds until the next; raises `error` if there is none."""
        if not self._left or error.retry_after_s > LONGEST_WAIT_S:
            raise error
        if error.status and not isinstance(error, Overloaded | Unavailable):
            raise error
        self._left -= 1
        wait_s, self._wait_s = max(error.retry_after_s, self._wait_s), 2 * self._wait_s
        return min(wait_s, LONGEST_WAIT_S)


class Deadline:
    """When a wait is over.  `timeout`: seconds; None: never."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._at = math.inf if timeout is None else time.monotonic() + timeout

    def silence_s(self) -> float:
        """How long a stream may be silent before it is looked at."""
        if self._at == math.inf:
            return SILENT_S
        return min(max(self._at - time.monotonic(), 0.001), SLICE_S)

    def check(self, what: str) -> None:
        """Raises TimedOut."""
        if time.monotonic() >= self._at:
            raise TimedOut(f"{what} has not ended within {self._timeout:g} s")
