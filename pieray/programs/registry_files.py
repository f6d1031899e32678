"""The folder of a registry: a file for each program, written at once or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pieray.errors import EngineError, InvalidRequest, PierayError
from pieray.messages import Install, decode, encode

log = logging.getLogger(__name__)

SUFFIX = ".program"


class ProgramFiles:
    """`name@version.program`: the SHA-256 of the rest, then the frame of the `Install` message.

    Several engines may share a folder; `has_changed` says when to read again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser()
        self._seen = -1
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(f"registry_path: {self._folder} cannot be a folder: {error.strerror}") from None

    def has_changed(self) -> bool:
        """Whether files came or went since the last `read_all`."""
        return self._folder.stat().st_mtime_ns != self._seen

    def read_all(self) -> Iterator[Install]:
        """The programs whose files are whole; a damaged one is left out, with a line in the log."""
        self._seen = self._folder.stat().st_mtime_ns
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                yield _read(path)
            except (OSError, ValueError, PierayError) as error:
                log.warning("%s is damaged, its program is not there: %s", path, error)

    def write(self, program: Install) -> None:
        """Raises InvalidRequest if another engine was faster, EngineError if the disk does not take it."""
        frame = encode([program])
        target = self._path(program)
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".new") as file:
                file.write(hashlib.sha256(frame).digest() + frame)
                file.flush()
                os.fsync(file.fileno())
                os.link(file.name, target)
            self._sync()
        except FileExistsError:
            raise InvalidRequest(f"another engine has just installed {target.stem}; try again") from None
        except OSError as error:
            raise EngineError(f"{target} cannot be written: {error.strerror}") from None

    def remove(self, program: Install) -> None:
        try:
            self._path(program).unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            raise EngineError(f"{self._path(program)} cannot be removed: {error.strerror}") from None

    def _path(self, program: Install) -> Path:
        return self._folder / f"{program.name}@{program.version}{SUFFIX}"

    def _sync(self) -> None:
        """Let the folder itself survive a loss of power."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path) -> Install:
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise ValueError("its checksum is wrong")
    programs = [message for message in decode(data[32:]) if isinstance(message, Install)]
    if len(programs) != 1:
        raise ValueError(f"it holds {len(programs)} programs")
    return programs[0]
