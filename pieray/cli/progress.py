"""Progress of long work on stderr: a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pieray.cli.output import escaped, say

Progress = Callable[[str], None]


@contextmanager
def progress(*, is_quiet: bool = False) -> Iterator[Progress]:
    """A callable that shows what is being done; on a terminal nothing of it stays on the screen."""
    if is_quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status("starting") as status:
            yield lambda text: status.update(f"{escape(escaped(text))} ...")
    else:
        yield say
