"""An own Ray head on this machine: started in a session of its own, stopped process by process.

Never `ray stop`: that ends every Ray of the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pieray.cli.processes import end, is_zombie, session_of
from pieray.cli.progress import Progress
from pieray.cluster import up_state
from pieray.cluster.up_state import UpState, is_same_process
from pieray.errors import EngineError

if TYPE_CHECKING:
    import psutil

START_TIMEOUT_S = 90.0
OBJECT_STORE_BYTES = 100 << 20


def start_head(namespace: str, *, dashboard: bool, num_cpus: int | None, show: Progress) -> UpState:
    """Start a Ray head that outlives this process; returns what is needed to use and to stop it.

    That is saved before there is a process, so that `stop_head` finds all of it whenever this process dies.  Whatever
    else ends this early, the head ends with it.  Raises EngineError.
    """
    show("starting a Ray head")
    environment = _environment()
    temp_dir = tempfile.mkdtemp(prefix="pieray-")  # short: Ray keeps unix sockets far below it
    dashboard_port, client_port = _free_ports(2)
    url = f"http://127.0.0.1:{dashboard_port}" if dashboard else ""
    state = UpState(namespace, "", temp_dir=temp_dir, dashboard=url, environment=environment, num_cpus=num_cpus)
    state.save()
    try:
        return _started(state, _command(temp_dir, dashboard_port if dashboard else None, client_port, num_cpus))
    except BaseException:
        stop_head(up_state.load(namespace) or state)
        state.forget()
        raise


def _started(state: UpState, command: list[str]) -> UpState:
    import psutil

    log_path = Path(state.temp_dir) / "head.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=state.temp_dir,
            start_new_session=True,
            env={**os.environ, **state.environment, "PATH": _path()},
        )
    state = replace(state, head_pid=process.pid, head_created_s=psutil.Process(process.pid).create_time())
    state.save()
    state = replace(state, address=_await_address(process, Path(state.temp_dir), log_path))
    state.save()
    return state


def stop_head(state: UpState) -> list[int]:
    """End the processes of that head, and no others; returns the pids that could not be ended."""
    alive = end(head_processes(state))
    if not alive and state.temp_dir:
        shutil.rmtree(state.temp_dir, ignore_errors=True)
    return alive


def head_processes(state: UpState) -> list[psutil.Process]:
    """All that runs of an own head, also after its death: the processes of its session, whoever adopted them."""
    return [process for leader in _leaders(state) for process in session_of(leader)]


def _leaders(state: UpState) -> list[int]:
    """The number of the head's session.

    If its pid is not known, whoever started it was killed at that moment, and it is found by its folder.  If another
    process has its pid, nothing of it is left, for a pid stays taken while the session has members.
    """
    import psutil

    pid = state.head_pid
    if not pid:
        return _processes_with(f"--temp-dir={state.temp_dir}") if state.temp_dir else []
    is_other = psutil.pid_exists(pid) and not is_same_process(pid, state.head_created_s) and not is_zombie(pid)
    return [] if is_other else [pid]


def _processes_with(word: str) -> list[int]:
    """Pids of the processes of this user that were started with this word."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if word in process.cmdline():
                found.append(process.pid)
    return found


def _command(temp_dir: str, dashboard_port: int | None, client_port: int, num_cpus: int | None) -> list[str]:
    """`ray start` with every port free, so that several heads live on a machine."""
    words = [
        sys.executable,
        "-P",
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--temp-dir={temp_dir}",
        "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--include-dashboard={str(dashboard_port is not None).lower()}",
        f"--ray-client-server-port={client_port}",
        "--port=0",
        "--dashboard-agent-listen-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    if dashboard_port is not None:
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    if num_cpus is not None:
        words.append(f"--num-cpus={num_cpus}")
    return words


def _environment() -> dict[str, str]:
    """What the head and its drivers need: a token, for Ray is open to whoever reaches its ports.

    What the user has decided stays, and is kept for commands in other shells; only a token itself is not.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if mode == "token" and path is None and "RAY_AUTH_TOKEN" not in os.environ:
        _make_token(Path.home() / ".ray" / "auth_token")
    return {"RAY_AUTH_MODE": mode, **({"RAY_AUTH_TOKEN_PATH": path} if path else {})}


def _make_token(path: Path) -> None:
    """A token in Ray's own place, where its tools look for it, unless there is one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _path() -> str:
    """Jobs say `pieray` and mean this one, whether or not its environment was activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _await_address(process: subprocess.Popen[bytes], temp_dir: Path, log_path: Path) -> str:
    """Ray writes the address into its folder when the head is up."""
    written = temp_dir / "ray_current_cluster"
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if written.exists() and (address := written.read_text().strip()):
            return address
        if process.poll() is not None:
            raise EngineError(f"the Ray head did not start: {_last_lines(log_path)}")
        time.sleep(0.05)
    raise EngineError(f"the Ray head was not up within {START_TIMEOUT_S:.0f} s: {_last_lines(log_path)}")


def _last_lines(log_path: Path) -> str:
    lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "it said nothing"


def _free_ports(count: int) -> list[int]:
    """Ports that are free at this moment, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
