"""`pieray new`, `build` and `check`: from an empty folder to a program that can be launched."""

from __future__ import annotations

import dataclasses
import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from pieray.cli.guard import Debug, guard
from pieray.cli.options import Json
from pieray.cli.output import escaped, say

New = Annotated[
    Path, typer.Argument(metavar="NAME", help="A new folder; its name is the inferlet's.", show_default=False)
]
Lang = Annotated[str, typer.Option("--lang", help="py, js, c or rust.")]
Folder = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="With inferlet.toml; this one if not given.")]
Checked = Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", show_default=False)]


def new(name: New, lang: Lang = "py", debug: Debug = False) -> None:
    """Make the folder of a new inferlet: source, manifest, README, and tests in Python."""
    with guard(debug=debug):
        from pieray.toolchain.scaffold import new as scaffold

        for path in scaffold(name, lang):
            say(f"wrote {path}")


def build(folder: Folder = Path(), debug: Debug = False) -> None:
    """Build the component of a folder; of Python only the syntax is checked."""
    with guard(debug=debug):
        from pieray.toolchain.build import build as build_folder

        target = build_folder(folder)
        say(f"{target}: {target.stat().st_size} bytes")


def check(path: Checked, json: Json = False, debug: Debug = False) -> None:
    """Tell what a program is, what it imports and what it may reach; exit code 2 if it could not be launched."""
    with guard(debug=debug):
        from pieray.toolchain.checks import check as check_program

        report = check_program(path)
        if json:
            typer.echo(json_module.dumps(dataclasses.asdict(report)))
            return
        version = f"@{report.version}" if report.version else ""
        typer.echo(escaped(f"{report.name}{version}: {report.kind}, {report.num_bytes} bytes"))
        for interface, functions in report.imports.items():
            typer.echo(escaped(f"imports {interface}{': ' if functions else ''}{', '.join(functions)}"))
        allowed = {name: value for name, value in report.capabilities.items() if value}
        typer.echo(f"capabilities: {json_module.dumps(allowed) if allowed else 'none'}")
        if report.limits:
            typer.echo(f"limits: {json_module.dumps(report.limits)}")
        for warning in report.warnings:
            say(f"warning: {warning}")
