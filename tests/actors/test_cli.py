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
NO_ROOM = "pieray: output: stdout cannot be written: No space left on device"
CLOSED = "pieray: output: stdout cannot be written: Bad file descriptor"
LOADED = """
import sys
from pieray.cli import main
try:
    main()
finally:
    heavy = ("ray", "torch", "transformers", "numpy", "wasmtime", "asyncio", "psutil", "pieray.cli.doctor")
    print("loaded:", [name for name in heavy if name in sys.modules])
"""


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
        (("run", "text-completion"), 2, "missing: prompt"),
        (("run", "text-completion", "--", "--prompt", "a", "--max-tokens", "five"), 2, "is int; given 'five'"),
        (("run", "text-completion", "--num-pages", "-3"), 2, "model.num_pages is at least 0; given -3"),
        (("run", "text-completion", "--input", "{"), 2, "--input is not JSON"),
        (("run", "--model", "/no/such", *COMPLETE), 3, "/no/such/config.json"),
        (("run", "--address", "127.0.0.1:1", *COMPLETE), 3, "nothing answers at 127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_clear_line(
    cli: CommandLine, words: tuple[str, ...], exit_code: int, message: str
) -> None:
    done = cli.run("pieray", *words)
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("signum", "exit_code", "is_for_group", "program"),
    [
        (signal.SIGINT, 130, False, "spin.py"),
        (signal.SIGINT, 130, True, "hold.py"),
        (signal.SIGTERM, 143, False, "hold.py"),
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


def test_two_ups_at_once_start_one_engine(cli: CommandLine) -> None:
    ups = [cli.begin("pieray", "up", "--num-cpus", "1") for _ in range(2)]
    try:
        told = [up.communicate(timeout=120)[1] for up in ups]
        assert [up.returncode for up in ups] == [0, 0], told
        assert sorted("is up already" in text for text in told) == [False, True]
        assert sorted("waiting for another" in text for text in told) == [False, True]
    finally:
        assert cli.run("pieray", "down").returncode == 0
    cli.assert_nothing_is_left(0.0)


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


def test_up_run_ps_kill_down(cli: CommandLine) -> None:
    up = cli.run("pieray", "up", "--num-cpus", "2")
    try:
        assert up.returncode == 0, up.stderr
        assert "already" in cli.run("pieray", "up").stderr
        refused = cli.run("pieray", "up", "--num-pages", "64", "--set", "limits.pages=7")
        assert refused.returncode == 2
        assert "limits.pages is 4096, asked for is 7; model.num_pages is 0, asked for is 64" in refused.stderr
        holder = cli.hold()
        (row,) = json.loads(cli.run("pieray", "ps", "--json").stdout)
        assert row["state"] == "running"
        assert cli.run("pieray", "kill", row["instance_id"]).returncode == 0
        _, errors = holder.communicate(timeout=30)
        assert (holder.returncode, "killed with `pieray kill`" in errors) == (1, True)
        for signum in (signal.SIGHUP, signal.SIGKILL):  # a closed terminal, and what nobody can handle
            holder = cli.hold()
            os.killpg(holder.pid, signum)
            holder.communicate(timeout=60)
            cli.until_no_inferlet_runs()
        loaded = cli.run("python", "-c", LOADED, "run", "text-completion", "--", "--prompt", "12+7=")
        assert loaded.stdout.splitlines()[-1] == "loaded: []", loaded.stderr
        chat = cli.run("sh", "-c", "pieray run chat -i <&-")
        assert (chat.returncode, "Traceback" in chat.stderr) == (0, False), chat.stderr
        (line,) = cli.run("pieray", "run", "--detach", "hold.py").stderr.splitlines()[1:]
        assert "runs on; `pieray attach hold-" in line
        follower = cli.begin("pieray", "attach", line.split()[1])
        assert follower.stdout is not None
        assert follower.stdout.readline() == "running\n"
        follower.send_signal(signal.SIGINT)
        assert follower.wait(60) == 130
        assert cli.run("pieray", "kill", line.split()[1]).returncode == 0  # it ran on
        full = cli.run("sh", "-c", "pieray run text-completion -- --prompt a >/dev/full")
        assert (full.returncode, full.stderr.splitlines()[1:]) == (3, [NO_ROOM])
        cli.until_no_inferlet_runs()
    finally:
        down = cli.run("pieray", "down")
    assert down.returncode == 0, down.stderr
    cli.assert_nothing_is_left(0.0)
    assert "nothing is up" in cli.run("pieray", "down").stderr
