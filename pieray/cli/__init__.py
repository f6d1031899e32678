"""The command line.  Importing it, and `pieray version` and `--help`, load neither Ray nor torch."""

from __future__ import annotations


def main() -> None:
    """The console script `pieray`; exits with 0 done, 1 the inferlet failed, 2 usage, 3 the engine failed."""
    try:
        from pieray.cli.app import app
    except KeyboardInterrupt:  # from here on `guard` sees to it
        raise SystemExit(130) from None
    app(prog_name="pieray")
