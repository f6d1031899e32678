"""`pieray new`, `build` and `check`, on real compilers where they are, and what is said where they are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toolchains import needs, write_project
from typer.testing import CliRunner

from pieray.cli.app import app
from pieray.config import ConfigError
from pieray.errors import InvalidRequest, NotFound
from pieray.toolchain import find
from pieray.toolchain.build import build
from pieray.toolchain.checks import check
from pieray.toolchain.find import MissingTool
from pieray.toolchain.scaffold import new

GUESTS_C = Path(__file__).resolve().parents[2] / "inferlets" / "guests_c"


def call(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


@pytest.mark.slow
def test_a_new_python_project_passes_its_own_tests_and_check(tmp_path: Path) -> None:
    code, output = call("new", str(tmp_path / "hello"))
    assert code == 0, output
    assert sorted(f.name for f in (tmp_path / "hello").iterdir()) == [
        "README.md",
        "inferlet.toml",
        "main.py",
        "test_main.py",
    ]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "hello")]
    done = subprocess.run(tests, capture_output=True, text=True, cwd=tmp_path / "hello", check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert build(tmp_path / "hello") == tmp_path / "hello" / "main.py"
    report = check(tmp_path / "hello")
    assert (report.name, report.version, report.kind, report.warnings) == ("hello", "0.1.0", "python", [])


@pytest.mark.parametrize("lang", ["c", *(pytest.param(lang, marks=pytest.mark.slow) for lang in ("rust", "js"))])
def test_a_new_project_in_another_language_builds_and_passes_check(tmp_path: Path, lang: str) -> None:
    new(tmp_path / "hello", lang)
    with pytest.raises(InvalidRequest, match="not built yet"):
        check(tmp_path / "hello")
    needs(lang)
    assert build(tmp_path / "hello") == tmp_path / "hello" / "hello.wasm"
    report = check(tmp_path / "hello")
    assert (report.name, report.kind) == ("hello", "component")
    assert "stream-text" in report.imports["plans"]
    assert report.warnings == []
    if lang != "js":  # whose runtime imports all that there is
        assert set(report.imports) == {"kv", "model", "plans", "queues", "samplers", "tickets"} | (
            {"runtime"} if lang == "rust" else set()
        )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("keep")
    for name, message in (("mine", "is there already"), ("../..", "the name of an inferlet"), ("a b", "the name of")):
        code, output = call("new", str(tmp_path / name))
        assert code == 2
        assert message in output
    assert call("new", str(tmp_path / "x"), "--lang", "cobol")[0] == 2
    assert [f.name for f in tmp_path.rglob("*")] == ["mine", "note"]


@pytest.mark.parametrize(
    ("language", "source", "message"),
    [
        ("c", '#include "guest.h"\nint x = y;\n', "main.c:2:9: error: use of undeclared identifier 'y'"),
        pytest.param("js", "export const run = ;\n", "main.js", marks=pytest.mark.slow),
        ("py", "def main(:\n", "main.py, line 1"),
        ("py", "x = 1\n", r"main.py defines no main\(\)"),
    ],
)
def test_a_fault_in_the_source_is_shown_as_the_compiler_says_it(
    tmp_path: Path, language: str, source: str, message: str
) -> None:
    if language != "py":
        needs(language)
    with pytest.raises(InvalidRequest, match=message):
        build(write_project(tmp_path, language, source))


def test_a_missing_tool_is_named_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(find, "RUSTC", ("rustc",))
    monkeypatch.setenv("PIERAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for variable in ("PIERAY_CLANG", "PIERAY_RUSTC", "PIERAY_NODE", "PIERAY_JCO"):
        monkeypatch.delenv(variable, raising=False)
    for look, message in (
        (find.clang, "apt-get install clang-19"),
        (find.rustc, "libstd-rust-dev-wasm32"),
        (find.node, "Node.js"),
        (lambda: find.node_modules("componentize-qjs"), "npm install"),
        (find.wasm_ld, "lld-19"),
    ):
        with pytest.raises(MissingTool, match=message) as raised:
            look()
        assert raised.value.exit_code == 2
    new(tmp_path / "hello", "c")
    code, output = call("build", str(tmp_path / "hello"))
    assert code == 2
    assert "clang with wasm-ld is not installed" in output


def test_check_tells_what_a_component_imports(tmp_path: Path) -> None:
    code, output = call("check", str(GUESTS_C / "completion.wasm"), "--json")
    assert code == 0
    report = json.loads(output)
    assert report["imports"]["queues"] == ["create", "close"]
    assert report["num_bytes"] == (GUESTS_C / "completion.wasm").stat().st_size


STORE = """{}
import inferlet
from inferlet import _host, http

def main():
    _host.store.get("k"), inferlet.mcp.servers()
"""


def test_check_warns_of_capabilities_that_are_used_and_not_declared(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(STORE.format('# /// inferlet\n# [capabilities]\n# http = ["a.org"]\n# ///'))
    report = check(path)
    assert set(report.imports) == {"store", "http", "mcp"}
    assert [warning.split()[2] for warning in report.warnings] == ["mcp", "store"]
    code, output = call("check", str(path))
    assert code == 0
    assert 'capabilities: {"http": ["a.org"]}' in output
    path.write_text('"""Doc."""\n' + STORE.format("# /// inferlet\n# [capabilities]\n# store = true\n# ///"))
    assert "is not read: put it first" in check(path).warnings[-1]


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, InvalidRequest, "has no inferlet.toml"),
        ({"inferlet.toml": "[capabilities]\nx = 1\n", "main.py": "def main(): ..."}, ConfigError, "capabilities.x"),
        ({"inferlet.toml": "", "main.py": "def main(:"}, InvalidRequest, "line 1"),
        ({"inferlet.toml": 'main = "x.wasm"', "x.wasm": b"\0asm\x0d\0\x01\0junk"}, InvalidRequest, "no valid comp"),
    ],
)
def test_check_refuses_what_could_not_be_launched(
    tmp_path: Path, files: dict[str, Any], error: Any, message: str
) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        check(folder)
    assert call("check", str(folder))[0] == 2
    with pytest.raises(NotFound):
        check(tmp_path / "gone")
