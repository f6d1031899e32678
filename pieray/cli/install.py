"""`pieray install` and `pieray uninstall`: programs that an engine keeps, to be launched by name."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from pieray.cli.engines import open_running
from pieray.cli.guard import Debug, guard
from pieray.cli.options import Address, Json, Namespace
from pieray.cli.output import say
from pieray.programs.sources import resolve

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE_OR_FOLDER", help="A .py or .wasm file, or a folder with inferlet.toml.", show_default=False
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@VERSION]",
        help="As `pieray inferlets` shows it; without version, all of them.",
        show_default=False,
    ),
]


def install(
    program: File, address: Address = None, namespace: Namespace = None, json: Json = False, debug: Debug = False
) -> None:
    """Keep a program on a running engine under its name and version."""
    with guard(debug=debug):
        source = resolve(program)
        with open_running(address, namespace) as engine:
            facts = engine.install(source)
        if json:
            typer.echo(json_module.dumps(facts))
        else:
            say(
                f"installed {facts['name']}@{facts['version']}, {facts['num_bytes']} bytes, "
                f"SHA-256 {facts['sha256'][:16]}..."
            )


def uninstall(name: Name, address: Address = None, namespace: Namespace = None, debug: Debug = False) -> None:
    """Forget an installed program; inferlets that run go on."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        for dropped in engine.uninstall(name):
            say(f"uninstalled {dropped}")
