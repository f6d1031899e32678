"""Standard streams that are closed or full, with real processes: a line and an exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PIERAY = Path(sys.executable).with_name("pieray")
NO_ROOM = "stdout cannot be written: No space left on device"
CLOSED = "stdout cannot be written: Bad file descriptor"

pytestmark = pytest.mark.slow


def sh(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PIERAY_HOME": str(folder / "home"), "PATH": f"{PIERAY.parent}:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=120, check=False, cwd=folder, env=environment
    )


@pytest.mark.parametrize("command", ["version", "--help", "models", "inferlets --json", "check hello.py"])
@pytest.mark.parametrize(("stream", "text"), [(">/dev/full", NO_ROOM), (">&-", CLOSED)])
def test_output_that_gets_nowhere_is_one_line_and_an_exit_code(
    tmp_path: Path, command: str, stream: str, text: str
) -> None:
    (tmp_path / "hello.py").write_text("async def main(): ...")
    done = sh(f"pieray {command} {stream}", tmp_path)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line in (f"pieray: {text}", f"pieray: output: {text}")


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full", "<&- 2>&- >&-", "<&- 2>/dev/full"])
@pytest.mark.parametrize(
    ("command", "exit_code"), [("ps", 3), ("run no-such-inferlet", 2), ("nonsense", 2), ("down", 0)]
)
def test_without_stderr_the_exit_code_still_tells(tmp_path: Path, command: str, exit_code: int, stream: str) -> None:
    done = sh(f"pieray {command} {stream}", tmp_path)
    assert (done.returncode, done.stdout) == (exit_code, "")


def test_a_reader_that_has_left_is_told_of_by_the_exit_code_alone(tmp_path: Path) -> None:
    done = sh("{ pieray inferlets; echo $? >code; } | true; sleep 0; cat code", tmp_path)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_a_stdin_that_is_closed_is_at_its_end(tmp_path: Path) -> None:
    done = sh("pieray run text-completion --input @- <&-", tmp_path)
    assert done.returncode == 2
    assert "--input is not JSON" in done.stderr
