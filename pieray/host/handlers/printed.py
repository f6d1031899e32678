"""What a guest prints, as lines of its log."""

from __future__ import annotations

import codecs

from pieray.host.session.session import EventLog

LEVELS = {1: "info", 2: "warning"}
"""By file descriptor: standard output, standard error."""


class Printed:
    """Bytes of a guest's standard output and error become log lines as they are whole."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._lines: dict[int, _Lines] = {}

    def write(self, fd: int, text: bytes) -> None:
        """Raises QuotaExceeded over `Limits.log_bytes`."""
        if (lines := self._lines.get(fd)) is None:
            lines = self._lines[fd] = _Lines()
        for line in lines.feed(text):
            self._log.log(LEVELS[fd], line)

    def end(self) -> None:
        """Log what was printed without a newline; called when the guest has ended."""
        for fd, lines in self._lines.items():
            if rest := lines.rest():
                self._log.log(LEVELS[fd], rest)


class _Lines:
    """Bytes to whole lines of text."""

    MAX_LINE = 8192

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def feed(self, data: bytes) -> list[str]:
        self._text += self._decoder.decode(data)
        *lines, self._text = self._text.split("\n")
        if len(self._text) > self.MAX_LINE:
            lines.append(self._text)
            self._text = ""
        return lines

    def rest(self) -> str:
        text, self._text = self._text, ""
        return text
