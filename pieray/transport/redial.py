"""A broken link between processes that both live is dialled again, by a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0


class Redial:
    """Calls `dial` until it returns, with pauses that double from FIRST_PAUSE_S to MAX_PAUSE_S.  Thread-safe.

    `dial` returns when there is nothing left to do: it has connected, or somebody else has.  It must have a deadline
    of its own.  Whatever it raises is kept as `error`, and it is called again.
    """

    def __init__(self, name: str, dial: Callable[[], None]) -> None:
        self._name = name
        self._dial = dial
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._is_running = False
        self._is_wanted = False  # again, by a call that came while the thread ran
        self.error = ""
        """Why the last call of `dial` has failed; "" if it has not."""

    def start(self) -> None:
        """Dial, behind the call that is under way if there is one; does not wait."""
        with self._lock:
            self._is_wanted = True
            if self._is_running or self._closed.is_set():
                return
            self._is_running = True
        try:
            threading.Thread(target=self._run, name=f"pieray-redial-{self._name}", daemon=True).start()
        except RuntimeError:  # out of threads: whoever starts it next finds it not running
            with self._lock:
                self._is_running = False
            raise

    def close(self) -> None:
        """Dial no more; does not wait for a call under way.  Idempotent."""
        self._closed.set()

    def _run(self) -> None:
        while self._is_wanted_now():
            self._until_it_returns()

    def _is_wanted_now(self) -> bool:
        with self._lock:
            self._is_running = self._is_wanted and not self._closed.is_set()
            self._is_wanted = False
            return self._is_running

    def _until_it_returns(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closed.wait(pause_s):
            try:
                self._dial()
            except BaseException as error:  # noqa: BLE001 - nobody else would dial any more
                self.error = str(error) or repr(error)
                log.info("%s does not answer: %s", self._name, self.error)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                self.error = ""
                return
