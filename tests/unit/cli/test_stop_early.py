"""A stopping signal in the first moments of the command, and where nobody reads what it prints; the real script."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from signals import heeding_signals

PIERAY = Path(sys.executable).with_name("pieray")

pytestmark = pytest.mark.slow


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe with no room: a command that prints there stays until it is stopped."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


def stopped_after(delay_s: float, signum: int, stdout: int) -> tuple[int, str]:
    """The exit status of `pieray version` as a shell tells it, and what it wrote to stderr."""
    with heeding_signals():
        command = subprocess.Popen([PIERAY, "version"], stdout=stdout, stderr=subprocess.PIPE, text=True)
    time.sleep(delay_s)
    command.send_signal(signum)
    _, errors = command.communicate(timeout=60)
    status = command.returncode
    return (128 - status if status < 0 else status), errors


def test_ctrl_c_in_the_first_300_ms_is_130_without_a_word(full_pipe: int) -> None:
    delays = [random.Random(number).uniform(0, 0.3) for number in range(24)]
    ends = {delay: stopped_after(delay, signal.SIGINT, full_pipe) for delay in delays}
    assert {delay: end for delay, end in ends.items() if end != (130, "")} == {}


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_are_held_back_as_well(full_pipe: int, signum: int, status: int) -> None:
    assert [stopped_after(delay, signum, full_pipe) for delay in (0.01, 0.03, 0.06)] == [(status, "")] * 3


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_whose_reader_has_stopped_ends_all_the_same(full_pipe: int, signum: int, status: int) -> None:
    with heeding_signals():
        command = subprocess.Popen([PIERAY, "models"], stdout=full_pipe, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{command.pid}/wchan").read_text() not in ("pipe_write", "anon_pipe_write"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    command.send_signal(signum)
    _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (status, "pieray: cancelled: interrupted\n")
