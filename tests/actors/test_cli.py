"""The command line on the real thing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import HOLD, CommandLine

pytestmark = pytest.mark.slow


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    """A folder with an inferlet that never ends; at the end of the test nothing that it started is alive."""
    (tmp_path / "hold.py").write_text(HOLD, encoding="utf-8")
    found = CommandLine(tmp_path)
    yield found
    found.assert_nothing_is_left()


def test_run_prints_the_text_and_exits_0(cli: CommandLine) -> None:
    done = cli.run("pieray", "run", "text-completion", "--json", "--", "--prompt", "12+7=", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "started"
    texts = [e["text"] for e in events if e["event"] == "text"]
    assert events[-1]["event"] == "result"
    assert events[-1]["result"]["text"] == "".join(texts) != ""
    assert "loading pie-tiny" in done.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (("run", "text-completio"), 2, "text-completion"),
        (("run", "text-completion", "--input", "{"), 2, "--input is not JSON"),
        (("run", "text-completion", "--model", "/no/such"), 3, "/no/such/config.json"),
        (("run", "text-completion", "--address", "127.0.0.1:1"), 3, "nothing answers at 127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_clear_line(
    cli: CommandLine, words: tuple[str, ...], exit_code: int, message: str
) -> None:
    done = cli.run("pieray", *words)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_generation_leaves_no_process(cli: CommandLine, signum: int, exit_code: int) -> None:
    process = cli.begin("pieray", "run", "hold.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    assert len(cli.alive()) > 3
    process.send_signal(signum)
    process.send_signal(signum)  # impatience changes nothing
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (exit_code, False), errors
    cli.assert_nothing_is_left(0.0)


def test_a_killed_client_leaves_no_process(cli: CommandLine) -> None:
    process = cli.begin("pieray", "run", "hold.py")
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    process.kill()
    process.communicate(timeout=60)
    cli.assert_nothing_is_left(90.0)  # a process of Ray that was just starting gets to look for its parent late


def test_up_run_ps_kill_down(cli: CommandLine) -> None:
    up = cli.run("pieray", "up", "--num-cpus", "2")
    try:
        assert up.returncode == 0, up.stderr
        assert "already" in cli.run("pieray", "up").stderr
        holder = cli.begin("pieray", "run", "hold.py")
        assert holder.stdout is not None
        assert holder.stdout.readline() == "running\n"
        (row,) = json.loads(cli.run("pieray", "ps", "--json").stdout)
        assert row["state"] == "running"
        assert cli.run("pieray", "kill", row["instance_id"]).returncode == 0
        _, errors = holder.communicate(timeout=30)
        assert (holder.returncode, "killed with `pieray kill`" in errors) == (1, True)
    finally:
        down = cli.run("pieray", "down")
    assert down.returncode == 0, down.stderr
    cli.assert_nothing_is_left(0.0)
    assert "nothing is up" in cli.run("pieray", "down").stderr
