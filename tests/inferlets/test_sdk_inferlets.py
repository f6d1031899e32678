"""The same completion in C, Rust and JavaScript: equal to the Python one, forks included."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from toolchains import needs

from pieray import ProgramSource
from pieray.errors import GuestFailed, QuotaExceeded
from pieray.programs import inferlets_folder, resolve
from pieray.toolchain import c, js, rust

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["12+7=", "the", 'Say "é\\": 😀\n\t']
SEEDED = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.01}

_spec = importlib.util.spec_from_file_location("build_inferlets", ROOT / "tools" / "build_inferlets.py")
assert _spec is not None
assert _spec.loader is not None
build_inferlets = importlib.util.module_from_spec(_spec)
sys.modules["build_inferlets"] = build_inferlets
_spec.loader.exec_module(build_inferlets)


@pytest.fixture(scope="module", params=["completion-c", "completion-rust", "completion-js"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ProgramSource:
    """The committed component; of JavaScript, whose component is too big for that, one built now."""
    if request.param != "completion-js":
        return resolve(request.param)
    needs("js")
    target = tmp_path_factory.mktemp("js") / "completion-js.wasm"
    js.build(inferlets_folder() / "completion-js" / "main.js", target)
    return resolve(str(target))


def python(engine: Any, **arguments: Any) -> Any:
    return engine.launch("text-completion", **arguments).result(timeout=60)


@pytest.mark.parametrize("options", [{}, {**SEEDED, "seed": 7}, {"temperature": 0.7, "seed": 2**40 + 1}])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_completes_as_the_python_one_does(
    engine: Any, program: ProgramSource, prompt: str, options: dict[str, Any]
) -> None:
    given = {"prompt": prompt, "max_tokens": 20, **options}
    process = engine.launch(program, given)
    streamed = "".join(event.text for event in process)
    result = process.result(timeout=60)
    assert result == python(engine, **given)
    assert streamed == result["text"]


def test_forks_of_one_prompt_equal_runs_alone(engine: Any, program: ProgramSource) -> None:
    given = {"prompt": "the cat and the dog", "max_tokens": 12, **SEEDED}
    forks = engine.launch(program, given, n=4, seed=3).result(timeout=60)
    assert forks == [python(engine, **given, seed=3 + i) for i in range(4)]
    assert len({fork["text"] for fork in forks}) > 1


def test_a_handlers_error_keeps_its_class(engine: Any, program: ProgramSource) -> None:
    with pytest.raises(QuotaExceeded, match="pages"):
        engine.launch(program, prompt="12+7=", limits={"pages": 0}).result(timeout=60)


def test_its_own_error_is_told(engine: Any, program: ProgramSource) -> None:
    with pytest.raises(GuestFailed, match='(Value|Type)Error: the input has no "prompt"'):
        engine.launch(program).result(timeout=60)


@pytest.mark.parametrize("folder", build_inferlets.committed(), ids=lambda folder: folder.name)
def test_the_committed_component_was_built_from_the_sources_here(folder: Path) -> None:
    recorded = json.loads((folder / "built.json").read_text())
    assert recorded == build_inferlets.record(folder, build_inferlets.committed()[folder])


@pytest.mark.parametrize(("language", "build"), [("c", c.build), ("rust", rust.build)])
def test_the_sources_build_and_run(engine: Any, language: str, build: Any, tmp_path: Path) -> None:
    needs(language)
    entry = inferlets_folder() / f"completion-{language}" / ("main.c" if language == "c" else "main.rs")
    build(entry, tmp_path / "rebuilt.wasm")
    given = {"prompt": "12+7=", "max_tokens": 8}
    assert engine.launch(str(tmp_path / "rebuilt.wasm"), given).result(timeout=60) == python(engine, **given)
