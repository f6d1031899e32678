"""The device groups that an InferletActor is connected to, and which of them an inferlet computes on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pieray.errors import DeviceLost
from pieray.host.device.device import DeviceClient
from pieray.host.device.device_user import DeviceUser
from pieray.host.device.group_policy import GROUP_POLICIES
from pieray.host.device.group_table import GroupTable
from pieray.host.device.sessions import DeviceSessions
from pieray.messages import GroupNews, ImportPages, Message
from pieray.messages.leases import ACCESSES, export_print, fingerprints
from pieray.transport import Endpoint

AGAIN_S = 0.001
FIRST_VISITOR = 1 << 31
"""Inferlets have lower numbers."""


class DeviceGroups:
    """Thread-safe.  Each group has a `DeviceSessions` of its own.

    With one group, an inferlet's device is the session with it.  With several it is chosen when the inferlet first has
    something for a device (`LateDevice`): by then it is known what it is going to compute.
    """

    def __init__(self, *, peer_id: str, token: str, policy: str = "content", is_one: bool = True) -> None:
        """`is_one`: one group is all that there is, unless others are opened later."""
        self._is_one = is_one
        self._peer_id = peer_id
        self._token = token
        self._choose = GROUP_POLICIES[policy]
        self._turns = itertools.count()
        self._visitors = itertools.count()
        self._groups: dict[int, DeviceSessions] = {}
        self._draining: frozenset[int] = frozenset()
        self._table = GroupTable()  # of what groups tell; a row for each session that lives
        self._rows: dict[DeviceClient, int] = {}
        self._lock = threading.Lock()  # guards table and rows, and the mapping, which is replaced and never changed
        self._on_answered: Callable[[], None] = lambda: None

    def open(self, number: int, batcher: Endpoint, resource_manager: Endpoint, *, is_draining: bool = False) -> None:
        """Dial this pair, in place of the one that the group had.  `is_draining`: no inferlet chooses it any more.
        Raises as `DeviceSessions.open`."""
        with self._lock:
            self._draining = self._draining | {number} if is_draining else self._draining - {number}
            found = self._groups.get(number)
            if found is None:
                found = DeviceSessions(peer_id=self._peer_id, token=self._token)
                found.on_answered = self._on_answered
                found.on_news, found.on_lost = self._told, self._lost
                self._groups = {**self._groups, number: found}
        found.open(batcher, resource_manager)

    def end(self, number: int) -> None:
        """Hang up and forget the group: what computes there is lost.  Nothing happens if there is no such group."""
        with self._lock:
            self._draining -= {number}
            group = self._groups.get(number)
            self._groups = {other: found for other, found in self._groups.items() if other != number}
        if group is not None:
            group.close("the device group was taken away")

    @property
    def on_answered(self) -> Callable[[], None]:
        """Called when inferlets have got what one frame of a batcher brought."""
        return self._on_answered

    @on_answered.setter
    def on_answered(self, called: Callable[[], None]) -> None:
        with self._lock:
            self._on_answered = called
            for group in self._groups.values():
                group.on_answered = called

    def current(self, wait_s: float | None = None) -> DeviceClient | LateDevice:
        """The device of a new inferlet, waiting `wait_s` (None: a few seconds) for one while none lives.

        Raises DeviceLost, which says why the last one broke; EngineError when closed.
        """
        groups = self._groups
        if not groups:  # of a model whose groups were all down when this actor began
            raise DeviceLost("no device group of this model has been dialled yet.  Launch again later")
        if len(groups) == 1 and self._is_one:
            return next(iter(groups.values())).current(wait_s)
        if not self.alive():
            try:
                next(iter(groups.values())).current(wait_s)
            except DeviceLost:
                if not self.alive():  # another one came back meanwhile
                    raise
        return LateDevice(self)

    def alive(self) -> list[DeviceClient]:
        """The sessions that live, by number of their group."""
        found = sorted(self._groups.items())
        return [session for _, group in found if (session := group.session) is not None]

    def open_to_all(self) -> list[DeviceClient]:
        """Of these, the ones that inferlets may choose: all, if all are draining."""
        found = [(number, one.session) for number, one in sorted(self._groups.items())]
        chosen = [session for number, session in found if session is not None and number not in self._draining]
        return chosen or self.alive()

    def visitor_number(self) -> int:
        """A number for an inferlet's visit to a group that is not its own: none that an inferlet has."""
        return FIRST_VISITOR + next(self._visitors) % FIRST_VISITOR

    def choose(self, hashes: bytes, export: Sequence[int] = ()) -> DeviceClient:
        """The session that an inferlet computes on from now on; `hashes`: of the pages that it is about to compute,
        `export`: fingerprints by which one may know the export that it is about to open.

        Raises DeviceLost.
        """
        prints = fingerprints(hashes)
        with self._lock:
            sessions = {self._row_of(session): session for session in self.open_to_all()}
            if not sessions:
                raise DeviceLost("all device groups are gone, and are being replaced.  Launch again later")
            if (holding := self._session_with(list(sessions.values()), export)) is not None:
                row = self._rows[holding]
            else:
                row = self._choose(self._table, prints, next(self._turns))
            if row not in sessions:  # of one that is draining, is just being dialled, or is lost
                row = min(sessions, key=self._table.load)
            self._table.choose(row, prints)
            return sessions[row]

    def session_with(self, sessions: Sequence[DeviceClient], prints: Sequence[int]) -> DeviceClient | None:
        """The first of the groups that has told of one of these fingerprints."""
        with self._lock:
            return self._session_with(sessions, prints)

    def _session_with(self, sessions: Sequence[DeviceClient], prints: Sequence[int]) -> DeviceClient | None:
        for session in sessions:
            row = self._rows.get(session)
            if row is not None and any(self._table.is_known(row, each) for each in prints):
                return session
        return None

    def load(self, session: DeviceClient) -> float:
        """Programs that compute on its group, those of other actors included, as far as it is known."""
        with self._lock:
            return self._table.load(self._row_of(session))

    def _row_of(self, session: DeviceClient) -> int:
        if session not in self._rows:
            self._rows[session] = self._table.open()
        return self._rows[session]

    def _told(self, session: DeviceClient, news: GroupNews) -> None:
        """A group has told of what has changed, or, at first, of all."""
        added, removed = (np.frombuffer(column, "<u4").tolist() for column in (news.added, news.removed))
        with self._lock:
            if session.lost is not None:
                return
            row = self._row_of(session)
            self._table.forget(row, removed)
            self._table.know(row, added)
            self._table.set_load(row, news.num_programs)

    def _lost(self, session: DeviceClient) -> None:
        with self._lock:
            if (row := self._rows.pop(session, None)) is not None:
                self._table.close(row)

    def is_short(self, tenant: str, priority: int) -> bool:
        """Whether pages are short on all groups; see `DeviceClient.is_short`."""
        groups = self._groups.values()
        return bool(groups) and all(group.is_short(tenant, priority) for group in groups)

    def flush(self) -> None:
        """Send what inferlets have posted."""
        for group in self._groups.values():
            group.flush()

    def status(self) -> dict[str, Any]:
        """As `DeviceSessions.status`, of the one that is worst off; with several, of each by number too."""
        found = {number: group.status() for number, group in sorted(self._groups.items())}
        if not found:
            return {"is_up": False, "num_sessions": 0, "down_s": 0.0, "error": "it was not dialled yet"}
        worst = max(found.values(), key=lambda one: (not one["is_up"], one["down_s"]))
        return worst if len(found) == 1 else {**worst, "groups": found}

    def close(self) -> None:
        """Hang up and dial no more; idempotent."""
        for group in self._groups.values():
            group.close()


class LateDevice:
    """An inferlet's device where there are several: the session with one of them, once it has something for it.

    Its methods are those of `DeviceClient`, called with the inferlet's lock held.
    """

    def __init__(self, groups: DeviceGroups) -> None:
        self._groups = groups
        self._session: DeviceClient | None = None
        self._admission: tuple[Any, ...] | None = None
        self.lock: threading.RLock = threading.RLock()
        """The inferlet's, which puts it here."""

    @property
    def is_chosen(self) -> bool:
        """Whether it has a session."""
        return self._session is not None

    @property
    def session(self) -> DeviceClient | None:
        """None until it is chosen."""
        return self._session

    def admit(self, number: int, tenant: DeviceUser, *facts: Any) -> None:
        """See `DeviceClient.admit`, which is called when there is something for the device."""
        self._admission = (number, tenant, *facts)

    def others(self) -> list[DeviceClient]:
        """The sessions with the other groups."""
        return [session for session in self._groups.alive() if session is not self._session]

    def other_with(self, prints: Sequence[int]) -> DeviceClient | None:
        """The session with another group that has told of one of these fingerprints."""
        return self._groups.session_with(self.others(), prints)

    def standing(self) -> tuple[Any, ...]:
        """What `DeviceClient.admit` takes behind number and user; it is not traced."""
        assert self._admission is not None
        return (*self._admission[2:7], "")

    def visitor_number(self) -> int:
        """See `DeviceGroups.visitor_number`."""
        return self._groups.visitor_number()

    def bound(self, hashes: bytes = b"", export: Sequence[int] = ()) -> DeviceClient:
        """The session, chosen now if it is not yet.  Raises DeviceLost."""
        while self._session is None:
            assert self._admission is not None
            chosen = self._groups.choose(hashes, export)
            number, tenant, *facts = self._admission
            user = _UserOfOne(tenant, self.lock)
            try:
                chosen.admit(number, user, *facts)
            except DeviceLost:
                user.is_dropped = True
                time.sleep(AGAIN_S)  # its link has just broken: it is not chosen again
                continue
            self._session = chosen
        return self._session

    def post(self, messages: Sequence[Message]) -> None:
        self.bound().post(messages)

    def lease(
        self, inferlet: int, count: int, deadline_s: float, hashes: bytes = b"", num_tokens: int = 0, num_more: int = 0
    ) -> None:
        self.bound(hashes).lease(inferlet, count, deadline_s, hashes, num_tokens, num_more)

    def ask_ledger(self, message: Message) -> None:
        export: Sequence[int] = ()
        if self._session is None and isinstance(message, ImportPages):
            export = [export_print(a, message.tenant, message.user, message.name) for a in ACCESSES]
        self.bound(export=export).ask_ledger(message)

    def preempted(self, inferlet: int, num_pages: int, *, is_whole: bool) -> None:
        self.bound().preempted(inferlet, num_pages, is_whole=is_whole)

    def release(self, inferlet: int, pages: Sequence[int]) -> None:
        self.bound().release(inferlet, pages)

    def flush(self) -> None:
        """See `DeviceClient.flush`."""
        if self._session is not None:
            self._session.flush()

    def retire(self, number: int, done: Callable[[], None]) -> None:
        """See `DeviceClient.retire`."""
        if self._session is None:
            done()
        else:
            self._session.retire(number, done)


class _UserOfOne:
    """An inferlet, as one session has it: one that could not take it, and breaks, has nothing to tell it."""

    def __init__(self, user: DeviceUser, lock: threading.RLock) -> None:
        self._user = user
        self._lock = lock
        self.is_dropped = False
        self.answered, self.granted, self.lease_failed = user.answered, user.granted, user.lease_failed
        self.ledger_answered, self.reclaim = user.ledger_answered, user.reclaim
        self.is_idle, self.preempt = user.is_idle, user.preempt

    def device_lost(self, error: DeviceLost) -> None:
        with self._lock:
            if not self.is_dropped:
                self._user.device_lost(error)
