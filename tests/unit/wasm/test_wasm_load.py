"""What may be loaded, and what compiling may cost."""

from __future__ import annotations

import os
import threading
import time

import pytest
from components import RUN, bomb, component
from wasm_fakes import GUESTS_C, Watched

from pieray.errors import EngineError, InvalidRequest, QuotaExceeded
from pieray.wasm import compiler
from pieray.wasm.compiler import CompileLimits, compiled
from pieray.wasm.host import WasmHost

MISBEHAVE = (GUESTS_C / "misbehave.wasm").read_bytes()
WITH_TWO_PARAMETERS = RUN.replace('"input" string', '"input" string) (param "b" u32').replace(
    "i32 i32) (result", "i32 i32 i32) (result", 1
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PIERAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_minimal_component_loads_and_runs(host):
    assert Watched(host, host.load(component(), "minimal"), "x").value == ""


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\x7fELF" + b"\0" * 100, "precompiled native code"),
        (b"\0asm\x01\0\0\0", "a core module; give a component"),
        (b"print('hello')", "no WebAssembly component"),
        (b"", "no WebAssembly component"),
    ],
)
def test_only_components_are_loaded(host, content, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        host.load(content, "it")


def test_precompiled_code_is_refused_from_a_file_too(host, cache):
    path = compiled(MISBEHAVE, "misbehave", CompileLimits())
    assert path.read_bytes().startswith(b"\x7fELF")
    with pytest.raises(InvalidRequest, match="precompiled"):
        host.load(path, "sneaky")


def test_garbage_behind_the_magic_is_invalid(host, cache):
    with pytest.raises(InvalidRequest, match="junk is no valid component"):
        host.load(compiler.COMPONENT_MAGIC + b"garbage", "junk")
    assert list(cache.glob("*.cwasm")) == []


@pytest.mark.parametrize(
    "name",
    ["wasi:http/outgoing-handler@0.2.0", "pieray:inferlet/kv@0.9.0", "pieray:inferlet/gpu@0.2.0", "evil:host/exec"],
)
def test_other_imports_are_refused_by_name(host, name):
    with pytest.raises(InvalidRequest, match=f"it imports {name}"):
        host.load(component(f'(import "{name}" (instance (export "f" (func))))'), "it")


def test_a_bare_function_import_is_refused(host):
    with pytest.raises(InvalidRequest, match="it imports f, which is no interface"):
        host.load(component('(import "f" (func))'), "it")


def test_an_import_with_another_type_is_refused(host):
    """The codecs read by position: a guest that lies about types would read or write the host's memory."""
    function = '(export "page-size" (func (param "x" string) (result u64)))'
    imports = f'(import "pieray:inferlet/kv@0.2.0" (instance {function}))'
    with pytest.raises(InvalidRequest, match=r"kv#page-size as func\(string\) -> u64; it is func\(\) -> u32"):
        host.load(component(imports), "liar")


def test_a_function_that_the_api_has_not_is_refused(host):
    with pytest.raises(InvalidRequest, match="kv#steal, which is not in version 0.2.0"):
        host.load(component('(import "pieray:inferlet/kv@0.2.0" (instance (export "steal" (func))))'), "it")


def test_a_wasi_function_with_other_parameters_is_refused(host):
    function = '(export "get-random-bytes" (func (param "n" string) (result (list u8))))'
    imports = f'(import "wasi:random/random@0.2.3" (instance {function}))'
    with pytest.raises(InvalidRequest, match="get-random-bytes as func"):
        host.load(component(imports), "liar")


@pytest.mark.parametrize(
    ("body", "complaint"), [("", "it does not export run; it has none"), (WITH_TWO_PARAMETERS, "exports run as func")]
)
def test_the_export_must_have_its_type(host, body, complaint):
    with pytest.raises(InvalidRequest, match=complaint):
        host.load(component(body=body), "it")


@pytest.fixture(scope="module")
def compile_bomb():
    return bomb(300)


@pytest.mark.slow
def test_a_compile_bomb_ends_at_its_cpu_limit(cache, compile_bomb):
    began = time.monotonic()
    with pytest.raises(QuotaExceeded, match="bomb took more than 1 s of CPU time"):
        compiled(compile_bomb, "bomb", CompileLimits(cpu_time_s=1))
    assert time.monotonic() - began < 30
    assert [p.suffix for p in cache.iterdir()] == [".lock"]


def test_a_compile_bomb_ends_at_its_memory_limit(cache, compile_bomb):
    with pytest.raises(QuotaExceeded, match="64000000 bytes of memory"):
        compiled(compile_bomb, "bomb", CompileLimits(memory_bytes=64_000_000))


@pytest.mark.slow
def test_a_compile_bomb_ends_at_its_wall_limit(cache, compile_bomb):
    with pytest.raises(QuotaExceeded, match=r"took more than 0.3 s"):
        compiled(compile_bomb, "bomb", CompileLimits(wall_time_s=0.3))


def test_one_compilation_serves_all_who_ask_at_once(cache, monkeypatch):
    runs = []
    compile_ = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda *a: (runs.append(1), compile_(*a)))
    threads = [threading.Thread(target=compiled, args=(component(), "it", CompileLimits())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(runs) == 1
    assert len(list(cache.glob("*.cwasm"))) == 1


def test_a_damaged_file_in_the_cache_is_compiled_again(cache):
    path = compiled(component(), "it", CompileLimits())
    path.write_bytes(path.read_bytes()[:100])
    host = WasmHost()
    try:
        assert Watched(host, host.load(component(), "it"), "x").value == ""
        assert path.stat().st_size > 100
    finally:
        host.close()


def test_a_cache_that_others_can_write_is_refused(cache):
    cache.mkdir(mode=0o777)
    os.chmod(cache, 0o777)
    with pytest.raises(EngineError, match="writable by no other"):
        compiled(component(), "it", CompileLimits())
