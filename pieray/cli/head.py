"""An own Ray head on this machine: started in a session of its own, stopped process by process.

Never `ray stop`: that ends every Ray of the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pieray.cli.processes import descendants, end
from pieray.cli.progress import Progress
from pieray.upstate import UpState, is_same_process
from pieray.errors import EngineError

if TYPE_CHECKING:
    import psutil

START_TIMEOUT_S = 90.0
OBJECT_STORE_BYTES = 100 << 20


def start_head(namespace: str, *, dashboard: bool, num_cpus: int | None, show: Progress) -> UpState:
    """Start a Ray head that outlives this process; returns what is needed to use and to stop it.

    Whatever ends this early, the head ends with it.  Raises EngineError.
    """
    show("starting a Ray head")
    environment = _environment()
    temp_dir = tempfile.mkdtemp(prefix="pieray-")  # short: Ray keeps unix sockets far below it
    log_path = Path(temp_dir) / "head.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            _command(temp_dir, dashboard, num_cpus), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **environment}, cwd=temp_dir, start_new_session=True,
        )  # fmt: skip
    try:
        address = _await_address(process, Path(temp_dir), log_path)
        return UpState(namespace, address, process.pid, _created_s(process.pid), temp_dir,
                       dashboard=_dashboard_url(log_path) if dashboard else "", environment=environment)  # fmt: skip
    except BaseException:
        end(descendants(process.pid))
        shutil.rmtree(temp_dir, ignore_errors=True)
        raise


def stop_head(state: UpState) -> list[int]:
    """End the processes of that head, and no others; returns the pids that could not be ended."""
    alive = end(head_processes(state))
    if not alive and state.temp_dir:
        shutil.rmtree(state.temp_dir, ignore_errors=True)
    return alive


def head_processes(state: UpState) -> list[psutil.Process]:
    """All that runs of an own head: its tree, and what its death has orphaned, known by the temporary folder.

    The folder is in the command line or the environment of every process of a Ray cluster.
    """
    import psutil

    if not state.head_pid:
        return []
    found = {p.pid: p for p in psutil.process_iter() if p.pid != os.getpid() and _belongs_to(p, state.temp_dir)}
    if is_same_process(state.head_pid, state.head_created_s):
        found.update({p.pid: p for p in descendants(state.head_pid)})
    return list(found.values())


def _belongs_to(process: psutil.Process, temp_dir: str) -> bool:
    import psutil

    try:
        return any(temp_dir in word for word in process.cmdline())
    except psutil.Error:
        return False


def _command(temp_dir: str, dashboard: bool, num_cpus: int | None) -> list[str]:
    words = [
        sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
        f"--temp-dir={temp_dir}", f"--include-dashboard={str(dashboard).lower()}", "--disable-usage-stats",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--dashboard-agent-listen-port=0", "--ray-client-server-port=0",
    ]  # fmt: skip
    if dashboard:
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={_free_port()}"]
    if num_cpus is not None:
        words.append(f"--num-cpus={num_cpus}")
    return words


def _environment() -> dict[str, str]:
    """Ray is open to whoever reaches its ports, so the head asks for a token, unless the user has decided."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    return {"RAY_AUTH_MODE": "token"}


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


def _created_s(pid: int) -> float:
    import psutil

    return float(psutil.Process(pid).create_time())


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
