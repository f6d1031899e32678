"""What a hostile C guest can do, and the typed error that each ends with; neighbours are unharmed."""

from __future__ import annotations

import json

import pytest
from wasm_fakes import FakeHandlers, Watched

from pieray.config import Limits
from pieray.errors import Denied, GuestTrapped, QuotaExceeded
from pieray.wasm.traps import failure_error, trap_error, trap_reason

TRAPS = {
    "store-out-of-bounds": "out of bounds memory access",
    "string-out-of-bounds": "out of bounds",
    "string-too-long": "out of bounds",
    "list-out-of-bounds": "out of bounds",
    "list-too-long": "out of bounds",
    "list-unaligned": "not aligned",
    "result-out-of-bounds": "out of bounds",
    "bad-utf8": "invalid utf-8",
    "bad-level": "discriminant 99 out of range",
    "return-out-of-bounds": "out of bounds",
    "unreachable": "unreachable",
    "divide 3": "integer divide by zero",
    "recurse": "out of bounds memory access",
}


@pytest.mark.parametrize("doing", TRAPS)
def test_a_trap_ends_the_guest_and_says_why(host, misbehave, doing):
    neighbour = Watched(host, misbehave, "sleep 5")
    error = Watched(host, misbehave, doing).error
    assert isinstance(error, GuestTrapped)
    assert TRAPS[doing] in error.message
    assert "/" not in error.message.replace("pointer/length", "")  # no path of the host
    assert neighbour.value == '"slept"'


def test_forged_handles_are_bad_handles(host, misbehave):
    answers = json.loads(Watched(host, misbehave, "forged-handles").value)
    assert len(answers) == 21
    assert answers.pop("forward_forward") == "ok"  # the fake has no queues to check
    assert answers.pop("forward_sample") == "ok"  # nor passes
    assert set(answers.values()) == {"bad-handle"}


def test_numbers_arrive_as_they_were_sent(host, misbehave):
    handlers = FakeHandlers("abc")
    Watched(host, misbehave, "wild-numbers", handlers).outcome()
    name, (_queue, pages, kv_len, tokens, positions, mask) = handlers.calls[0]
    assert (name, pages.tolist(), kv_len, tokens.tolist()) == ("forward", [1], 2**32 - 1, [2**32 - 1] * 2)
    assert (len(positions), len(mask)) == (0, 0)
    sample = next(args for name, args in handlers.calls if name == "sample")
    assert sample[1] == sample[3] == 2**32 - 1
    assert sample[6] == 2**64 - 1
    assert sample[2] != sample[2]
    assert sample[4] == -1.0


def test_the_rest_of_the_api(host, misbehave):
    handlers = FakeHandlers()
    answers = json.loads(Watched(host, misbehave, "everything", handlers).value)
    assert set(answers.values()) == {"ok"}
    assert handlers.calls == [("render", ("", "[]", "", True, "", 0))]


def test_lists_of_strings_and_tuples_arrive_whole(host, misbehave):
    assert Watched(host, misbehave, "names").value == "tiny,naïve,"
    handlers = FakeHandlers()
    handlers.resolve(5, ([7, 8, 9], [0.5, 0.25, 0.125]))
    assert Watched(host, misbehave, "distribution 5", handlers).value == "9 500 3"


def test_the_clock_of_the_handlers_is_the_guest_s(host, misbehave):
    assert Watched(host, misbehave, "now").value == "1000000007"


def test_log_levels_are_names(host, misbehave):
    handlers = FakeHandlers()
    assert Watched(host, misbehave, "log", handlers).value == '"logged"'
    assert handlers.calls == [("log", ("warning", "hear me"))]


@pytest.mark.parametrize(("doing", "size"), [("send 2000000", 2_000_000), ("free 500000", 2_000_000)])
def test_strings_and_lists_beyond_message_bytes_are_quota(host, misbehave, doing, size):
    error = Watched(host, misbehave, doing, limits=Limits(message_bytes=1_000_000)).error
    assert isinstance(error, QuotaExceeded)  # the guest saw the err arm, and gave up with it
    assert error.message.startswith("message_bytes is 1000000;")
    assert str(size) in error.message


def test_the_largest_message_passes(host, misbehave):
    handlers = FakeHandlers()
    assert Watched(host, misbehave, f"send {4 << 20}", handlers).value == '"sent"'
    assert len(handlers.sent[0]) == 4 << 20
    handlers.pages = {0}
    assert Watched(host, misbehave, f"free {1 << 20}", handlers).value == '"freed"'


def test_a_list_that_wasmtime_itself_refuses_is_quota_too(host, misbehave):
    error = Watched(host, misbehave, "free 7000000").error
    assert isinstance(error, QuotaExceeded)
    assert error.message.startswith("message_bytes is 4194304;")


def test_a_result_beyond_output_bytes_is_quota(host, misbehave):
    limits = Limits(output_bytes=1000)
    assert Watched(host, misbehave, "return 1000", limits=limits).value == "x" * 1000
    assert Watched(host, misbehave, "return 1001", limits=limits).error.message.startswith("output_bytes is 1000;")


@pytest.mark.parametrize("doing", ["flood", "flood-wait", "flood-log"])
def test_a_flood_of_host_calls_ends_at_the_cpu_limit(host, misbehave, doing):
    class Deaf(FakeHandlers):
        def runtime_log(self, level, message):
            pass

    error = Watched(host, misbehave, doing, Deaf(), Limits(cpu_time_s=0.1)).error
    assert isinstance(error, QuotaExceeded)
    assert error.message.startswith("cpu_time_s is 0.1;")


def test_any_exception_of_a_handler_is_internal(host, misbehave, caplog):
    class Broken(FakeHandlers):
        def session_send(self, text):
            raise self.what

    for what in (RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)):
        handlers = Broken()
        handlers.what = what
        error = Watched(host, misbehave, "send 3", handlers).error
        assert error.code == "internal"
        assert error.message.startswith("handler session.send failed:")
    assert "RuntimeError: boom" in caplog.text


def test_what_a_handler_returns_may_be_wrong(host, misbehave):
    class Wrong(FakeHandlers):
        def kv_alloc(self, count):
            return "pages"

    assert Watched(host, misbehave, "alloc 1", Wrong()).value == '"done"'  # it got `internal`, and did not look


def test_without_an_err_arm_an_exception_ends_the_guest(host, misbehave):
    class Broken(FakeHandlers):
        def kv_page_size(self):
            raise self.what

    handlers = Broken()
    handlers.what = SystemExit(3)
    error = Watched(host, misbehave, "nop 1", handlers).error
    assert isinstance(error, GuestTrapped)
    assert "a host function failed" in error.message
    handlers.what = Denied("not you")
    assert Watched(host, misbehave, "nop 1", handlers).error.message == "not you"


def test_trap_texts():
    text = (
        "error while executing at wasm backtrace:\n    0:     0x123 - runtime.so!inner\n"
        "    1:     0x456 - <unknown>!<wasm function 12>\n    2:     0x789 - main.wasm!outer\n"
        "                    at /home/me/guest/main.c:12:3\n\nCaused by:\n    wasm trap: call stack exhausted"
    )
    assert trap_error(text, Limits()).message == "call stack exhausted (in inner < outer)"
    assert trap_reason("plain") == "plain"
    assert trap_reason("") == "no reason given"
    assert trap_reason("x\n\nCaused by:\n    0: first\n    1: wasm trap: second") == "second"
    assert trap_error("x", Limits(), b"MemoryError\n").code == "quota"
    assert failure_error("MemoryError", "", "", Limits()).code == "quota"
    assert failure_error("ValueError", "no", "Traceback", Limits()).message == "ValueError: no\nTraceback"
