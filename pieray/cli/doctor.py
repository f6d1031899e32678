"""`pieray doctor`: is all here that pieray needs?  One line each, with what to do about it."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from pieray.cli.checks import Check
from pieray.cli.guard import Debug, guard
from pieray.cli.model_checks import model_checks
from pieray.cli.options import Json

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
MODEL_HELP = "Check this model alone: whether it can be served, which way, what memory it needs; a folder or a name."
CheckedModel = Annotated[str | None, typer.Option("--model", metavar="PATH", help=MODEL_HELP)]

LEAST_MEMORY_BYTES = 2 << 30
LEAST_SHARED_MEMORY_BYTES = 256 << 20


def doctor(model: CheckedModel = None, json: Json = False, debug: Debug = False) -> None:
    """Check this machine: versions, features, memory, engines; or a model.  Exit code 1 if what is needed is broken."""
    with guard(debug=debug):
        found = []
        for check in run_checks() if model is None else model_checks(model):
            found.append(check)
            if not json:
                _print(check)
        if json:
            typer.echo(json_module.dumps([dataclasses.asdict(check) for check in found]))
        if any(check.status == "fail" for check in found):
            raise typer.Exit(1)


def run_checks() -> Iterator[Check]:
    """All findings, as they come; a check that breaks is a finding too."""
    machine = (_python, _packages, _fibers, _compiler, _cache, _model, _gpu, _memory, _shared_memory)
    for check in (*machine, _auth, _engine):
        yield from _guarded(check)


def _guarded(check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except Exception as error:  # noqa: BLE001 - whatever is broken, the other checks go on
        yield Check("fail", check.__name__.strip("_"), f"{type(error).__name__}: {error}")


def _print(check: Check) -> None:
    typer.secho(f"{check.status:<5}", fg=COLOURS[check.status], nl=False)
    hint = f"  -> {check.hint}" if check.hint else ""
    typer.echo(f" {check.name}: {check.detail}{hint}")


def _python() -> Iterator[Check]:
    from importlib.metadata import metadata

    from packaging.specifiers import SpecifierSet

    wanted = metadata("pieray")["Requires-Python"] or ">=3.11"
    version = ".".join(map(str, sys.version_info[:3]))
    status = "ok" if SpecifierSet(wanted).contains(version) else "fail"
    yield Check(status, "python", version, "" if status == "ok" else f"pieray needs {wanted}")


def _packages() -> Iterator[Check]:
    """What pieray's own metadata requires against what is installed."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    for requirement in map(Requirement, requires("pieray") or []):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Check("fail", requirement.name, "not installed", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            yield Check("ok", requirement.name, installed)
        else:
            yield Check("fail", requirement.name, installed, f"pip install '{requirement}'")


def _fibers() -> Iterator[Check]:
    from pieray.wasm.native import missing_async_symbols

    missing = missing_async_symbols()
    if missing:
        yield Check(
            "warn",
            "fibers",
            f"wasmtime lacks {', '.join(missing)}",
            "each inferlet takes a thread, which is fine to some hundred",
        )
    else:
        yield Check("ok", "fibers", "wasmtime exports what they need")


def _compiler() -> Iterator[Check]:
    import os
    import shutil

    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        yield Check("warn", "C compiler", "none", "install one (gcc, clang): torch computes on CPUs without, slower")
    else:
        yield Check("ok", "C compiler", found)


def _cache() -> Iterator[Check]:
    import tempfile

    from pieray.wasm.cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Check("fail", "cache", f"{folder}: {error.strerror}", "set PIERAY_CACHE to a folder you may write to")
        return
    built = any(folder.glob("python-runtime-*.wasm"))
    detail = f"{folder}, Python runtime {'built' if built else 'not built yet: the first run takes 30 s longer'}"
    yield Check("ok", "cache", detail)


def _model() -> Iterator[Check]:
    from pieray.assets import model_folder

    folder = model_folder("pie-tiny")
    missing = [f for f in ("model.safetensors", "tokenizer.json") if not (folder / f).exists()]
    if missing:
        yield Check("fail", "pie-tiny", f"{', '.join(missing)} missing in {folder}", "install pieray again")
    else:
        yield Check("ok", "pie-tiny", f"{(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


def _gpu() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check("ok", "GPU", ", ".join(names))
    else:
        yield Check("ok", "GPU", "none that torch can use: models run on the CPU")


def _memory() -> Iterator[Check]:
    import psutil

    free = psutil.virtual_memory().available
    detail = f"{free / (1 << 30):.1f} GiB free"
    enough = free >= LEAST_MEMORY_BYTES
    yield Check("ok" if enough else "warn", "memory", detail, "" if enough else "Ray and a model want 2 GiB")


def _shared_memory() -> Iterator[Check]:
    import shutil
    from pathlib import Path

    folder = Path("/dev/shm")  # noqa: S108 - where Ray keeps its object store
    if not folder.exists():
        yield Check("warn", "shared memory", "no /dev/shm", "Ray keeps objects in files then, slower")
        return
    free = shutil.disk_usage(folder).free
    enough = free >= LEAST_SHARED_MEMORY_BYTES
    hint = "" if enough else "in a container: --shm-size=1g; Ray keeps objects in files otherwise, slower"
    yield Check("ok" if enough else "warn", "shared memory", f"{free / (1 << 20):.0f} MiB free", hint)


def _auth() -> Iterator[Check]:
    import os

    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() == "disabled":
        yield Check("warn", "Ray's token", "RAY_AUTH_MODE=disabled", "whoever reaches Ray's ports runs code here")
    else:
        yield Check("ok", "Ray's token", mode or "asked for by clusters that pieray starts")


def _engine() -> Iterator[Check]:
    from pieray.cli.engines import open_running
    from pieray.cluster import up_state
    from pieray.errors import PierayError

    running = up_state.all_alive()
    if not running:
        yield Check("ok", "engine", "none is up on this machine; `pieray up` starts one")
    for state in running:
        place = f"namespace {state.namespace} at {state.address}"
        try:
            with open_running(None, state.namespace) as engine:
                num_actors = len(engine.status()["actors"])
        except PierayError as error:
            yield Check("fail", "engine", f"{place}: {error.message}", "pieray down, pieray up")
        else:
            yield Check("ok", "engine", f"{place}, {num_actors} actors")
