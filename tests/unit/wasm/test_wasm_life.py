"""A guest's life: started, limited, killed in whatever state, ended exactly once, nothing left behind."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest
from interfaces import ByInterface
from wasm_fakes import GUESTS_C, FakeHandlers, Watched

from pieray.config import Limits
from pieray.errors import Cancelled, ConfigError, DeadlineExceeded, Denied, EngineError, InvalidRequest, QuotaExceeded
from pieray.wasm.host import WasmHost


def test_the_result_is_what_run_returned(host, misbehave):
    assert Watched(host, misbehave, "echo grüß dich").value == "grüß dich"


def test_a_failure_names_kind_and_message(host, misbehave):
    error = Watched(host, misbehave, "fail").error
    assert (error.code, error.message) == ("guest-failed", "Sorry: not today")


def test_two_hundred_guests_at_once(host, misbehave):
    handlers = [FakeHandlers() for _ in range(200)]
    for h in handlers:
        h.issued.add(1)
    guests = [Watched(host, misbehave, "await 1", h) for h in handlers]
    assert not any(w.has_ended(0) for w in guests)
    for watched in reversed(guests):
        watched.resolve(1)
    assert {w.value for w in guests} == {'"ready"'}


@pytest.mark.parametrize("doing", ["spin", "flood", "flood-wait", "await 1"])
def test_kill_ends_a_guest_whatever_it_does(host, misbehave, doing):
    handlers = FakeHandlers()
    handlers.issued.add(1)
    watched = Watched(host, misbehave, doing, handlers)
    assert not watched.has_ended(0.05)
    began = time.monotonic()
    watched.guest.kill(Denied("first"))
    watched.guest.kill(Cancelled("second"))
    assert watched.error.message == "first"
    assert time.monotonic() - began < 5
    assert watched.guest.is_done


def test_kill_before_the_first_turn(host, misbehave):
    busy = [Watched(host, misbehave, "spin") for _ in range(3)]
    watched = Watched(host, misbehave, "echo never")
    watched.guest.kill(Cancelled("not started"))
    for b in busy:
        b.guest.kill(Cancelled("enough"))
    assert watched.outcome().error is not None or watched.outcome().value == "never"
    assert all(b.error.message == "enough" for b in busy)


def test_kill_after_the_end_changes_nothing(host, misbehave):
    watched = Watched(host, misbehave, "echo done")
    assert watched.value == "done"
    watched.guest.kill(Cancelled("too late"))
    watched.guest.unpark()
    time.sleep(0.02)
    assert len(watched.outcomes) == 1


def test_kill_from_within_a_handler(host, misbehave):
    spawned = threading.Event()

    class Suicidal(FakeHandlers):
        def runtime_log(self, level, message):
            spawned.wait(5)
            watched.guest.kill(Denied("by its own handler"))

    watched = Watched(host, misbehave, "flood-log", Suicidal())
    spawned.set()
    assert watched.error.message == "by its own handler"


def test_cpu_time_is_limited_and_exact(host, misbehave):
    outcome = Watched(host, misbehave, "spin", limits=Limits(cpu_time_s=0.15)).outcome()
    assert isinstance(outcome.error, QuotaExceeded)
    assert outcome.error.message.startswith("cpu_time_s is 0.15;")
    assert 0.15 <= outcome.cpu_time_s < 0.3


def test_waiting_costs_no_cpu_time(host, misbehave):
    assert Watched(host, misbehave, "sleep 150", limits=Limits(cpu_time_s=0.1)).value == '"slept"'


@pytest.mark.parametrize("doing", ["spin", "sleep 60000"])
def test_wall_time_is_limited(host, misbehave, doing):
    outcome = Watched(host, misbehave, doing, limits=Limits(wall_time_s=0.15)).outcome()
    assert isinstance(outcome.error, DeadlineExceeded)
    assert outcome.error.message.startswith("wall_time_s is 0.15;")
    assert 0.15 <= outcome.wall_time_s < 5


def test_memory_growth_is_refused(host, misbehave):
    assert Watched(host, misbehave, "grow", limits=Limits(memory_bytes=8 << 20)).error.code == "guest-trapped"


def test_a_memory_that_is_too_big_at_birth_names_the_limit(host, misbehave):
    error = Watched(host, misbehave, "echo x", limits=Limits(memory_bytes=1 << 16)).error
    assert error.code == "quota"
    assert error.message.startswith("memory_bytes is 65536;")


def test_an_exit_callback_that_fails_harms_no_one(host, misbehave):
    def fail(_outcome):
        raise SystemExit(1)

    host.spawn(misbehave, ByInterface(FakeHandlers()), Limits(), input="echo x", on_exit=fail)
    assert Watched(host, misbehave, "echo y").value == "y"


def test_spawn_checks_source(host, misbehave):
    with pytest.raises(InvalidRequest, match="takes no source"):
        host.spawn(misbehave, ByInterface(FakeHandlers()), Limits(), input="", source="x", on_exit=print)


@pytest.mark.slow
def test_nothing_is_left_after_two_hundred_guests(fresh_host):
    program = fresh_host.load(GUESTS_C / "misbehave.wasm", "misbehave")

    def run(count):
        watched = [Watched(fresh_host, program, text) for text in ("echo x", "unreachable", "sleep 1") * count]
        for w in watched:
            w.outcome()
        return [weakref.ref(w.guest) for w in watched]

    def state():
        gc.collect()
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), threading.active_count(), sum(1 for _ in maps)

    run(67)  # the slots of as many at one time are mapped from now on
    for _ in range(4):  # more may run at one time in the next round, and map more: a leak does not end
        time.sleep(0.1)
        fds, threads, maps = state()
        guests = run(67)
        time.sleep(0.1)
        after = state()
        if after[2] - maps < 60:
            break
    assert (after[0], after[1]) == (fds, threads)
    assert after[2] - maps < 60  # a leaked store is at least three mappings
    assert [g for g in guests if g() is not None] == []
    assert fresh_host.num_guests == 0
    assert len(fresh_host._timers) == 0


def test_close_kills_all_and_joins_the_threads(fresh_host):
    program = fresh_host.load(GUESTS_C / "misbehave.wasm", "misbehave")
    before = threading.active_count()
    guests = [Watched(fresh_host, program, doing) for doing in ("spin", "sleep 60000", "flood", "sleep 60000")]
    time.sleep(0.03)
    fresh_host.close()
    fresh_host.close()
    assert [g.outcomes[0].error.code for g in guests] == ["cancelled"] * 4
    assert threading.active_count() < before
    with pytest.raises(EngineError, match="closed"):
        Watched(fresh_host, program, "echo x")


def test_close_from_an_exit_callback_is_refused(host, misbehave):
    answers = []

    def exit_(_outcome):
        try:
            host.close()
        except EngineError as error:
            answers.append(str(error))

    host.spawn(misbehave, ByInterface(FakeHandlers()), Limits(), input="echo x", on_exit=exit_)
    assert Watched(host, misbehave, "sleep 20").value == '"slept"'
    assert "cannot be closed from a thread that runs its guests" in answers[0]


def test_a_handler_may_recurse_as_deep_as_on_any_thread(host, misbehave):
    class Deep(FakeHandlers):
        def kv_page_size(self):
            def f(n):
                return sorted([n], key=lambda x: f(n + 1))

            with pytest.raises(RecursionError):
                f(0)
            return 16

    assert Watched(host, misbehave, "nop 3", Deep()).value == '"done"'


def test_a_thread_that_cannot_start_is_an_outcome(monkeypatch):
    host = WasmHost("thread")
    program = host.load(GUESTS_C / "misbehave.wasm", "misbehave")

    def fail(_run):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(host._executor, "start_thread", fail)
    assert Watched(host, program, "echo x").error.code == "engine"
    host.close()


def test_a_forked_process_is_told_to_make_its_own_host(fresh_host):
    program = fresh_host.load(GUESTS_C / "misbehave.wasm", "misbehave")
    pid = os.fork()
    if pid == 0:
        try:
            fresh_host.spawn(program, ByInterface(FakeHandlers()), Limits(), input="echo x", on_exit=print)
        except EngineError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.slow
def test_the_process_survives_faulthandler_and_exits_with_guests_alive():
    """Three ways to lose the process: faulthandler enabled after the engine takes the signals of traps; another library
    has had them when the next engine is made; daemon threads inside wasm abort the interpreter at its end."""
    import subprocess
    import sys

    script = f"""
import sys; sys.path[:0] = {[str(GUESTS_C.parents[1] / name) for name in ("unit/wasm", "support")]!r}
from wasm_fakes import *
import faulthandler, signal
assert not faulthandler.is_enabled()
for executor in ("fiber", "thread"):
    host = WasmHost(executor)
    faulthandler.enable()
    program = host.load(GUESTS_C / "misbehave.wasm", "misbehave")
    assert "out of bounds" in Watched(host, program, "store-out-of-bounds").error.message
    keep = [Watched(host, program, t) for t in ("spin", "sleep 60000", "flood")]
    globals()[executor] = (host, keep)
    for number in (signal.SIGILL, signal.SIGSEGV, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)  # as ray.shutdown leaves them
time.sleep(0.1)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONFAULTHANDLER"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_unknown_executor_is_refused():
    with pytest.raises(ConfigError, match="auto, fiber, thread"):
        WasmHost("process")


def test_fibers_are_the_default_here_and_threads_the_fallback(monkeypatch):
    from pieray.wasm import host, native

    assert host.choose_executor("auto") == "fiber"
    monkeypatch.setattr(native, "missing_async_symbols", lambda: ["wasmtime_call_future_poll"])
    assert host.choose_executor("auto") == "thread"
    with pytest.raises(EngineError, match="needs wasmtime_call_future_poll"):
        host.choose_executor("fiber")


@pytest.mark.slow
def test_fibers_move_between_worker_threads():
    host = WasmHost("fiber", worker_threads=3)
    program = host.load(GUESTS_C / "misbehave.wasm", "misbehave")
    handlers = [FakeHandlers() for _ in range(40)]
    for h in handlers:
        h.issued.update(range(50))
    waiting = [Watched(host, program, "wait 50", h) for h in handlers]
    spinning = [Watched(host, program, "spin", limits=Limits(cpu_time_s=0.1)) for _ in range(4)]
    trapping = [Watched(host, program, doing) for doing in ("unreachable", "recurse", "sleep 3") * 10]
    for ticket in range(50):
        for w in waiting:
            w.resolve(ticket)
    assert {w.value for w in waiting} == {'"done"'}
    assert {w.error.code for w in spinning} == {"quota"}
    assert [w.outcome().error is None for w in trapping] == [False, False, True] * 10
    host.close()
