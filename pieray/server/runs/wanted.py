"""What a request for a run asks for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pieray.server.problems import BadField
from pieray.server.values import boolean, integer, listed, mapping, number, shown, text

FIELDS = (
    "input",
    "limits",
    "priority",
    "deadline_s",
    "stream",
    "wait",
    "keep_s",
    "messages",
    "files",
    "trace",
    "model",
)
KEPT_S = 600.0
"""A run that nobody waits for is kept so long, unless it says otherwise."""
MOST_KEEP_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request for a run."""

    input: dict[str, Any]
    options: dict[str, Any]
    stream: bool
    wait: bool
    keep_s: float
    messages: list[str]
    files: list[tuple[str, bytes]] = field(default_factory=list)


def read_run(body: Mapping[str, Any]) -> Wanted:
    """Raises BadField."""
    for name in body:
        if name not in FIELDS:
            raise BadField(name, f"is not a field of a run; there are: {', '.join(FIELDS)}", code="unknown_field")
    given = {name: value for name, value in body.items() if value is not None}
    options: dict[str, Any] = {"priority": integer("priority", given.get("priority", 0), -100, 100)}
    if "limits" in given:
        limits = mapping("limits", given["limits"])
        options["limits"] = {name: number(f"limits.{name}", value, 0) for name, value in limits.items()}
    if "deadline_s" in given:
        options["deadline_s"] = number("deadline_s", given["deadline_s"], 0, MOST_KEEP_S)
    if "model" in given:
        options["on_model"] = text("model", given["model"], 200)
    options["trace"] = boolean("trace", given.get("trace", False))
    stream, wait = boolean("stream", given.get("stream", False)), boolean("wait", given.get("wait", True))
    if stream and not wait:
        raise BadField("wait", "is true where stream is: the events are the answer")
    keep_s = number("keep_s", given.get("keep_s", 0.0 if wait else KEPT_S), 0, MOST_KEEP_S)
    messages = [text("messages", one) for one in listed("messages", given.get("messages", []), 1024)]
    files = [_file(f"files[{at}]", one) for at, one in enumerate(listed("files", given.get("files", []), 64))]
    return Wanted(mapping("input", given.get("input", {})), options, stream, wait, keep_s, messages, files)


def _file(name: str, value: Any) -> tuple[str, bytes]:
    given = mapping(name, value)
    if set(given) != {"name", "data"}:
        raise BadField(name, f"is {{name, data}}; given {shown(sorted(given))}")
    data = text(f"{name}.data", given["data"], 1 << 24)
    try:
        return text(f"{name}.name", given["name"], 1024), base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadField(f"{name}.data", f"is base64; given {shown(data[:60])}") from None
