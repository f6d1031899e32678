"""The SDKs' generated parts: up to date, whole, and of the types that the host checks."""

from __future__ import annotations

from pathlib import Path

import pytest
from toolchains import needs, write_project
from wasmtime import component as wc

from pieray.toolchain import c_header
from pieray.toolchain.build import build
from pieray.toolchain.generated import files
from pieray.wasm.engine import new_engine
from pieray.wasm.signatures import HANDLERS, PACKAGE, VERSION, describe_func
from pieray.wit import Api, Function, Interface, api


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_committed_file_follows_from_the_wit(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == files()[path], "run `python tools/generate_sdk.py`"


def test_a_function_that_no_longer_fits_in_registers_is_refused() -> None:
    wide = Function("wide", tuple((f"p{i}", "string") for i in range(9)), "u32", True, "")
    with pytest.raises(ValueError, match="18 flat parameters"):
        c_header.header(Api("p:q", "1.0.0", "", api().enums, (Interface("i", "", (wide,)),)))


def imports_of(component: Path) -> dict[str, dict[str, str]]:
    engine = new_engine()
    found = {}
    for name, extern in wc.Component.from_file(engine, component).type.imports(engine).items():
        items = extern.ty.exports(engine).items()
        functions = {item: describe_func(e.ty) for item, e in items if hasattr(e.ty, "params")}
        if functions:
            found[name.removeprefix(f"{PACKAGE}/").removesuffix(f"@{VERSION}")] = functions
    return found


def all_handlers() -> dict[str, dict[str, str]]:
    return {i: {f: str(s) for f, s in functions.items()} for i, functions in HANDLERS.items()}


def names() -> list[tuple[str, str]]:
    return [(i.name.replace("-", "_"), f.name.replace("-", "_")) for i in api().interfaces for f in i.functions]


@pytest.mark.slow
def test_the_c_header_declares_every_handler_with_its_type(tmp_path: Path) -> None:
    """A component that refers to every function of the header imports exactly the handler API."""
    needs("c")
    table = ", ".join(f"(void *){i}_{f}" for i, f in names())
    source = f"""#include "guest.h"
static void *const all[] = {{{table}}};
PIERAY_EXPORT("run") outcome *run(char *data, uint32_t size) {{ return succeed((text){{all[data[0] & 63], size}}); }}
"""
    assert imports_of(build(write_project(tmp_path, "c", source))) == all_handlers()


RUST_VALUES = {
    "u32": "1",
    "s32": "1",
    "u64": "1",
    "f32": "1.0",
    "bool": "true",
    "string": '"x"',
    "list<u32>": "&[1]",
    "list<f32>": "&[1.0]",
    "list<string>": '&["x"]',
}
RUST_ENUMS = {
    "log-level": "inferlet::LogLevel::Debug",
    "access": "inferlet::Access::Owner",
    "grammar-kind": "inferlet::GrammarKind::Regex",
    "link-kind": "inferlet::LinkKind::None",
}


@pytest.mark.slow
def test_the_rust_crate_has_every_handler_with_its_type(tmp_path: Path) -> None:
    """A component that calls every safe function imports exactly the handler API."""
    needs("rust")
    calls = []
    for interface in api().interfaces:
        for f in interface.functions:
            values = ", ".join(RUST_VALUES.get(kind) or RUST_ENUMS[kind] for _, kind in f.params)
            calls.append(f"let _ = inferlet::{interface.name}::{f.name.replace('-', '_')}({values});")
    body = "\n    ".join(calls)
    source = f"""use inferlet::{{json::Value, Failure}};
inferlet::main!(run);
fn run(_: &Value) -> Result<Value, Failure> {{
    {body}
    Ok(Value::Null)
}}
"""
    assert imports_of(build(write_project(tmp_path, "rust", source))) == all_handlers()
