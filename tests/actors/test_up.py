"""An engine that is up: from the command line, as a Ray job, and from a plain Ray driver on its cluster."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from command import BIN, HOLD, CommandLine

pytestmark = pytest.mark.slow

NO_ROOM = "pieray: output: stdout cannot be written: No space left on device"
LOADED = """
import sys
from pieray.cli import main
try:
    main()
finally:
    heavy = ("ray", "torch", "transformers", "numpy", "wasmtime", "asyncio", "psutil", "pieray.cli.doctor")
    print("loaded:", [name for name in heavy if name in sys.modules])
"""

DRIVER = """
import sys
import ray
import pieray

ray.init(address=sys.argv[1], logging_level="ERROR")
with pieray.connect() as engine:
    process = engine.launch("text-completion", {"prompt": "12+7="}, max_tokens=8)
    print("".join(event.text for event in process), process.result(timeout=60)["text"], sep="|")
print(ray.is_initialized())
"""


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A folder with an inferlet that never ends."""
    found = CommandLine(tmp_path_factory.mktemp("up"))
    (found.folder / "hold.py").write_text(HOLD, encoding="utf-8")
    yield found
    found.run("pieray", "down")
    found.assert_nothing_is_left()


@pytest.fixture(scope="module")
def ups(cli: CommandLine) -> list[tuple[int, str]]:
    """Exit codes and words of two `pieray up` at once, of a throw-away head with a dashboard, and an engine."""
    both = [cli.begin("pieray", "up", "--dashboard", "--num-cpus", "2") for _ in range(2)]
    told = [up.communicate(timeout=120)[1] for up in both]
    return [(up.returncode, text) for up, text in zip(both, told, strict=True)]


@pytest.fixture(scope="module")
def state(cli: CommandLine, ups: object) -> dict[str, Any]:
    """What `up` remembers."""
    found: dict[str, Any] = json.loads((cli.folder / "home/engines/pieray.json").read_text(encoding="utf-8"))
    return found


def test_two_ups_at_once_start_one_engine(ups: list[tuple[int, str]]) -> None:
    told = [text for _, text in ups]
    assert [code for code, _ in ups] == [0, 0], told
    assert sorted("is up already" in text for text in told) == [False, True]
    assert sorted("waiting for another" in text for text in told) == [False, True]


def test_up_run_ps_kill(cli: CommandLine, state: dict[str, Any]) -> None:
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


@pytest.mark.parametrize(
    ("signum", "is_for_group", "exit_code"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, True, 129),  # a closed terminal
        (signal.SIGKILL, True, -9),  # what nobody can handle
    ],
)
def test_an_inferlet_ends_with_the_run_that_a_signal_ends(
    cli: CommandLine, state: dict[str, Any], signum: int, is_for_group: bool, exit_code: int
) -> None:
    holder = cli.hold()
    os.killpg(holder.pid, signum) if is_for_group else holder.send_signal(signum)
    _, errors = holder.communicate(timeout=60)
    assert (holder.returncode, "Traceback" in errors) == (exit_code, False), errors
    cli.until_no_inferlet_runs()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pieray", "run", "text-completion", "--json", "--", "--prompt", "12+7=", "--max-tokens", "4"), "num_tokens"),
        (("pieray", "run", "mine.py", "--", "--name", "12"), "hello 12"),
    ],
)
def test_a_job_runs_an_inferlet(cli: CommandLine, state: dict[str, Any], words: tuple[str, ...], expected: str) -> None:
    (cli.folder / "job").mkdir(exist_ok=True)
    (cli.folder / "job/mine.py").write_text("async def main(name: str): return f'hello {name}'", encoding="utf-8")
    done = cli.run(
        *with_token(state),
        str(BIN / "ray"),
        "job",
        "submit",
        "--address",
        state["dashboard"],
        "--working-dir",
        "./job",
        "--",
        *words,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout
    assert "succeeded" in done.stdout


def with_token(state: dict[str, Any]) -> list[str]:
    """What makes Ray's own tools show the token."""
    return ["env", *(f"{name}={value}" for name, value in state["environment"].items())]


def test_a_plain_driver_attaches(cli: CommandLine, state: dict[str, Any]) -> None:
    (cli.folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    done = cli.run(*with_token(state), str(BIN / "python"), "driver.py", state["address"])
    assert done.returncode == 0, done.stderr
    texts, ray_lives = done.stdout.splitlines()
    assert texts.split("|")[0] == texts.split("|")[1] != ""
    assert ray_lives == "True"  # it was the driver's


def test_the_engine_that_is_up_is_found_by_auto(cli: CommandLine, state: dict[str, Any]) -> None:
    code = "import pieray\nwith pieray.connect() as engine: print(len(engine.models()))"
    done = cli.run(str(BIN / "python"), "-c", code)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_down_leaves_nothing(cli: CommandLine, state: dict[str, Any]) -> None:
    down = cli.run("pieray", "down")
    assert down.returncode == 0, down.stderr
    cli.assert_nothing_is_left(0.0)
    assert "nothing is up" in cli.run("pieray", "down").stderr
