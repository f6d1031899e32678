"""Programs installed on a running engine: launched by name, with what their manifests allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pieray
from pieray.errors import Denied, InvalidRequest, NotFound
from pieray.programs.sources import resolve

WHO = """# /// inferlet
# name = "who-am-i"
# version = "{version}"
# [capabilities]
# store = true
# [limits]
# pages = 7
# ///
import json
from inferlet import _host

def main():
    capabilities = json.loads(_host.runtime.capabilities())
    limits = json.loads(_host.runtime.limits())["limits"]
    return [_host.runtime.program(), [k for k, v in capabilities.items() if v], limits["pages"]]
"""


@pytest.fixture
def who(engine: Any, tmp_path: Path) -> Iterator[Path]:
    """Two versions of a program, installed."""
    path = tmp_path / "who.py"
    for version in ("1.10.0", "1.9.0"):
        path.write_text(WHO.format(version=version))
        engine.install(str(path))
    yield path
    engine.uninstall("who-am-i")


def result(engine: Any, program: str, **options: Any) -> Any:
    return engine.launch(program, **options).result(timeout=60)


def test_a_name_launches_the_latest_version_with_its_manifest(engine: Any, who: Path) -> None:
    assert result(engine, "who-am-i") == ["who-am-i@1.10.0", ["store"], 7]
    assert result(engine, "who-am-i@1.9.0") == ["who-am-i@1.9.0", ["store"], 7]
    assert {row["version"] for row in engine.programs()} == {"1.9.0", "1.10.0"}


def test_a_launch_by_name_narrows_and_never_widens(engine: Any, who: Path) -> None:
    assert result(engine, "who-am-i", capabilities={"store": False, "children": True}, limits={"pages": 9}) == [
        "who-am-i@1.10.0",
        [],
        9,
    ]


def test_a_file_is_its_users_own_affair(engine: Any, who: Path) -> None:
    assert result(engine, str(who)) == ["who-am-i@1.9.0", ["store"], 7]
    assert result(engine, str(who), capabilities={"children": True})[1] == ["children"]


def test_what_is_refused_says_why(engine: Any, who: Path) -> None:
    with pytest.raises(InvalidRequest, match="a version never changes"):
        engine.install(pieray.ProgramSource("who-am-i", "x.py", source="def main(): ...", version="1.9.0"))
    with pytest.raises(Denied, match="embedded"):
        engine.install("text-completion")
    with pytest.raises(NotFound, match=r"1\.9\.0, 1\.10\.0"):
        engine.launch("who-am-i@3.0.0")
    with pytest.raises(NotFound, match="embedded inferlets: .*text-completion"):
        engine.launch("nobody-has-this-name")
    engine.user = "somebody-else"
    try:
        with pytest.raises(Denied, match="belongs to local/local"):
            engine.uninstall("who-am-i")
    finally:
        engine.user = "local"


def test_an_embedded_name_runs_in_the_engine_and_host_files_do_not(engine: Any, who: Path) -> None:
    """As children launch: by name alone."""
    embedded = pieray.ProgramSource("text-completion", "")
    assert engine.launch(embedded, prompt="3+4=", max_tokens=4).result(timeout=60)["num_tokens"] >= 1
    for name in (str(who), "/etc/passwd", "../inferlets/chat"):
        with pytest.raises(NotFound):
            engine.launch(pieray.ProgramSource(name, ""))


def test_a_component_is_installed_and_runs(engine: Any) -> None:
    guests = Path(__file__).parents[1] / "inferlets" / "guests_c"
    engine.install(resolve(str(guests / "completion.wasm")))
    try:
        text = result(engine, "completion", prompt="12+7=", max_tokens=8)["text"]
    finally:
        engine.uninstall("completion")
    assert text == result(engine, "text-completion", prompt="12+7=", max_tokens=8)["text"]
