"""pieray from elsewhere: as a Ray job, and from a plain Ray driver on a cluster that exists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from command import BIN, CommandLine

pytestmark = pytest.mark.slow

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
    """A throw-away head with a dashboard and an engine."""
    found = CommandLine(tmp_path_factory.mktemp("jobs"))
    try:
        up = found.run("pieray", "up", "--dashboard", "--num-cpus", "2")
        assert up.returncode == 0, up.stderr
        yield found
    finally:
        down = found.run("pieray", "down")
    assert down.returncode == 0, down.stderr
    found.assert_nothing_is_left()


@pytest.fixture(scope="module")
def state(cli: CommandLine) -> dict[str, Any]:
    """What `up` remembers."""
    found: dict[str, Any] = json.loads((cli.folder / "home/engines/pieray.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pieray", "run", "text-completion", "--json", "--", "--prompt", "12+7=", "--max-tokens", "4"), "num_tokens"),
        (("pieray", "run", "mine.py", "--", "--name", "12"), "hello 12"),
    ],
)
def test_a_job_runs_an_inferlet(
    cli: CommandLine, state: dict[str, Any], words: tuple[str, ...], expected: str
) -> None:
    (cli.folder / "job").mkdir(exist_ok=True)
    (cli.folder / "job/mine.py").write_text("async def main(name: str): return f'hello {name}'", encoding="utf-8")
    done = cli.run(*with_token(state), str(BIN / "ray"), "job", "submit", "--address", state["dashboard"],
                   "--working-dir", "./job", "--", *words)  # fmt: skip
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


def test_the_engine_that_is_up_is_found_by_auto(cli: CommandLine) -> None:
    code = "import pieray\nwith pieray.connect() as engine: print(len(engine.models()))"
    done = cli.run(str(BIN / "python"), "-c", code)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
