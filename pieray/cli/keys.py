"""`pieray keys`: API keys of the HTTP server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pieray.cli.guard import Debug, guard
from pieray.cli.light import LightCommand, LightGroup
from pieray.cli.lists import show
from pieray.cli.options import Json
from pieray.cli.output import say
from pieray.cluster import up_state

COLUMNS = ("id", "tenant", "user", "role", "requests_per_minute", "tokens_per_minute", "max_priority", "created_at")

File = Annotated[str | None, typer.Option("--file", metavar="PATH", help="The file of keys; ~/.pieray/keys.db.")]
Tenant = Annotated[str, typer.Option(help="Whose names, pages and quotas its requests use.")]
User = Annotated[str, typer.Option(help="Who of the tenant answers for them.")]
Role = Annotated[str, typer.Option(help="user, or admin: installs programs, and sees all runs.")]
Requests = Annotated[int, typer.Option("--requests-per-minute", help="0: any number.")]
Tokens = Annotated[int, typer.Option("--tokens-per-minute", help="Of prompts and answers; 0: any number.")]
MaxPriority = Annotated[
    int, typer.Option("--max-priority", help="The highest that its launches may have, -100 to 100.")
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="As `pieray keys` shows it.", show_default=False)]

keys = typer.Typer(
    cls=LightGroup, help="Show, create or revoke API keys of `pieray serve`.", invoke_without_command=True
)


def key_file(path: str | None) -> Path:
    """The file of keys that is meant."""
    return Path(path) if path else up_state.home() / "keys.db"


@contextmanager
def _opened(path: str | None, *, create: bool = False) -> Iterator[Any]:
    from pieray.server.keys import Keys

    opened = Keys(key_file(path), create=create)
    try:
        yield opened
    finally:
        opened.close()


@keys.callback()
def show_keys(context: typer.Context, file: File = None, json: Json = False, debug: Debug = False) -> None:
    """Show, create or revoke API keys of `pieray serve`."""
    if context.invoked_subcommand is None:
        with guard(debug=debug), _opened(file) as opened:
            show(opened.rows(), COLUMNS, json=json, nothing="there are no keys")


@keys.command(cls=LightCommand)
def create(
    tenant: Tenant = "local",
    user: User = "local",
    role: Role = "user",
    requests: Requests = 0,
    tokens: Tokens = 0,
    max_priority: MaxPriority = 0,
    file: File = None,
    debug: Debug = False,
) -> None:
    """Make a key and print it, this once: the file has only its hash."""
    with guard(debug=debug), _opened(file, create=True) as opened:
        made = opened.create(
            tenant=tenant, user=user, role=role, requests=requests, tokens=tokens, max_priority=max_priority
        )
        sys.stdout.write(f"{made}\n")


@keys.command(cls=LightCommand)
def revoke(key_id: KeyId, file: File = None, debug: Debug = False) -> None:
    """Take a key back; a server that runs refuses it within a second."""
    with guard(debug=debug), _opened(file) as opened:
        opened.revoke(key_id)
        say(f"{key_id} is no key any more")
