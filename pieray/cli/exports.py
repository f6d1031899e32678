"""`pieray exports` and `pieray exports drop`: KV pages that inferlets have left under a name."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from pieray.cli.engines import open_running
from pieray.cli.guard import Debug, guard
from pieray.cli.light import LightCommand, LightGroup
from pieray.cli.lists import show
from pieray.cli.options import Address, Json, Namespace
from pieray.cli.output import say

COLUMNS = ("name", "access", "tenant", "owner", "num_pages", "num_tokens", "pinned", "expires_in_ms", "num_importers")

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `pieray exports` shows it.", show_default=False)]
Access = Annotated[str, typer.Option(help="owner, tenant or public: if several have the name.")]
Tenant = Annotated[str, typer.Option(help="Its tenant, likewise.")]
User = Annotated[str, typer.Option(help="Its owner, likewise.")]

exports = typer.Typer(cls=LightGroup, help="Show the exports of KV pages, or drop one.", invoke_without_command=True)


@exports.callback()
def show_exports(
    context: typer.Context,
    address: Address = None,
    namespace: Namespace = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the exports of KV pages of all tenants, or drop one."""
    if context.invoked_subcommand is None:
        with guard(debug=debug), open_running(address, namespace) as engine:
            show(engine.exports(), COLUMNS, json=json, nothing="nothing is exported")


@exports.command(cls=LightCommand)
def drop(
    name: Name,
    access: Access = "",
    tenant: Tenant = "",
    user: User = "",
    address: Address = None,
    namespace: Namespace = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take an export away; inferlets that have it open keep its pages."""
    with guard(debug=debug), open_running(address, namespace) as engine:
        dropped = engine.drop_export(name, access=access, tenant=tenant, user=user)
        if json:
            typer.echo(json_module.dumps(dropped))
        else:
            say(f"dropped {dropped['name']} ({dropped['access']}) of {dropped['tenant']}/{dropped['owner']}")
