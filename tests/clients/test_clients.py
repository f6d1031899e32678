"""Clients of OpenAI's and vLLM's servers against this one: a script each, `with_NAME.py`, in an environment of theirs.

`make clients` makes that environment, build/clients, and runs this with it.  Without it, what the environment of the
tests has is tried (openai), and the rest is skipped, aloud.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import hosted

from pieray.server.guard import Guard

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKENIZER = ROOT / "pieray" / "assets" / "pie-tiny"
MADE = ROOT / "build" / "clients" / "bin" / "python"
CLIENTS = {
    "openai": "openai",
    "langchain": "langchain-openai",
    "llama_index": "llama-index-llms-openai-like",
    "litellm": "litellm",
    "dspy": "dspy",
    "lm_eval": "lm_eval",
    "guidance": "guidance",
    "outlines": "outlines",
}
"""Script -> distribution."""


def python_with(distribution: str) -> str:
    """A Python that has the distribution; skips the test if there is none."""
    code = f"from importlib.metadata import version; version({distribution!r})"
    for python in filter(None, (os.environ.get("PIERAY_CLIENTS"), str(MADE), sys.executable)):
        if (
            Path(python).exists()
            and not subprocess.run([python, "-c", code], capture_output=True, check=False).returncode
        ):
            return python
    return pytest.skip(f"{distribution} is not installed: `make clients` installs it")


@pytest.fixture(scope="module")
def url(engines: Callable[[str], Any]) -> Iterator[str]:
    with hosted(engines("socket"), Guard()) as found:
        yield found


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_works_with_another_address_alone(name: str, request: pytest.FixtureRequest) -> None:
    python = python_with(CLIENTS[name])
    url, engine = request.getfixturevalue("url"), request.getfixturevalue("engine")
    assert engine.models()
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [python, str(HERE / f"with_{name}.py"), url, str(TOKENIZER)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].startswith(name.replace("_", "-")), "its last line is its version"


def test_every_client_has_a_script_and_is_installed_by_the_target() -> None:
    assert {path.stem.removeprefix("with_") for path in HERE.glob("with_*.py")} == set(CLIENTS)
    lines = (HERE / "requirements.txt").read_text().replace("lm-eval", "lm_eval").splitlines()
    assert set(CLIENTS.values()) <= {line.partition("[")[0].split(" ")[0] for line in lines}
