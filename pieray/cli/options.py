"""Options that several commands share, and the settings they describe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pieray import config
from pieray.cli.arguments import parse_settings
from pieray.config import Config
from pieray.errors import ConfigError
from pieray.mapping import from_mapping

ADDRESS_HELP = "Ray cluster: auto or HOST:PORT; local for a Ray of its own.  Without it RAY_ADDRESS, then this machine."
SET_HELP = "Any setting of the engine, such as limits.pages=64 or actor_pool=2."

Address = Annotated[str | None, typer.Option(help=ADDRESS_HELP)]
Namespace = Annotated[str | None, typer.Option(help="Ray namespace of the engine; pieray if not given.")]
Model = Annotated[str | None, typer.Option(help="Folder of a model, or the name of an embedded one.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
NumPages = Annotated[int | None, typer.Option(help="KV pages in the pool.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)]
InstanceId = Annotated[str, typer.Argument(metavar="ID", help="As `pieray ps` shows it.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def engine_settings(
    model: str | None, device: str | None, num_pages: int | None, pairs: list[str] | None
) -> dict[str, Any]:
    """What the options say, as the nested mapping that `pieray.start` takes; raises ConfigError."""
    short = {"path": model, "device": device, "num_pages": num_pages}
    given = {name: value for name, value in short.items() if value is not None}
    settings = config.merge(parse_settings(pairs or []), {"model": given} if given else {})
    if "namespace" in settings:
        raise ConfigError("the namespace is given with --namespace")
    from_mapping(Config, settings)
    return settings
