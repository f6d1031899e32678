"""The other commands on a fake engine, and what the command line loads."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, Outcome

import pieray
from pieray import config
from pieray.cli import doctor, up
from pieray.cluster import up_state
from pieray.cluster.up_state import UpState
from pieray.errors import EngineError, GuestFailed

Call = Callable[..., Outcome]


@pytest.mark.slow
def test_version_and_help_load_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from pieray.cli.app import app; app(['version'], standalone_mode=False); "
        "print([m for m in ('ray', 'torch', 'wasmtime', 'transformers', 'psutil', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [pieray.__version__, "[]"]


@pytest.mark.slow
def test_words_are_converted_without_pydantic() -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print('pydantic' in sys.modules)); "
        "from pieray.cli.app import app; app(['kill', 'x', '--namespace', 'nothing-is-up'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "False\n"), done.stderr


def test_numbers_are_converted_as_ever(engine: FakeEngine, call: Call) -> None:
    for wrong in ("many", "-1", "1.5"):
        assert call("up", "--num-cpus", wrong).exit_code == 2
    assert call("run", "text-completion", "--num-pages", "9", "--", "--prompt", "a").exit_code == 0
    assert engine.start_settings["model"] == {"num_pages": 9}


def test_ps_prints_rows_for_programs_and_people(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    rows = json.loads(call("ps", "--json").stdout)
    assert [row["instance_id"] for row in rows] == ["fake-1", "\x1b[2Jfake-2"]
    assert rows[0].keys() == engine.ps()[0].keys()
    running, failed = call("ps").stdout.splitlines()
    assert running.split("\t") == ["fake-1", "fake", "running", "lab/ada", "3m 20s", "0.50", "3", "2", "7", "-", "-"]
    assert failed.split("\t") == [
        r"\x1b[2Jfake-2",
        r"a\tb\n",
        "failed",
        "lab/ada",
        "1d 1h",
        "0.50",
        "3",
        "2",
        "7",
        "fake-1",
        r"quota: \x9b1m",
    ]


def test_what_an_inferlet_logs_and_how_it_fails_steers_no_terminal(engine: FakeEngine, call: Call) -> None:
    engine.logs, engine.error = ["info: \x1b]0;title\x07 and \u202e"], GuestFailed("no \x9b2J\nsecond line")
    done = call("run", "text-completion", "--debug", "--", "--prompt", "a")
    assert done.stderr.splitlines()[1:] == [
        r"info: \x1b]0;title\x07 and \u202e",
        r"pieray: guest-failed: no \x9b2J",
        "second line",
    ]


def test_adapters_are_listed(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    assert json.loads(call("adapters", "--json").stdout) == engine.adapters()
    assert call("adapters").stdout == "tiny\t8\t16.00\t64\tme\n"


def test_kill_ends_one_and_an_unknown_id_exits_2(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    assert call("kill", "fake-1").exit_code == 0
    assert engine.link.killed == ["fake-1"]
    missing = call("kill", "other")
    assert missing.exit_code == 2
    assert "no inferlet 'other'" in missing.stderr


@pytest.mark.parametrize("command", [("ps",), ("kill", "x")])
def test_without_an_engine_the_error_says_how_to_get_one(
    engine: FakeEngine, call: Call, command: tuple[str, ...]
) -> None:
    done = call(*command)
    assert done.exit_code == 3
    assert "`pieray up` starts one" in done.stderr


def test_inferlets_and_models_need_no_engine(engine: FakeEngine, call: Call) -> None:
    rows = json.loads(call("inferlets", "--json").stdout)
    assert {"text-completion"} <= {row["name"] for row in rows}
    assert all(row["description"] for row in rows)
    (tiny,) = [row for row in json.loads(call("models", "--json").stdout) if row["name"] == "pie-tiny"]
    assert tiny["served"] is False
    assert tiny["architecture"] == "llama"


def test_models_shows_what_is_served(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    (tiny,) = json.loads(call("models", "--json").stdout)
    assert (tiny["served"], tiny["num_pages"], tiny["device"]) == (True, 64, "cpu")


def test_down_without_up_says_so_and_is_no_error(engine: FakeEngine, call: Call) -> None:
    done = call("down")
    assert (done.exit_code, done.stderr) == (0, "pieray: nothing is up in namespace pieray\n")


def test_up_refuses_a_wrong_setting_before_it_starts_anything(engine: FakeEngine, call: Call) -> None:
    done = call("up", "--set", "actor_pol=2")
    assert done.exit_code == 2
    assert "actor_pool" in done.stderr


def test_doctor_exits_1_only_if_something_needed_is_broken(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [doctor.Check("ok", "python", "3"), doctor.Check("warn", "C compiler", "none", "install one")]
    monkeypatch.setattr(doctor, "run_checks", lambda: iter(found))
    done = call("doctor")
    assert (done.exit_code, done.stdout) == (0, "ok    python: 3\nwarn  C compiler: none  -> install one\n")
    found.append(doctor.Check("fail", "torch", "not installed"))
    assert call("doctor", "--json").exit_code == 1


def test_a_state_survives_on_disk_and_a_process_with_a_reused_pid_is_not_taken_for_the_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIERAY_HOME", str(tmp_path))
    state = UpState("blue", "127.0.0.1:1", 1, 12.5, "/tmp/x", environment={"RAY_AUTH_MODE": "token"})
    state.save()
    assert up_state.load("blue") == state
    assert stat.S_IMODE(up_state.state_file("blue").stat().st_mode) == 0o600  # it may hold the engine's token
    assert up_state.find_alive("blue") is None
    assert not replace(state, head_pid=1).is_alive()
    state.forget()
    assert up_state.load("blue") is None
    up_state.state_file("blue").write_text("{broken", encoding="utf-8")
    assert up_state.load("blue") is None


def test_a_namespace_is_one_commands_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIERAY_HOME", str(tmp_path))
    waited: list[str] = []
    with up_state.locked("blue", 5.0, lambda: waited.append("blue")), up_state.locked("red", 5.0, lambda: None):
        with pytest.raises(EngineError, match="namespace blue for over 0 s"):
            take("blue", 0.0, waited)
        assert waited == ["blue"]
    take("blue", 0.0, waited)
    assert waited == ["blue"]


def take(namespace: str, timeout_s: float, waited: list[str]) -> None:
    with up_state.locked(namespace, timeout_s, lambda: waited.append(namespace)):
        pass


@pytest.mark.parametrize(
    ("words", "settings", "text"),
    [
        ((), {}, ""),
        (("--num-pages", "64"), {"model": {"num_pages": 64}}, ""),
        (("--num-pages", "64"), {}, "model.num_pages is 0, asked for is 64"),
        (("--set", "limits.pages=7"), {}, "limits.pages is 4096, asked for is 7"),
        (("--device", "cuda"), {}, "model.device is 'auto', asked for is 'cuda'"),
        (("--dashboard",), {}, "--dashboard is False, asked for is True"),
        (("--num-cpus", "3"), {}, "--num-cpus is 2, asked for is 3"),
        (("--address", "10.0.0.7:1"), {}, "--address is '10.0.0.1:6379', asked for is '10.0.0.7:1'"),
    ],
)
def test_up_beside_a_running_engine_names_each_setting_that_differs(
    engine: FakeEngine,
    call: Call,
    is_up: UpState,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    settings: dict[str, Any],
    text: str,
) -> None:
    state = replace(is_up, num_cpus=2)
    engine.config = config.load(settings)
    monkeypatch.setattr(up, "find_up", lambda _: (state, engine))
    done = call("up", *words)
    assert done.exit_code == (2 if text else 0), done.stderr
    assert (text or "an engine is up already in namespace pieray at 10.0.0.1:6379") in done.stderr
    if text:
        assert "`pieray down` first" in done.stderr


@pytest.mark.parametrize("namespace", ["../x", "", "a/b", ".hidden", "a" * 101])
def test_a_namespace_that_is_no_file_name_is_refused(call: Call, namespace: str) -> None:
    with pytest.raises(pieray.PierayError, match="namespace"):
        up_state.state_file(namespace)


def test_an_engine_is_scaled(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    assert "pie-tiny is on 3 device groups" in call("scale", "3").stderr
    assert json.loads(call("scale", "2", "--drain", "5", "--json").stdout)[0]["drain_s"] == 5
    wrong = call("scale", "0")
    assert wrong.exit_code == 2
    assert "from 1 to 256 replicas; given 0" in wrong.stderr


def test_exports_are_shown_and_dropped(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    shown = call("exports")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.split("\t") == ["prefix", "tenant", "lab", "ada", "3", "40", "yes", "-", "1\n"]
    assert json.loads(call("exports", "--json").stdout)[0]["num_pages"] == 3
    dropped = call("exports", "drop", "prefix", "--user", "bob", "--json")
    assert json.loads(dropped.stdout) == {"name": "prefix", "access": "tenant", "tenant": "lab", "owner": "bob"}
    assert "dropped prefix (tenant) of lab/ada" in call("exports", "drop", "prefix").stderr
    gone = call("exports", "drop", "prefix", "--tenant", "other")
    assert (gone.exit_code, gone.stdout) == (2, "")
    assert "there is no export 'prefix'" in gone.stderr


def test_ps_tells_on_stderr_who_waits_and_who_was_refused(engine: FakeEngine, call: Call, is_up: UpState) -> None:
    assert "wait" not in call("ps").stderr
    engine.admitted = {"waiting": {"lab": 2, "ann": 1}, "refused": {f"t{n}": n for n in range(1, 8)}, "quotas": {}}
    done = call("ps")
    assert "pieray: 3 launches wait for a place (lab: 2, ann: 1)\n" in done.stderr
    assert "pieray: 28 launches were refused one (t7: 7, t6: 6, t5: 5, t4: 4, t3: 3, ...)\n" in done.stderr
    assert "wait" not in call("ps", "--json").stderr


def test_ps_tells_on_stderr_what_pages_are_used_for_and_what_came_of_their_lack(
    engine: FakeEngine, call: Call, is_up: UpState
) -> None:
    told = "pieray: 64 KV pages: 9 free, 20 cached, 35 leased, 0 quarantined; 7 more are swapped to host memory\n"
    assert call("ps").stderr == told
    nothing = dict.fromkeys(("held", "waiting", "waited", "found", "preempted", "swapped"), 0)
    engine.page_counts = {"lab": {**nothing, "waiting": 2, "preempted": 3}, "ann": {**nothing, "preempted": 1}}
    assert call("ps").stderr == (
        f"{told}pieray: 2 requests wait for pages (lab: 2)\n"
        "pieray: 4 times programs gave up their pages for others (lab: 3, ann: 1)\n"
    )


def test_ps_shows_what_is_known_of_inferlets_whose_actor_is_silent(
    engine: FakeEngine, call: Call, is_up: UpState, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "instance_id": "a-1",
        "name": "a",
        "state": "unreachable",
        "cpu_time_s": 0.0,
        "pages": 0,
        "swapped": 0,
        "output_bytes": 0,
        "error": "pieray.inferlets.0 does not answer",
    }
    monkeypatch.setattr(engine, "ps", lambda: [row])
    assert call("ps").stdout.split("\t") == [
        "a-1",
        "a",
        "unreachable",
        "-",
        "-",
        "0.00",
        "0",
        "0",
        "0",
        "-",
        "pieray.inferlets.0 does not answer\n",
    ]
