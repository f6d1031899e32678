"""`pieray run` on a fake engine: what is printed where, and the exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, Outcome

from pieray.cli import engines
from pieray.cluster.up_state import UpState
from pieray.errors import DeviceLost, EngineError, GuestFailed, InvalidRequest, ModelError, NotFound, QuotaExceeded

Call = Callable[..., Outcome]
RUN = ("run", "text-completion", "--input", '{"prompt": "12+7="}')


def test_texts_stream_and_a_result_that_only_repeats_them_is_not_printed(engine: FakeEngine, call: Call) -> None:
    engine.texts, engine.result = ["1", "9"], {"text": "19", "num_tokens": 2}
    done = call(*RUN, "--", "--prompt", "12+7=", "--max-tokens", "64")
    assert (done.exit_code, done.stdout) == (0, "19\n")
    assert engine.launches == [
        {"name": "text-completion", "arguments": {"prompt": "12+7=", "max_tokens": 64}, "limits": {}}
    ]
    assert engine.is_closed


@pytest.mark.parametrize(
    ("texts", "result", "expected"),
    [
        ([], "answer", "answer\n"),
        ([], None, ""),
        (["a\n"], None, "a\n"),
        (["a"], "a", "a\n"),
        (["a"], "b", "a\nb\n"),
        ([], {"score": 1, "ö": [2]}, '{"score": 1, "ö": [2]}\n'),
        (["a"], 0, "a\n0\n"),
    ],
)
def test_a_result_that_says_more_than_the_texts_is_printed(
    engine: FakeEngine, call: Call, texts: list[str], result: Any, expected: str
) -> None:
    engine.texts, engine.result = texts, result
    assert call(*RUN).stdout == expected


def test_logs_and_progress_go_to_stderr(engine: FakeEngine, call: Call) -> None:
    engine.logs = ["info: thinking"]
    done = call(*RUN)
    assert done.stdout == "19\n"
    assert done.stderr == "pieray: starting\ninfo: thinking\n"


def test_debug_lines_of_the_log_are_shown_to_who_asks_for_them(engine: FakeEngine, call: Call) -> None:
    engine.logs = ["debug: aside", "info: thinking"]
    assert call(*RUN).stderr == "pieray: starting\ninfo: thinking\n"
    assert "debug: aside\n" in call(*RUN, "--debug").stderr
    assert {"event": "log", "level": "debug", "text": "aside"} in call(*RUN, "--json").events


def test_the_place_of_a_syntax_error_is_said_once(engine: FakeEngine, call: Call) -> None:
    engine.error = GuestFailed('SyntaxError: invalid syntax (a.py, line 3)\n  File "a.py", line 3\n    x y')
    assert call(*RUN).stderr.splitlines()[-1] == (
        "pieray: guest-failed: SyntaxError: invalid syntax (a.py, line 3; --debug shows the traceback)"
    )


def test_json_gives_one_event_per_line(engine: FakeEngine, call: Call) -> None:
    engine.texts, engine.logs, engine.result = ["1", "9"], ["warn: a: b"], {"text": "19"}
    assert call(*RUN, "--json").events == [
        {"event": "started", "name": "text-completion", "id": "fake-1"},
        {"event": "text", "text": "1"},
        {"event": "text", "text": "9"},
        {"event": "log", "level": "warn", "text": "a: b"},
        {"event": "result", "result": {"text": "19"}},
    ]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (GuestFailed("KeyError: 'x'"), 1),
        (QuotaExceeded("pages"), 1),
        (NotFound("no such export"), 1),
        (DeviceLost("the batcher died"), 3),
    ],
)
def test_an_inferlet_that_fails_exits_1_and_a_lost_engine_3(
    engine: FakeEngine, call: Call, error: Any, exit_code: int
) -> None:
    engine.error = error
    done = call(*RUN)
    assert (done.exit_code, done.stdout) == (exit_code, "19\n")
    assert done.stderr.endswith(f"pieray: {error.code}: {error.message}\n")
    failed = call(*RUN, "--json")
    assert failed.exit_code == exit_code
    assert failed.events[-1] == {"event": "error", "code": error.code, "message": error.message}


def test_the_traceback_of_an_inferlet_is_shown_with_debug(engine: FakeEngine, call: Call) -> None:
    engine.error = GuestFailed('KeyError: 3\nTraceback ...\n  File "a.py", line 5, in main\n    raise\nKeyError: 3\n')
    brief, full = call(*RUN), call(*RUN, "--debug")
    assert brief.stderr.splitlines()[1:] == [
        "pieray: guest-failed: KeyError: 3 (a.py, line 5; --debug shows the traceback)"
    ]
    assert "Traceback" in full.stderr
    assert "Traceback" in call(*RUN, "--json").events[-1]["message"]


@pytest.mark.parametrize(
    ("error", "exit_code"), [(EngineError("full"), 3), (ModelError("no key"), 3), (InvalidRequest("not JSON"), 2)]
)
def test_a_launch_that_is_refused_exits_by_whose_fault_it_is(
    engine: FakeEngine, call: Call, error: BaseException, exit_code: int
) -> None:
    engine.refusal = error
    assert call(*RUN).exit_code == exit_code
    assert engine.is_closed


def test_an_error_of_our_own_is_one_line_and_a_traceback_only_with_debug(engine: FakeEngine, call: Call) -> None:
    engine.refusal = ZeroDivisionError("oops")
    brief, full = call(*RUN), call(*RUN, "--debug")
    assert brief.exit_code == full.exit_code == 3
    assert brief.stderr.splitlines()[1:] == ["pieray: internal: ZeroDivisionError: oops (--debug shows where)"]
    assert "Traceback" in full.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "no-such-inferlet"), "text-completion"),
        (("run",), "NAME_OR_FILE"),
        ((*RUN, "--input", "{"), "--input is not JSON"),
        ((*RUN, "--input", "[1]"), "given a list"),
        ((*RUN, "--set", "model.num_page=8"), "did you mean model.num_pages?"),
        ((*RUN, "--set", "model=8"), "model"),
        ((*RUN, "--set", "model"), "name=value"),
        ((*RUN, "--set", "namespace=x"), "--namespace"),
        ((*RUN, "--limit", "page=8"), "did you mean limits.pages?"),
        ((*RUN, "stray"), "stray"),
        ((*RUN, "--max-tokens", "3"), "--max-tokens"),
        (("run", "http-fetch"), "missing: url"),
        ((*RUN, "--", "--max-tokens", "five"), "argument 'max_tokens' of main() is int; given 'five'"),
        ((*RUN, "--", "--promt", "x"), "did you mean 'prompt'?"),
        ((*RUN, "--", "--prompt"), "--prompt takes a value: 'prompt' of main() is str"),
        ((*RUN, "--input", '{"prompt": 12}'), "argument 'prompt' of main() is str; given 12"),
        ((*RUN, "--num-pages", "-3"), "model.num_pages is at least 0; given -3"),
        ((*RUN, "--set", "model.page_size=0"), "model.page_size is at least 1; given 0"),
        ((*RUN, "--set", "child_ceiling=-1"), "child_ceiling is at least 0; given -1"),
        ((*RUN, "--set", "log_level=loud"), "log_level is one of"),
        ((*RUN, "--", "--prompt", "\udcff\udcfe"), r"UTF-8 text; given '\xff\xfe'"),
        ((*RUN, "--input", '{"prompt": "\udcff"}'), "UTF-8 text"),
    ],
)
def test_wrong_usage_exits_2_before_anything_is_started(
    engine: FakeEngine, call: Call, words: tuple[str, ...], message: str
) -> None:
    done = call(*words)
    assert done.exit_code == 2, done
    assert message in done.stderr
    assert not engine.start_settings
    assert "Traceback" not in done.stderr


def test_arguments_settings_and_limits_reach_the_engine(engine: FakeEngine, call: Call) -> None:
    call(
        *RUN,
        "--model",
        "/models/m",
        "--num-pages",
        "9",
        "--set",
        "limits.pages=4",
        "--set",
        "model.threads=2",
        "--limit",
        "wall_time_s=1.5",
        "--input",
        '{"prompt": "a", "seed": 1}',
        "--",
        "--seed",
        "2",
    )
    assert engine.start_settings == {
        "address": None,
        "namespace": "pieray",
        "limits": {"pages": "4"},
        "model": {"path": "/models/m", "num_pages": 9, "threads": "2"},
    }
    assert engine.launches[0]["arguments"] == {"prompt": "a", "seed": 2}
    assert engine.launches[0]["limits"] == {"wall_time_s": 1.5}


def test_an_engine_that_is_up_is_used_and_said_so(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    done = call(*RUN)
    assert engine.launches
    assert not engine.start_settings
    assert f"using the engine of `pieray up` at {is_up.address}" in done.stderr


@pytest.mark.parametrize("words", [("--model", "m"), ("--address", "local"), ("--namespace", "other")])
def test_an_engine_of_its_own_is_started_where_the_one_that_is_up_does_not_fit(
    engine: FakeEngine, call: Call, is_up: UpState, words: tuple[str, ...]
) -> None:
    assert call(*RUN, *words).exit_code == 0
    assert engine.start_settings


def test_a_cluster_without_an_engine_gets_one_that_nobody_else_finds(
    engine: FakeEngine, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(address: str, namespace: str) -> None:
        raise NotFound("no engine")

    monkeypatch.setattr(engines, "connect", connect)
    assert call(*RUN, "--address", "10.0.0.9:6379").exit_code == 0
    assert engine.start_settings["address"] == "10.0.0.9:6379"
    assert engine.start_settings["namespace"].startswith("pieray-run-")


def test_settings_for_an_engine_that_runs_on_a_cluster_are_refused(
    engine: FakeEngine, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    done = call(*RUN, "--num-pages", "8")
    assert done.exit_code == 2
    assert "has its settings already" in done.stderr
    assert engine.is_closed


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_kills_the_inferlet_closes_the_engine_and_exits_as_shells_expect(
    engine: FakeEngine, call: Call, signum: int, exit_code: int
) -> None:
    before = signal.signal(signum, signal.SIG_DFL)  # whatever it is to who runs the tests
    engine.on_launch = lambda: os.kill(os.getpid(), signum)
    done = call(*RUN, "--json")
    signal.signal(signum, before)
    assert done.exit_code == exit_code
    assert done.events == [{"event": "error", "code": "cancelled", "message": "interrupted"}]
    assert engine.is_closed


def test_a_file_and_a_folder_can_be_run(engine: FakeEngine, call: Call, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("async def main(prompt: str): ...", encoding="utf-8")
    assert call("run", str(file), "--", "--prompt", "7").exit_code == 0
    assert engine.launches[0] == {"name": "mine", "arguments": {"prompt": "7"}, "limits": {}}


def test_the_place_of_an_error_is_not_looked_for_in_its_log_lines(engine: FakeEngine, call: Call) -> None:
    trace = 'Oops: no\nTraceback:\n  File "main.py", line 3, in main\nlast log lines:\n  info: File "other.py", line 9'
    engine.error = GuestFailed(trace)
    assert "pieray: guest-failed: Oops: no (main.py, line 3; --debug" in call(*RUN).stderr


def test_a_detached_inferlet_runs_on_without_its_client(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    engine.ends = False
    done = call(*RUN, "--detach")
    assert (done.exit_code, engine.is_attached, engine.link.killed) == (0, False, [])
    assert "fake-1 runs on; `pieray attach fake-1` shows what it does" in done.stderr
    assert call(*RUN, "--detach", "--json").events == [{"event": "started", "name": "text-completion", "id": "fake-1"}]
    assert call(*RUN, "--detach", "-i").exit_code == 2
    engine.ends = True
    call(*RUN)
    assert engine.is_attached


def test_priority_and_deadline_go_with_the_launch(engine: FakeEngine, call: Call) -> None:
    assert call(*RUN).exit_code == 0
    assert engine.urgency == (0, None)
    assert call(*RUN, "--priority", "-3", "--deadline", "2.5").exit_code == 0
    assert engine.urgency == (-3, 2.5)
    assert call(*RUN, "--priority", "high").exit_code == 2


def test_detaching_needs_an_engine_that_stays(engine: FakeEngine, call: Call) -> None:
    done = call(*RUN, "--detach")
    assert (done.exit_code, engine.start_settings) == (3, {})
    assert "`pieray up` starts one" in done.stderr


def test_attach_shows_what_an_inferlet_has_done_and_how_it_ends(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    engine.result = 19
    assert call("attach", "fake-1").stdout == "19\n19\n"
    engine.error = GuestFailed("KeyError: 3")
    done = call("attach", "fake-1", "--json")
    assert (done.exit_code, done.events[-1]["code"]) == (1, "guest-failed")
    missing = call("attach", "other")
    assert (missing.exit_code, engine.link.killed) == (2, [])
