"""The commands of `pieray`, put together."""

from __future__ import annotations

import importlib
from typing import Any

import typer

from pieray.cli.light import LightCommand, LightGroup

COMMANDS = {
    "run": "run",
    "attach": "run",
    "serve": "serve",
    "keys": "keys",
    "up": "up",
    "down": "up",
    "ps": "lists",
    "kill": "lists",
    "top": "top",
    "trace": "trace",
    "models": "lists",
    "adapters": "lists",
    "inferlets": "lists",
    "install": "install",
    "uninstall": "install",
    "new": "build",
    "build": "build",
    "check": "build",
    "doctor": "doctor",
    "version": "lists",
    "exports": "exports",
    "scale": "scale",
}
"""The module of `pieray.cli` that has each, in the order of the help."""


def application(only: str = "") -> typer.Typer:
    """All commands; or the one of that name, if there is one, without importing the others."""
    app = typer.Typer(
        cls=LightGroup,
        help="A programmable serving system for language models.",
        epilog="Exit codes: 0 done, 1 the inferlet failed, 2 usage, 3 the engine failed, 130, 143 and 129 interrupted.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_several,
    )
    for name in [only] if only in COMMANDS else COMMANDS:
        command = getattr(importlib.import_module(f"pieray.cli.{COMMANDS[name]}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(cls=LightCommand)(command)
    return app


def _several() -> None:
    """Typer makes an application with one command and no callback that command itself."""


def __getattr__(name: str) -> Any:
    """`app`: all commands."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return application()
