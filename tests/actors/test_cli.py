"""The command line on the real thing."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import HOLD, SPIN, CommandLine

pytestmark = pytest.mark.slow

COMPLETE = ("text-completion", "--", "--prompt", "a")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    """A folder with inferlets that never end; at the end of the test nothing that it started is alive."""
    (tmp_path / "hold.py").write_text(HOLD, encoding="utf-8")
    (tmp_path / "spin.py").write_text(SPIN, encoding="utf-8")
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
        (("run", "http-fetch"), 2, "missing: url"),
        (("run", "text-completion", "--", "--prompt", "a", "--max-tokens", "five"), 2, "is int; given 'five'"),
        (("run", "text-completion", "--num-pages", "-3"), 2, "model.num_pages is at least 0; given -3"),
        (("run", "text-completion", "--input", "{"), 2, "--input is not JSON"),
        (("run", "--model", "/no/such", *COMPLETE), 3, "/no/such/config.json"),
        (("run", "--address", "127.0.0.1:1", *COMPLETE), 3, "nothing answers at 127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_clear_line(cli: CommandLine, words: tuple[str, ...], exit_code: int, message: str) -> None:
    done = cli.run("pieray", *words)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("signum", "exit_code", "is_for_group", "program"),
    [
        (signal.SIGINT, 130, False, "spin.py"),
        (signal.SIGTERM, 143, True, "spin.py"),
        (signal.SIGHUP, 129, True, "hold.py"),
    ],
)
def test_a_signal_in_mid_generation_leaves_no_process(
    cli: CommandLine, signum: int, exit_code: int, is_for_group: bool, program: str
) -> None:
    """For the process, and for its whole process group, as `timeout`, terminals and service managers send it; also
    while the inferlet computes without end."""
    process = cli.hold(program)
    assert len(cli.alive()) > 3
    for _ in range(2):  # impatience changes nothing
        os.killpg(process.pid, signum) if is_for_group else process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (exit_code, False), errors
    assert errors.splitlines()[-1] == "pieray: cancelled: interrupted"
    assert "GCS" not in errors
    cli.assert_nothing_is_left(0.0)


@pytest.mark.parametrize("command", [("run", "hold.py"), ("up",)])
@pytest.mark.parametrize("delay_s", [0.4, 1.5, 4.0])  # earlier ones: see test_stop_early.py
def test_ctrl_c_at_any_moment_of_a_start_is_130_and_leaves_no_process(
    cli: CommandLine, command: tuple[str, ...], delay_s: float
) -> None:
    process = cli.begin("pieray", *command)
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    status = process.returncode  # of the signal itself, where Python had not begun: a shell says 130 of both
    assert (128 - status if status < 0 else status, "Traceback" in errors) == (130, False), errors
    cli.assert_nothing_is_left(0.0)
    assert "nothing is up" in cli.run("pieray", "down").stderr


def test_a_killed_client_leaves_no_process(cli: CommandLine) -> None:
    process = cli.hold()
    process.kill()
    process.communicate(timeout=60)
    cli.assert_nothing_is_left(90.0)  # a process of Ray that was just starting gets to look for its parent late


@pytest.mark.parametrize("moment", ["saved", "head", "address"])
def test_down_finds_what_a_killed_up_has_left(cli: CommandLine, moment: str) -> None:
    """Killed at once when its state tells of a folder, of a process, of an address: what runs is found all the same."""
    process = cli.begin("pieray", "up")
    wanted = {"saved": "temp_dir", "head": "head_pid", "address": "address"}[moment]
    file, deadline = cli.folder / "home" / "engines" / "pieray.json", time.monotonic() + 60
    while not (file.exists() and json.loads(file.read_text())[wanted]):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    done = cli.run("pieray", "down")
    assert (done.returncode, "is down" in done.stderr) == (0, True), done.stderr
    cli.assert_nothing_is_left(30.0)  # its driver, which is no part of the head, may be taking back what it began
