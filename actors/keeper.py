"""Keeps one service of the engine up: brings it up whenever it is down, and never gives up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pieray.actors.records import Restarts

log = logging.getLogger(__name__)


class Keeper:
    """A thread of its own, so that replacing one service keeps nobody from seeing to another.

    `bring_up` ends what is left of the old one and starts the new one; it may raise anything.  Between attempts that
    come too often there is a pause (`Restarts`).
    """

    def __init__(self, what: str, bring_up: Callable[[], None], restarts: Restarts) -> None:
        self._what = what
        self._bring_up = bring_up
        self._restarts = restarts
        self._down = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pieray-keep-{what}", daemon=True)
        self.failure: str | None = None
        """Why the service cannot be used at present, if mending it has failed or has to wait."""

    def start(self, *, is_down: bool = False) -> None:
        """Begin to keep it; `is_down`: it is to be brought up first."""
        if is_down:
            self._down.set()
        self._thread.start()

    def down(self) -> None:
        """It has died."""
        self._restarts.note()
        self._down.set()

    def stop(self) -> None:
        """Bring nothing up any more; idempotent.  What is being brought up is the caller's to end."""
        self._stopped.set()
        self._down.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._down.wait()
            self._pause()
            self._down.clear()  # a death from here on means another attempt
            if self._stopped.is_set():
                return
            try:
                self._bring_up()
            except BaseException as error:
                self._restarts.note()
                self.failure = f"the {self._what} could not be started again, it is tried again: {error}"
                log.warning("%s", self.failure, exc_info=error)
                self._down.set()
            else:
                self.failure = None

    def _pause(self) -> None:
        delay_s = self._restarts.delay_s
        if delay_s:
            last = f"; the last attempt: {self.failure}" if self.failure else ""
            self.failure = (
                f"the {self._what} has died {self._restarts.num_recent} times lately; it is started again "
                f"within {delay_s:.0f} s{last}"
            )
            log.error("%s", self.failure)
            self._stopped.wait(delay_s)
