"""What `pieray run` prints: texts and the result on stdout, everything about the run on stderr."""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Protocol, TextIO

from pieray.errors import LAST_LOGS

#: What can steer a terminal: C0, C1, and the characters that turn the direction of text.
_STEERING = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in _STEERING if chr(code) not in "\n\t"}
_ESCAPES = {code: ascii(chr(code))[1:-1] for code in _STEERING}
_ESCAPES_IN_LINES = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\n\t"}


def printable(text: str, stream: TextIO) -> str:
    """`text` without control characters if `stream` is a terminal: an inferlet must not steer it."""
    return text.translate(_CONTROL) if stream.isatty() else text


def escaped(text: str, *, is_one_line: bool = True) -> str:
    """What others have named or written, for people: control characters as `\\x1b`, also where a file is written.

    Line breaks and tabs stay unless it `is_one_line`.
    """
    return text.translate(_ESCAPES if is_one_line else _ESCAPES_IN_LINES)


def say(text: str) -> None:
    """A line about the run, on stderr."""
    print(f"pieray: {escaped(text, is_one_line=False)}", file=sys.stderr, flush=True)  # noqa: T201


def brief(message: str) -> str:
    """One line of an error that carries the traceback of an inferlet: what, and where in its source."""
    first, _, trace = message.partition(f"\n{LAST_LOGS}\n")[0].partition("\n")
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    if not places:
        return first
    file, line = places[-1]
    if first.endswith(f"({file}, line {line})"):  # as those of a SyntaxError do
        return f"{first.removesuffix(')')}; --debug shows the traceback)"
    return f"{first} ({file}, line {line}; --debug shows the traceback)"


class Printer(Protocol):
    """Where the events of a run go."""

    def started(self, name: str, instance_id: str) -> None: ...

    def text(self, text: str) -> None: ...

    def data(self, name: str, value: Any) -> None: ...

    def file(self, name: str, size: int, saved_as: str | None) -> None: ...

    def log(self, line: str) -> None: ...

    def result(self, value: Any) -> None: ...

    def error(self, code: str, message: str) -> None: ...


class JsonPrinter:
    """One JSON object per event and line, flushed at once."""

    def started(self, name: str, instance_id: str) -> None:
        self._write({"event": "started", "name": name, "id": instance_id})

    def text(self, text: str) -> None:
        self._write({"event": "text", "text": text})

    def data(self, name: str, value: Any) -> None:
        self._write({"event": "data", "name": name, "value": value})

    def file(self, name: str, size: int, saved_as: str | None) -> None:
        self._write({"event": "file", "name": name, "size": size, "saved_as": saved_as})

    def log(self, line: str) -> None:
        level, _, rest = line.partition(": ")
        self._write({"event": "log", "level": level, "text": rest})

    def result(self, value: Any) -> None:
        self._write({"event": "result", "result": value})

    def error(self, code: str, message: str) -> None:
        self._write({"event": "error", "code": code, "message": message})

    def _write(self, event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


class TextPrinter:
    """Texts as they come, then the result, unless the texts have shown it already."""

    def __init__(self, *, debug: bool = False) -> None:
        self._debug = debug
        self._texts: list[str] = []
        self._is_mid_line = False

    def started(self, name: str, instance_id: str) -> None:
        """Nothing: a person sees the texts."""

    def text(self, text: str) -> None:
        self._texts.append(text)
        self._write(text)

    def data(self, name: str, value: Any) -> None:
        """On stderr: stdout is for texts and the result."""
        self.log(f"{name}: {json.dumps(value, ensure_ascii=False)}")

    def file(self, name: str, size: int, saved_as: str | None) -> None:
        self._end_line()
        kept = f"saved as {saved_as}" if saved_as else "not kept; --out FOLDER keeps it"
        say(f"file {name}, {size} bytes: {kept}")

    def log(self, line: str) -> None:
        if line.startswith("debug: ") and not self._debug:
            return
        if sys.stdout.isatty() and sys.stderr.isatty():
            self._end_line()
        sys.stderr.write(escaped(line, is_one_line=False) + "\n")
        sys.stderr.flush()

    def result(self, value: Any) -> None:
        self._end_line()
        if value is None or self._has_shown(value):
            return
        if isinstance(value, str):
            self._write(value + "\n")
        elif sys.stdout.isatty():
            from rich.console import Console

            Console().print_json(printable(json.dumps(value, ensure_ascii=False), sys.stdout))
        else:
            self._write(json.dumps(value, ensure_ascii=False) + "\n")

    def error(self, code: str, message: str) -> None:
        self._end_line()
        say(f"{code}: {message if self._debug else brief(message)}")

    def _has_shown(self, value: object) -> bool:
        shown = value.get("text") if isinstance(value, dict) else value
        return bool(self._texts) and isinstance(shown, str) and shown == "".join(self._texts)

    def _end_line(self) -> None:
        if self._is_mid_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._is_mid_line = not text.endswith("\n")
            sys.stdout.write(printable(text, sys.stdout))
            sys.stdout.flush()
