"""What `pieray run` exchanges with the inferlet beside its arguments: files both ways, lines of stdin as messages."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pieray.cli.output import say
from pieray.client.process import Event, Process, ReceivedFile, received_files
from pieray.errors import ConfigError, PierayError

log = logging.getLogger(__name__)


def read_files(paths: Sequence[str]) -> list[tuple[str, bytes]]:
    """Name and content of each file given with `--file`; raises ConfigError for one that cannot be read."""
    try:
        return [(Path(path).name, Path(path).expanduser().read_bytes()) for path in paths]
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--file: {error}") from None


def out_folder(path: str | None) -> Path | None:
    """The folder of `--out`, made if there is none; raises ConfigError."""
    if path is None:
        return None
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {error}") from None
    return folder


class Received:
    """Gathers the parts of files; saves whole ones to a folder, if there is one."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._parts: list[Event] = []

    def add(self, event: Event) -> tuple[ReceivedFile, Path | None] | None:
        """A "file" event; the file, and where it was saved, once it is whole.  Raises OSError."""
        self._parts.append(event)
        found = received_files(self._parts)
        if not found:
            return None
        self._parts = []
        file = found[-1]
        return file, None if self._folder is None else save(self._folder, file)


def save(folder: Path, file: ReceivedFile) -> Path:
    """Write a file under the last part of its name, in the folder itself; a file that is there is never replaced.

    The name comes from an inferlet: what could lead elsewhere, hide the file or steer a terminal becomes "_".
    """
    name = "".join(c if c.isprintable() and c not in '\\/:*?"<>|' else "_" for c in PurePosixPath(file.name).name)
    name = ("_" + name.lstrip(".") if name.startswith(".") or not name else name)[:200]
    stem, dot, suffix = name.partition(".")
    number = 1
    while True:
        path = folder / (name if number == 1 else f"{stem}-{number}{dot}{suffix}")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(descriptor, "wb") as out:
            out.write(file.data)
        return path


def send_lines(process: Process) -> None:
    """Send each line of stdin as a message, on a thread of its own; an empty one at its end."""
    threading.Thread(target=_send_lines, args=(process,), name="pieray-stdin", daemon=True).start()


def _send_lines(process: Process) -> None:
    try:
        try:
            for line in _lines():
                process.send(line.rstrip("\r\n"))
        except (OSError, ValueError) as error:  # a folder, a terminal that is gone: as if it were at its end
            say(f"stdin cannot be read: {error}")
        process.send("")
    except PierayError as error:
        log.info("%s takes no more lines: %s", process.id, error.message)


def _lines() -> Iterator[str]:
    """Lines of stdin, read past Python's own buffer: a thread that holds its lock at exit would be fatal."""
    try:
        descriptor = sys.stdin.fileno()
    except (OSError, ValueError):  # no file, as in tests
        yield from sys.stdin
        return
    rest = b""
    while data := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
    if rest:
        yield rest.decode("utf-8", "replace")
