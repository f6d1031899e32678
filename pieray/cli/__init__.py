"""The command line.  Importing it, and `pieray version` and `--help`, load neither Ray nor torch."""

from __future__ import annotations


def main() -> None:
    """The console script `pieray`; exits with 0 done, 1 the inferlet failed, 2 usage, 3 the engine failed."""
    from pieray.cli.app import app

    app(prog_name="pieray")
