"""The same completion in C, Rust and JavaScript: equal to the Python one, forks included."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from toolchains import needs, write_project

from pieray import ProgramSource
from pieray.errors import GuestFailed, GuestTrapped, QuotaExceeded
from pieray.programs.sources import inferlets_folder, resolve
from pieray.toolchain import c, js, rust
from pieray.toolchain.build import build

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


@pytest.mark.parametrize(("language", "make"), [("c", c.build), ("rust", rust.build)])
def test_the_sources_build_and_run(engine: Any, language: str, make: Any, tmp_path: Path) -> None:
    needs(language)
    entry = inferlets_folder() / f"completion-{language}" / ("main.c" if language == "c" else "main.rs")
    make(entry, tmp_path / "rebuilt.wasm")
    given = {"prompt": "12+7=", "max_tokens": 8}
    assert engine.launch(str(tmp_path / "rebuilt.wasm"), given).result(timeout=60) == python(engine, **given)


PANICS = """use inferlet::{json::Value, Failure};
inferlet::main!(run);
fn run(input: &Value) -> Result<Value, Failure> {
    let texts: Vec<&str> = input["texts"].as_list().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    Ok(Value::from(texts[2]))
}
"""


def test_a_panic_in_rust_is_told_with_its_place(engine: Any, tmp_path: Path) -> None:
    needs("rust")
    build(write_project(tmp_path, "rust", PANICS))
    texts = ["a", "\u00e9\n", '\U0001f600"\\']
    assert engine.launch(str(tmp_path), texts=texts).result(timeout=60) == texts[2]
    with pytest.raises(GuestTrapped, match="unreachable") as raised:
        engine.launch(str(tmp_path), texts=["a"]).result(timeout=60)
    assert "last log lines:\n  error: panicked at" in raised.value.message
    assert "the len is 1 but the index is 2', main.rs:5:" in raised.value.message


SPEAKS = """import { main } from "inferlet";

export const run = main(({ how }) => {
  console.log("now", { year: new Date(Date.now()).getFullYear() });
  if (how === "throw") throw new RangeError("too far");
  return [Math.random(), Math.random()];
});
"""


def test_javascript_has_clock_chance_and_console_and_its_errors_have_places(engine: Any, tmp_path: Path) -> None:
    needs("js")
    build(write_project(tmp_path, "js", SPEAKS))
    process = engine.launch(str(tmp_path), how="")
    one, other = process.result(timeout=60)
    assert 0 <= one < 1
    assert one != other
    (line,) = process.logs
    assert line.startswith('info: now {"year":20')
    assert engine.launch(str(tmp_path), how="").result(timeout=60)[0] != one
    with pytest.raises(GuestFailed, match="RangeError: too far") as raised:
        engine.launch(str(tmp_path), how="throw").result(timeout=60)
    assert ":5:" in raised.value.message  # the line
