"""The command line.  Importing it, and `pieray version` and `--help`, load neither Ray nor torch."""

from __future__ import annotations


def main() -> None:
    """The console script `pieray`; exits with 0 done, 1 the inferlet failed, 2 usage, 3 the engine failed."""
    from pieray.cli.signals import EXIT_CODES, leave_at_once, printing_soon

    leave_at_once()  # until a command has something to put in order, and again when it has
    import sys

    from pieray.cli.streams import OutputLost, prepare_streams

    prepare_streams()
    from pieray.cli.app import application

    try:
        try:
            application(sys.argv[1] if len(sys.argv) > 1 else "")(prog_name="pieray")
        except SystemExit as end:
            if end.code in EXIT_CODES:
                with printing_soon(int(end.code)):
                    sys.stdout.flush()
            raise
        finally:
            sys.stdout.flush()
    except OutputLost as lost:
        if not lost.is_hung_up:
            sys.stderr.write(f"pieray: {lost}\n")
        raise SystemExit(lost.exit_code) from None
