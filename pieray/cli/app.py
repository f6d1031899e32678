"""The commands of `pieray`, put together."""

from __future__ import annotations

import typer

from pieray.cli.build import build, check, new
from pieray.cli.doctor import doctor
from pieray.cli.exports import exports
from pieray.cli.install import install, uninstall
from pieray.cli.light import LightCommand, LightGroup
from pieray.cli.lists import adapters, inferlets, kill, models, ps, version
from pieray.cli.run import attach, run
from pieray.cli.up import down, up

app = typer.Typer(
    cls=LightGroup,
    help="A programmable serving system for language models.",
    epilog="Exit codes: 0 done, 1 the inferlet failed, 2 usage, 3 the engine failed, 130, 143 and 129 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    run, attach, up, down, ps, kill, models, adapters, inferlets, install, uninstall, new, build, check, doctor,
    version,
):  # fmt: skip
    app.command(cls=LightCommand)(command)
app.add_typer(exports, name="exports")
