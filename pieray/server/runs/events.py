"""Events of a run as they go to clients: numbered, each of a kind, with JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from pieray.client.process import Event, Process
from pieray.errors import PierayError, error_from
from pieray.server.json_texts import encoded
from pieray.server.problems import problem_of

MOST_TOGETHER = 64
"""Events that are sent in one piece."""


async def event_stream(process: Process, start: int) -> AsyncGenerator[bytes, None]:
    """The events from number `start` on, those that have come together in one piece; the last is result or error."""
    parts: list[bytes] = []
    has_failed = False
    try:
        async with aclosing(process.aevents()) as events:
            async for event in events:
                has_failed = event.kind == "error"
                if event.number >= start:
                    parts.append(as_server_sent(event))
                if parts and (event.number + 1 >= process.num_events or len(parts) >= MOST_TOGETHER):
                    yield b"".join(parts)
                    parts.clear()
    except PierayError as error:
        if not has_failed:  # it was lost, and has told nothing
            yield b"".join([*parts, b"event: error\ndata: %s\n\n" % told(error)])


def as_server_sent(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), data_of(event))


def data_of(event: Event) -> bytes:
    """Its data as JSON on one line: what it sent or logged is a text, all else as the program gave it."""
    if event.kind == "error":
        problem = json.loads(event.text)
        return told(error_from(problem["code"], problem["message"]))
    return encoded(event.text) if event.kind in ("text", "log") else raw(event.text)


def told(error: PierayError) -> bytes:
    """An error as a run's last event has it, less its traceback and log, which are the operator's."""
    found = problem_of(error).body["error"]
    return encoded({"code": error.code, "message": found["message"]})


def raw(text: str) -> bytes:
    """JSON on one line, as server-sent events are made of lines: a line's end in JSON is white space, never content."""
    return text.replace("\n", " ").replace("\r", " ").encode(errors="backslashreplace")  # as JSON has half surrogates
