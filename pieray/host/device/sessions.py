"""An InferletActor's way to its device group: one session at a time, dialled again when a link breaks."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pieray.errors import DeviceLost, EngineError
from pieray.host.device.device import DeviceClient
from pieray.messages import GroupNews
from pieray.transport import Endpoint
from pieray.transport.redial import Redial

log = logging.getLogger(__name__)

WAIT_S = 3.0
"""How long a launch waits for a session while the device group is dialled again."""
MAX_WAITING = 8
"""Launches that wait at one time; more of them get the error at once, so that other calls find a free thread."""


class DeviceSessions:
    """Dials the device group and keeps the session that lives.  Thread-safe.

    A session is one `DeviceClient`: two connections under a peer id of their own (`ACTOR/NUMBER`), which end together.
    What was under way in a broken one fails with DeviceLost and is never sent again; its pages are fenced and freed by
    that peer id, whatever the next session does meanwhile.  Inferlets stay with the session that they began in.

    The same endpoints are dialled until they answer, or `open` names those of the pair that has replaced them; a
    process that has taken their place is told by the handshake (its incarnation).
    """

    def __init__(self, *, peer_id: str, token: str, timeout_s: float = 10.0, wait_s: float = WAIT_S) -> None:
        self._peer_id = peer_id
        self._token = token
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._numbers = itertools.count(1)
        self._endpoints: tuple[Endpoint, Endpoint] | None = None
        self._session: DeviceClient | None = None
        self._num_sessions = 0
        self._num_waiting = 0
        self._broken_at = 0.0
        self._error = "it was not dialled yet"
        self._is_closed = False
        self.on_answered: Callable[[], None] = lambda: None
        """Called when inferlets have got what one frame of the batcher brought."""
        self.on_news: Callable[[DeviceClient, GroupNews], None] = lambda _session, _news: None
        """Called with what the group of a session tells of itself."""
        self.on_lost: Callable[[DeviceClient], None] = lambda _session: None
        """Called when a session is over, at least once."""
        self._changed = threading.Condition()  # guards the fields
        self._redial = Redial("device-group", self._dial_again)

    def open(self, batcher: Endpoint, resource_manager: Endpoint) -> None:
        """Dial this pair, in place of the one that there was, which is lost to its inferlets from now on.

        Nothing happens if a session with this pair lives.
        Raises PeerLost, Denied, ProtocolError, DeadlineExceeded; the pair is dialled again then.
        """
        with self._changed:
            if self._endpoints == (batcher, resource_manager) and self.session is not None:
                return
            self._endpoints = (batcher, resource_manager)
            old, self._session = self._session, None
        if old is not None:
            old.close("the device group was replaced")
        try:
            self._dial_again()
        except BaseException as error:
            self._note_break(str(error))
            self._redial.start()
            raise

    def current(self, wait_s: float | None = None) -> DeviceClient:
        """The session that lives, waiting `wait_s` (None: this object's) for one while the group is dialled again.

        Raises DeviceLost, which says why the last one broke and how dialling fares; EngineError when closed.
        """
        with self._changed:
            if self.session is None and self._num_waiting < MAX_WAITING:
                self._num_waiting += 1
                try:
                    self._changed.wait_for(
                        lambda: self._is_closed or self.session is not None, self._wait_s if wait_s is None else wait_s
                    )
                finally:
                    self._num_waiting -= 1
            if self._is_closed:
                raise EngineError("this InferletActor is closing")
            if (session := self.session) is not None:
                return session
            met_with = f"; the last try: {self._redial.error}" if self._redial.error else ""
            down_s = time.monotonic() - self._broken_at
            raise DeviceLost(
                f"the links to the device group broke {down_s:.1f} s ago ({self._error}) and are being dialled "
                f"again{met_with}.  Launch again later"
            )

    @property
    def session(self) -> DeviceClient | None:
        """The session that lives, or None."""
        session = self._session
        return session if session is not None and session.lost is None else None

    def is_short(self, tenant: str, priority: int) -> bool:
        """See `DeviceClient.is_short`, of the current session."""
        session = self._session
        return session is not None and session.is_short(tenant, priority)

    def flush(self) -> None:
        """Send what inferlets of the current session have posted."""
        if (session := self._session) is not None:
            session.flush()

    def status(self) -> dict[str, Any]:
        """Whether the links are up; if not, for how long and why.  `num_sessions`: dialled with success so far."""
        with self._changed:
            is_up = self.session is not None
            return {
                "is_up": is_up,
                "num_sessions": self._num_sessions,
                "down_s": 0.0 if is_up else time.monotonic() - self._broken_at,
                "error": "" if is_up else self._redial.error or self._error,
            }

    def close(self, reason: str = "this InferletActor is closing") -> None:
        """Hang up and dial no more; idempotent."""
        self._redial.close()
        with self._changed:
            self._is_closed = True
            session, self._session = self._session, None
            self._changed.notify_all()
        if session is not None:
            session.close(reason)

    def _dial_again(self) -> None:
        """A new session, unless there is one."""
        while True:
            with self._changed:
                endpoints = self._endpoints
                if self._is_closed or endpoints is None or self.session is not None:
                    return
            session = DeviceClient(
                batcher=endpoints[0],
                resource_manager=endpoints[1],
                peer_id=f"{self._peer_id}/{next(self._numbers)}",
                token=self._token,
                timeout_s=self._timeout_s,
                on_lost=self._lost,
                on_answered=self._answered,
                on_news=self._told,
            )
            if self._adopt(session, endpoints):
                return
            session.close("another one was dialled meanwhile")

    def _told(self, session: DeviceClient, news: GroupNews) -> None:
        self.on_news(session, news)

    def _answered(self) -> None:
        self.on_answered()

    def _adopt(self, session: DeviceClient, endpoints: tuple[Endpoint, Endpoint]) -> bool:
        with self._changed:
            if self._is_closed or self._endpoints != endpoints or self.session is not None:
                return False
            self._session = session
            self._num_sessions += 1
            self._changed.notify_all()
        if session.lost is not None:  # before `_lost` could know it as ours
            self._lost(session, session.lost)
        return True

    def _lost(self, session: DeviceClient, error: DeviceLost) -> None:
        self.on_lost(session)
        with self._changed:
            if self._session is not session:
                return
            self._session = None
        log.warning("%s", error)
        self._note_break(error.message)
        self._redial.start()

    def _note_break(self, reason: str) -> None:
        with self._changed:
            self._broken_at = time.monotonic()
            self._error = reason
