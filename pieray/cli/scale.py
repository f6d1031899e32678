"""`pieray scale N`: on how many device groups an engine has a model."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from pieray.cli.engines import open_running
from pieray.cli.guard import Debug, guard
from pieray.cli.options import Address, Json, Namespace
from pieray.cli.output import say

Replicas = Annotated[int, typer.Argument(metavar="N", help="Device groups, one at least.", show_default=False)]
Model = Annotated[str, typer.Option(metavar="NAME", help="Which of several models; else the default one.")]
Drain = Annotated[float, typer.Option(metavar="SECONDS", help="How long programs on those that go have to end.")]


def scale(
    replicas: Replicas,
    model: Model = "",
    drain: Drain = 600.0,
    address: Address = None,
    namespace: Namespace = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Have a model on so many device groups; those that go end with their last program."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        models = engine.scale(replicas, model=model, drain_s=drain)
        if json:
            typer.echo(json_module.dumps(models))
        else:
            found = next((one for one in models if one["name"] == model), models[0])
            say(f"{found['name']} is on {found['replicas']} device groups")
