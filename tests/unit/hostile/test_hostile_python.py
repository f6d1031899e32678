"""Hostile Python inferlets: each ends with its own typed error, and its neighbour in the same host finishes."""

from __future__ import annotations

import time

import pytest
from wasm_fakes import FakeHandlers, Watched

from pieray.config import Limits
from pieray.errors import Cancelled, DeadlineExceeded, GuestFailed, GuestTrapped, QuotaExceeded
from pieray.wasm.host import WasmHost
from pieray.wasm.python_runtime import component_path

MIB = 1 << 20
LIMITS = Limits(memory_bytes=48 * MIB, cpu_time_s=10.0, wall_time_s=60.0)
BUSY = Limits(cpu_time_s=0.15)


@pytest.fixture(scope="module", params=["fiber", "thread"])
def host(request):
    host = WasmHost(request.param)
    yield host
    assert host.num_guests == 0
    host.close()


@pytest.fixture(scope="module")
def python(host):
    return host.load(component_path(), "python-runtime")


@pytest.fixture
def run(host, python):
    """Runs the body of a `main` beside a neighbour that must not notice."""

    def run(body: str, handlers=None, limits: Limits = LIMITS) -> Watched:
        neighbour = Watched(host, python, "{}", source="import time\ndef main():\n    time.sleep(0.02)\n    return 7\n")
        source = "def main():\n" + "".join(f"    {line}\n" for line in body.splitlines())
        watched = Watched(host, python, "{}", handlers, limits, source=source)
        watched.outcome()
        assert neighbour.value == "7"
        return watched

    return run


def test_an_infinite_loop_is_killed(run):
    error = run("while True: pass", limits=BUSY).error
    assert isinstance(error, QuotaExceeded)
    assert error.message.startswith("cpu_time_s is 0.15;")


def test_no_except_clause_survives_the_limit(run):
    error = run("while True:\n  try:\n    while True: pass\n  except BaseException: pass", limits=BUSY).error
    assert error.message.startswith("cpu_time_s is 0.15;")


def test_a_regex_bomb_is_killed_inside_c_code(run):
    error = run("import re\nre.match('(a+)+$', 'a' * 40 + 'b')", limits=BUSY).error
    assert error.message.startswith("cpu_time_s is 0.15;")


def test_a_memory_bomb_names_the_limit(run):
    for body in ("x = []\nwhile True: x.append(bytearray(1 << 20))", "bytearray(1 << 30)", "'x' * (1 << 30)"):
        error = run(body).error
        assert isinstance(error, QuotaExceeded), error
        assert error.message.startswith(f"memory_bytes is {48 * MIB};")


def test_a_guest_may_survive_its_memory_error(run):
    body = (
        "x = []\ntry:\n  while True: x.append(bytearray(1 << 20))\nexcept MemoryError:\n  n = len(x); del x\nreturn n"
    )
    assert 10 < int(run(body).value) < 40


def test_python_recursion_is_its_own_error(run):
    error = run("def f(): return f()\nf()").error
    assert isinstance(error, GuestFailed)
    assert error.message.startswith("RecursionError:")


def test_recursion_without_python_s_limit_is_a_trap(run):
    error = run("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()").error
    assert isinstance(error, (GuestTrapped, GuestFailed, QuotaExceeded))
    body = "import sys\nsys.setrecursionlimit(10**9)\na = []\nfor _ in range(200000): a = [a]\nreturn len(repr(a))"
    assert isinstance(run(body).error, (GuestTrapped, GuestFailed))


def test_a_flood_of_host_calls_is_killed(run):
    error = run("import os\nwhile True: os.urandom(1)", limits=BUSY).error
    assert error.message.startswith("cpu_time_s is 0.15;")


def test_endless_output_is_killed_by_the_handler(run):
    handlers = FakeHandlers()
    handlers.max_printed = 10_000
    error = run("while True: print('x' * 100)", handlers).error
    assert (error.code, error.message) == ("quota", "log_bytes is 10000")


@pytest.mark.parametrize(("call", "status"), [("os._exit(4)", 1), ("os._exit(0)", 0)])
def test_exit_ends_the_guest_only(run, call, status):
    error = run(f"import os\n{call}").error
    assert isinstance(error, GuestTrapped)
    assert error.message.startswith(f"exited with status {status}")


def test_abort_ends_the_guest_only(run):
    assert isinstance(run("import os\nos.abort()").error, GuestTrapped)


def test_system_exit_is_no_success(run):
    assert run("import sys\nsys.exit(3)").outcome().error is not None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("open('/tmp/x', 'w')", "FileNotFoundError"),
        ("import os\nos.listdir('/')", "FileNotFoundError"),
        ("open('../../../../proc/self/environ').read()", "FileNotFoundError"),
        ("import os\nos.fork()", "AttributeError"),
        ("import subprocess\nsubprocess.run(['ls'])", "OSError"),
        ("import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
        ("import ctypes", "ModuleNotFoundError"),
    ],
)
def test_the_outside_is_not_there(run, body, kind):
    error = run(body).error
    assert isinstance(error, GuestFailed)
    assert error.message.startswith(f"{kind}: ")


def test_sockets_are_denied(run):
    error = run("import socket\nsocket.socket().connect(('127.0.0.1', 22))").error
    assert isinstance(error, GuestFailed)
    assert error.message.startswith(("PermissionError", "ModuleNotFoundError"))


def test_the_environment_is_empty(run):
    assert run("import os, sys\nreturn [dict(os.environ), sys.stdin.read()]").value == '[{}, ""]'


def test_a_ten_megabyte_string_is_quota(run):
    send = "from wit_world.imports import session\ntry: session.send('x' * 10**7)\n"
    watched = run(send + "except BaseException as e: return str(e)")
    assert "message_bytes is 4194304" in watched.value
    assert watched.handlers.sent == []


def test_time_and_random_come_from_the_handlers(run):
    assert run("import time\nreturn time.time()").value == "1.000000007"
    values = {run("import random, os\nreturn [random.random(), os.urandom(8).hex()]").value for _ in range(2)}
    assert len(values) == 1  # the fake's random numbers repeat, so the guest's do


def test_a_long_sleep_ends_at_the_wall_limit(run):
    outcome = run("import time\ntime.sleep(500)", limits=Limits(wall_time_s=0.2)).outcome()
    assert isinstance(outcome.error, DeadlineExceeded)
    assert outcome.wall_time_s < 5


def test_sleepers_do_not_block_each_other(host, python):
    began = time.monotonic()
    source = "import time\ndef main():\n    time.sleep(0.3)\n    return 1\n"
    sleepers = [Watched(host, python, "{}", source=source) for _ in range(30)]
    assert {w.value for w in sleepers} == {"1"}
    assert time.monotonic() - began < 6


def test_kill_during_a_sleep(host, python):
    source = (
        "import time\ndef main():\n    while True:\n        try: time.sleep(500)\n        except BaseException: pass\n"
    )
    watched = Watched(host, python, "{}", source=source)
    assert not watched.has_ended(0.05)
    watched.guest.kill(Cancelled("wake up"))
    assert watched.error.message == "wake up"
