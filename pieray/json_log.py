"""The log as lines of JSON: an object for each entry, with the id of the run that it is about."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

_KNOWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, message; run, and what else the entry has as `extra`; error: the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = ((name, value) for name, value in record.__dict__.items() if name not in _KNOWN and name[0] != "_")
        found |= {name: value for name, value in extra if value not in ("", None, {})}
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)  # ASCII alone: no control character is left as it is


class RunOfThread(logging.Filter):
    """Adds the run that a thread works for to what it logs."""

    def __init__(self, run_of_thread: Callable[[], str]) -> None:
        """`run_of_thread`: its instance id, or ""."""
        super().__init__()
        self._run_of_thread = run_of_thread

    def filter(self, record: logging.LogRecord) -> bool:
        if "run" not in record.__dict__:
            record.__dict__["run"] = self._run_of_thread()
        return True
