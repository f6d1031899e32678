"""Where unix sockets live: a directory that only this user can enter, paths short enough for the kernel."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

from pieray.errors import ConfigError, EngineError

#: The kernel's limit is 107 bytes; a few are kept back.
MAX_PATH_BYTES = 99


def boot_id() -> str:
    """Names this boot of this host; "" where the kernel does not tell (then unix sockets are not used)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def socket_dir(runtime_dir: str | None) -> Path:
    """The private directory, made if need be.

    Raises ConfigError if the paths in it would be too long, EngineError if it belongs to somebody else.
    """
    default = Path(tempfile.gettempdir()) / f"pieray-{os.getuid()}"
    directory = Path(runtime_dir) / "sockets" if runtime_dir else default
    longest = len(os.fsencode(directory)) + 1 + len(_new_name(".sock"))
    if longest > MAX_PATH_BYTES:
        raise ConfigError(
            f"runtime directory {runtime_dir!r} is too long: socket paths would have {longest} bytes, "
            f"the limit is {MAX_PATH_BYTES}"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise EngineError(f"{directory} is not a directory of user {os.getuid()}: remove it, or set runtime_dir")
    directory.chmod(0o700)
    return directory


def listen_unix(directory: Path, backlog: int) -> tuple[socket.socket, Path]:
    """A listening socket with mode 0600, and its path; the caller removes the path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    draft, path = directory / _new_name(".new"), directory / _new_name(".sock")
    try:
        sock.bind(os.fspath(draft))
        draft.chmod(0o600)
        sock.listen(backlog)
        draft.rename(path)  # under its final name it has always listened: see remove_stale
    except OSError:
        sock.close()
        draft.unlink(missing_ok=True)
        raise
    return sock, path


def remove_stale(directory: Path) -> int:
    """Remove the sockets that nobody listens on any more (their process was killed); how many."""
    stale = [path for path in directory.glob("*.sock") if not _has_listener(path)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # a full backlog, or gone meanwhile
        return True


def _new_name(suffix: str) -> str:
    return secrets.token_hex(8) + suffix
