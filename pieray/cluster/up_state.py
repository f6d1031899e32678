"""What `pieray up` remembers about the engine it started: one JSON file per namespace in `PIERAY_HOME`."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pieray.errors import ConfigError, EngineError


@dataclass(frozen=True, slots=True)
class UpState:
    """An engine that `up` started, and the Ray head if that is its own."""

    namespace: str
    address: str
    """host:port of the cluster's GCS; "" until it is known."""
    head_pid: int = 0
    """Process of the own Ray head, the leader of its session; 0: the cluster is not ours."""
    head_created_s: float = 0.0
    """When that process began: a pid alone may be another's by now."""
    temp_dir: str = ""
    dashboard: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    """What a driver of this cluster needs in its environment, as far as the user has not set it."""
    num_cpus: int | None = None
    """As the own head was told."""
    endpoint: list[Any] = field(default_factory=list)
    """Of the Controller's socket; empty while the engine is being started, and for one that has none."""
    token: str = ""
    """The engine's: who knows it may ask the Controller, so the file is for its user alone."""

    @property
    def is_whole(self) -> bool:
        """False for what an `up` that did not get to its end has left."""
        return bool(self.address and self.token)

    def is_alive(self) -> bool:
        """True if the cluster answers (and, for an own head, is the very one that was started)."""
        if self.head_pid and not is_same_process(self.head_pid, self.head_created_s):
            return False
        return answers(self.address)

    def export(self) -> None:
        """Set up this process to connect."""
        for name, value in self.environment.items():
            os.environ.setdefault(name, value)

    def save(self) -> None:
        target = state_file(self.namespace)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}.tmp")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        fresh.replace(target)

    def forget(self) -> None:
        """Nothing of it is left."""
        state_file(self.namespace).unlink(missing_ok=True)


def home() -> Path:
    """`PIERAY_HOME`, by default ~/.pieray."""
    return Path(os.environ.get("PIERAY_HOME") or Path.home() / ".pieray")


def state_file(namespace: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", namespace):
        raise ConfigError(f"a namespace is letters, digits, '.', '_' and '-'; given {namespace!r}")
    return home() / "engines" / f"{namespace}.json"


@contextmanager
def locked(namespace: str, timeout_s: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process of this machine starts or stops an engine of a namespace at a time; the lock ends with it.

    `waiting` is called if another does so just now.  Raises EngineError after `timeout_s`.
    """
    path = state_file(namespace).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        is_first = True
        while not _took(file.fileno()):
            if is_first:
                waiting()
                is_first = False
            if time.monotonic() > deadline:
                raise EngineError(
                    f"another `pieray up` or `down` has been at work in namespace {namespace} for over "
                    f"{timeout_s:.0f} s"
                )
            time.sleep(0.05)
        yield


def _took(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def load(namespace: str) -> UpState | None:
    """What was saved for the namespace; None if there is nothing, or nothing that can be read."""
    try:
        return UpState(**json.loads(state_file(namespace).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def find_alive(namespace: str) -> UpState | None:
    """The engine that `up` started in this namespace, if its cluster still answers."""
    found = load(namespace)
    return found if found is not None and found.is_alive() else None


def all_alive() -> list[UpState]:
    """Every engine that `up` started here and whose cluster answers, the latest first."""
    files = sorted((home() / "engines").glob("*.json"), key=lambda f: f.stat().st_mtime, reverse=True)
    found = [load(f.stem) for f in files]
    return [state for state in found if state is not None and state.is_alive()]


def is_same_process(pid: int, created_s: float) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - created_s) < 1.0
    except psutil.Error:
        return False


def answers(address: str, timeout_s: float = 3.0) -> bool:
    """True if something accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False
