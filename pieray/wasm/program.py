"""A loaded component: checked, compiled, linked to the host functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import wasmtime
from wasmtime import component as wc

from pieray.errors import InvalidRequest
from pieray.wasm import binding, native, wasi
from pieray.wasm.call_counts import CallCounts
from pieray.wasm.memories import Memories
from pieray.wasm.pooling import Slots
from pieray.wasm.signatures import HANDLERS, INFERLET_EXPORTS, PACKAGE, RUNTIME_EXPORTS, VERSION, describe_func


@dataclass(frozen=True, slots=True)
class Program:
    """What `WasmHost.spawn` runs; any number of guests share it."""

    name: str
    engine: wasmtime.Engine
    component: wc.Component
    linker: wc.Linker
    exports: Mapping[str, wc.ExportIndex]
    """Of one of the worlds inferlet and python-runtime."""
    memories: Memories
    slots: Slots | None
    """That its instances have; None: each has memory of its own."""

    @property
    def takes_source(self) -> bool:
        return "run-source" in self.exports


class Imports:
    """The host functions of one executor, made once; they must outlive every linker that has them."""

    def __init__(self, executor: str) -> None:
        self.counts = CallCounts()
        self.handlers = binding.handler_callbacks(executor, self.counts)
        self.wasi = wasi.callbacks(executor)
        self.destructors = wasi.destructors()

    def program(
        self, engine: wasmtime.Engine, component: wc.Component, name: str, memories: Memories, slots: Slots | None
    ) -> Program:
        """Check the component's imports and exports and link it.  InvalidRequest names what is wrong."""
        kind = component.type
        exports = _checked_exports(kind.exports(engine), name)
        linker = wc.Linker(engine)
        linker.allow_shadowing = True
        with linker.root() as root:
            for import_name, extern in kind.imports(engine).items():
                self._define(engine, root, import_name, extern.ty, name)
        linker.define_unknown_imports_as_traps(component)
        indexes = {export: component.get_export_index(export) for export in exports}
        return Program(name, engine, component, linker, indexes, memories, slots)

    def _define(self, engine: wasmtime.Engine, root: wc.LinkerInstance, full: str, kind: Any, name: str) -> None:
        interface, _, version = full.partition("@")
        package, _, short = interface.partition("/")
        if not isinstance(kind, wc.ComponentInstanceType):
            raise InvalidRequest(f"{name} imports {full}, which is no interface of {PACKAGE} or WASI")
        items = kind.exports(engine)
        if package == PACKAGE and version == VERSION and (short in HANDLERS or short == "types"):
            _check_handlers(short, items, name)
            functions = self.handlers.get(short, {})
        elif interface.startswith(wasi.INTERFACES) and version.startswith("0.2."):
            _check_wasi(interface, items, name)
            functions = self.wasi.get(interface, {})
        else:
            raise InvalidRequest(
                f"{name} imports {full}; an inferlet may import {PACKAGE}@{VERSION} and {', '.join(wasi.INTERFACES)}0.2"
            )
        with root.add_instance(full) as instance:
            for item, extern in items.items():
                if item in functions:
                    native.add_func(instance, item, functions[item])
                elif isinstance(extern.ty, wc.ResourceType) and item in wasi.RESOURCES:
                    native.add_resource(instance, item, wasi.RESOURCES[item], self.destructors[item])


def _checked_exports(exports: dict[str, Any], name: str) -> list[str]:
    """Those of its world: of python-runtime, if it has them all, else of inferlet."""
    wanted = RUNTIME_EXPORTS if exports.keys() >= RUNTIME_EXPORTS.keys() else INFERLET_EXPORTS
    for export, kind in wanted.items():
        if export not in exports:
            raise InvalidRequest(f"{name} does not export {export}; it has {', '.join(exports) or 'none'}")
        given = describe_func(exports[export].ty) if isinstance(exports[export].ty, wc.FuncType) else "no function"
        if given != kind:
            raise InvalidRequest(f"{name} exports {export} as {given}; it must be {kind}")
    return list(wanted)


def _check_handlers(interface: str, items: dict[str, Any], name: str) -> None:
    """The codecs trust the types: each function must be in the table, with exactly its type."""
    for item, extern in items.items():
        if not isinstance(extern.ty, wc.FuncType):
            continue
        wanted = HANDLERS.get(interface, {}).get(item)
        where = f"{PACKAGE}/{interface}#{item}"
        if wanted is None:
            raise InvalidRequest(f"{name} imports {where}, which is not in version {VERSION} of the handler API")
        found = describe_func(extern.ty)
        if found != str(wanted):
            raise InvalidRequest(f"{name} imports {where} as {found}; it is {wanted}")


def _check_wasi(interface: str, items: dict[str, Any], name: str) -> None:
    """What is lifted must have the types of the table; wasmtime checks what is lowered."""
    for item, (params, _) in wasi.FUNCTIONS.get(interface, {}).items():
        if item in items:
            found, wanted = describe_func(items[item].ty), f"func({', '.join(params)})"
            if found != wanted and not found.startswith(f"{wanted} -> "):
                raise InvalidRequest(f"{name} imports {interface}#{item} as {found}; its parameters are {wanted}")
