"""`pieray check`: what a program is, what it imports, and what it will need and does not declare."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pieray.errors import InvalidRequest, NotFound
from pieray.programs import manifest, sources
from pieray.programs.sources import ProgramSource
from pieray.toolchain import py
from pieray.toolchain.build import declared_in

CAPABILITIES = ("http", "mcp", "messaging", "store", "children")
"""Interfaces whose handlers take the capability of the same name."""
SDK = "inferlet"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.  `warnings` do not keep it from being launched."""

    name: str
    version: str
    kind: str
    """ "python" or "component"."""
    num_bytes: int
    imports: dict[str, list[str]]
    """Handlers by interface, of a component; of Python source the capabilities' modules that it names."""
    capabilities: dict[str, Any]
    limits: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def check(path: Path) -> Report:
    """Check a .py or .wasm file or a folder.  Raises ConfigError (manifest), InvalidRequest, NotFound."""
    if not path.exists():
        raise NotFound(f"there is no {path}")
    if path.is_dir():
        declared_in(path)
    source = sources.resolve(str(path.resolve()))
    imports, is_exact = _python(source) if source.source else (_component(source), False)
    return Report(
        source.name,
        source.version,
        "python" if source.source else "component",
        len(source.component) or len(source.source.encode()),
        imports,
        dict(source.capabilities),
        dict(source.limits),
        _warnings(source, imports, is_exact),
    )


def _python(source: ProgramSource) -> tuple[dict[str, list[str]], bool]:
    tree = py.check(source.source, source.filename)
    named = _names_of_sdk(tree)
    return {name: [] for name in CAPABILITIES if name in named}, True


def _names_of_sdk(tree: ast.Module) -> set[str]:
    """Names imported from the SDK, and attributes that are read of it (or of its `_host`)."""
    found: set[str] = set()
    aliases: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == SDK:
            found |= {(node.module or "").partition(".")[2], *(alias.name for alias in node.names)}
            aliases |= {alias.asname or alias.name for alias in node.names if alias.name == "_host"}
        elif isinstance(node, ast.Import):
            aliases |= {alias.asname or SDK for alias in node.names if alias.name.partition(".")[0] == SDK}
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith(f"{SDK}.")}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.add(node.attr)
    return found


def _component(source: ProgramSource) -> dict[str, list[str]]:
    """Its handlers by interface, once it has been checked as an engine would; raises InvalidRequest."""
    from wasmtime import component as wc

    from pieray.wasm.engine import new_engine
    from pieray.wasm.host import WasmHost

    host = WasmHost("thread", 1)
    try:
        program = host.load(source.component, source.name)
    finally:
        host.close()
    if program.takes_source:
        raise InvalidRequest(f"{source.name} exports run-source: it is an interpreter; an inferlet exports run alone")
    engine = new_engine()
    found = {}
    for name, extern in wc.Component(engine, source.component).type.imports(engine).items():
        items = [item for item, e in extern.ty.exports(engine).items() if hasattr(e.ty, "params")]
        if items:
            found[name.partition("/")[2].partition("@")[0] if name.startswith("pieray:") else name] = items
    return found


def _warnings(source: ProgramSource, imports: dict[str, list[str]], is_exact: bool) -> list[str]:
    found = []
    is_runtime = not is_exact and all(name in imports for name in CAPABILITIES)  # an interpreter: it imports everything
    for name in () if is_runtime else CAPABILITIES:
        if name in imports and not source.capabilities.get(name):
            verb = "uses" if is_exact else "imports"
            found.append(f"it {verb} {name} and does not declare it: those handlers will be denied")
    if source.source and manifest.BLOCK in source.source.splitlines() and not manifest.has_block(source.source):
        found.append(f"a block `{manifest.BLOCK}` behind the first code or docstring is not read: put it first")
    return found
