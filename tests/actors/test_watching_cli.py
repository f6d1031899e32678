"""`pieray top`, `pieray trace` and `pieray run --trace`, as processes on an engine that `pieray up` has started."""

from __future__ import annotations

import json
import os
import pty
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import HOLD, CommandLine


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path_factory.mktemp("watching"))
    done = made.run("pieray", "up")
    assert done.returncode == 0, done.stderr
    yield made
    assert made.run("pieray", "down").returncode == 0
    made.assert_nothing_is_left()


def test_top_draws_once_into_a_pipe(command: CommandLine) -> None:
    (command.folder / "hold.py").write_text(HOLD)
    run = json.loads(command.run("pieray", "run", "--detach", "--json", "hold.py").stdout.splitlines()[0])["id"]
    done = command.run("pieray", "top")
    assert done.returncode == 0, done.stderr
    assert "1 inferlets run" in done.stdout
    assert run in done.stdout
    assert "\x1b" not in done.stdout
    assert command.run("pieray", "kill", run).returncode == 0


def test_top_on_a_terminal_leaves_at_q(command: CommandLine) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(command.folder)
        os.execvpe("pieray", ["pieray", "top", "--every", "0.3"], {**command.environment, "TERM": "xterm"})
    seen, deadline = b"", time.monotonic() + 30
    while b"KV pages" not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536)
    os.write(terminal, b"q")
    while time.monotonic() < deadline:
        try:
            if select.select([terminal], [], [], 1)[0] and not os.read(terminal, 65536):
                break
        except OSError:  # it has ended
            break
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_run_is_traced_into_a_file(command: CommandLine) -> None:
    done = command.run("pieray", "run", "--trace", "t.json", "--json", "text-completion", "--", "--prompt", "12+7=")
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout.splitlines()[0])["id"]
    assert "open it with ui.perfetto.dev" in done.stderr
    written = json.loads((command.folder / "t.json").read_text())
    assert "text-completion" in [event["name"] for event in written["traceEvents"] if event.get("cat") == "run"]
    again = command.run("pieray", "trace", run)
    assert again.returncode == 0, again.stderr
    assert json.loads(Path(command.folder / f"{run}.trace.json").read_text()) == written
    told = command.run("pieray", "trace", run, "--out", "-")
    assert json.loads(told.stdout) == written


def test_what_is_not_traced_has_no_file(command: CommandLine) -> None:
    done = command.run("pieray", "run", "--json", "text-completion", "--", "--prompt", "12+7=")
    run = json.loads(done.stdout.splitlines()[0])["id"]
    refused = command.run("pieray", "trace", run)
    assert refused.returncode in (2, 3)
    assert "is not traced" in refused.stderr
    assert not (command.folder / f"{run}.trace.json").exists()
    assert command.run("pieray", "trace", "nothing").returncode in (2, 3)
