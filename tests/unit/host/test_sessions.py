"""Links that break between processes that live: dialled again, nothing resent, pages fenced by session."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
from groups import TOKEN, Group, until
from test_device import Recorder, lease

from pieray.errors import DeviceLost, EngineError, PeerLost, PierayError
from pieray.host.device.sessions import DeviceSessions
from pieray.leases.service import LeaseService
from pieray.messages import CancelInferlet, Forward, PeerFenced
from pieray.model_settings import ModelSettings
from pieray.sched.core import BatcherCore
from pieray.sched.fences import FenceLink
from pieray.sched.loop import StepLoop
from pieray.transport import Connection, connect, serve
from tests.support.digest_runner import DigestRunner


@pytest.fixture
def group() -> Iterator[Group]:
    group = Group(num_pages=10)
    yield group
    group.close()


def break_link(group: Group, name: str, peer_id: str) -> None:
    """One end hangs up; both processes live."""

    def peers() -> dict[str, Connection]:
        return {conn.peer_id: conn for conn in group.batcher.conns} if name == "batcher" else group.leases._peers

    until(lambda: peer_id in peers())  # the other end may have heard of it a moment before
    peers()[peer_id].close("a test breaks this link")


def forward(number: int, ticket: int) -> Forward:
    return Forward(number << 32 | ticket, number, 1, 0, b"\0\0\0\0", 0, b"\1\0\0\0", b"", b"", [])


@pytest.mark.parametrize("link", ["batcher", "resource-manager"])
def test_a_broken_link_fails_what_is_under_way_and_is_dialled_again(group: Group, link: str) -> None:
    sessions, tenant, later = group.sessions("a"), Recorder(), Recorder()
    first = sessions.current()
    first.admit(1, tenant)
    lease(first, 1, 4)
    until(lambda: len(tenant.pages) == 4)
    for n in range(3):  # again and again
        session = sessions.current()
        break_link(group, link, f"a/{n + 1}")
        until(lambda session=session: session.lost is not None)
        assert sessions.current() is not session
    assert [error.code for error in tenant.lost] == ["device-lost"]
    with pytest.raises(DeviceLost, match="a test breaks this link|closed the connection"):
        first.post([forward(1, 1)])  # the inferlet of the broken session has no other
    second = sessions.current()
    second.admit(2, later)
    lease(second, 2, 10)  # there was no batcher to fence: all pages have come back
    until(lambda: len(later.pages) == 10)
    second.post([forward(2, 7)])
    second.flush()
    until(lambda: later.answers == [(7, None)])
    assert tenant.answers == []
    status = sessions.status()
    assert (status["is_up"], status["num_sessions"], status["error"]) == (True, 4, "")


def test_pages_of_a_broken_session_wait_for_its_fence_whatever_the_next_one_does(group: Group) -> None:
    fences = connect(group.doors[0].endpoint, group.batcher, role="batcher", peer_id="b", token=TOKEN, timeout_s=5)
    sessions, tenant, later = group.sessions("a"), Recorder(), Recorder()
    sessions.current().admit(1, tenant)
    lease(sessions.current(), 1, 4)
    until(lambda: len(tenant.pages) == 4)
    break_link(group, "resource-manager", "a/1")
    until(lambda: tenant.lost)
    sessions.current().admit(2, later)
    lease(sessions.current(), 2, 6)
    until(lambda: len(later.pages) == 6)
    assert set(later.pages).isdisjoint(tenant.pages)
    assert group.leases.status()["quarantined"] == 4
    fences.send([PeerFenced("a/1")])
    until(lambda: group.free() == 4)
    fences.close()


def test_a_launch_waits_for_the_next_session_or_is_told_what_happens(group: Group) -> None:
    sessions = DeviceSessions(peer_id="a", token=TOKEN, timeout_s=5, wait_s=0.2)
    endpoints = group.doors[1].endpoint, group.doors[0].endpoint
    sessions.open(*endpoints)
    assert sessions.status()["is_up"]
    group.doors[1].close()  # the batcher has died
    until(lambda: "batcher is not reached" in sessions.status()["error"])
    assert not sessions.status()["is_up"]
    with pytest.raises(DeviceLost, match=r"broke \d.\d s ago .*dialled again; the last try: batcher is not reached"):
        sessions.current()
    assert sessions.status()["down_s"] > 0.2
    group.doors[1] = serve(group.batcher, peer_id="batcher", incarnation=2, token=TOKEN)
    threading.Timer(0.05, sessions.open, (group.doors[1].endpoint, endpoints[1])).start()
    assert sessions.current().lost is None
    sessions.close()
    with pytest.raises(EngineError, match="closing"):
        sessions.current()


def test_a_process_that_has_taken_the_place_of_the_one_dialled_is_not_taken_for_it(group: Group) -> None:
    sessions = DeviceSessions(peer_id="a", token=TOKEN, timeout_s=5, wait_s=0.1)
    stale = dataclasses.replace(group.doors[1].endpoint, incarnation=7)
    with pytest.raises(PeerLost, match="stale"):
        sessions.open(stale, group.doors[0].endpoint)
    with pytest.raises(DeviceLost, match="stale"):
        sessions.current()
    sessions.open(group.doors[1].endpoint, group.doors[0].endpoint)  # the Controller says which one it is now
    assert sessions.status()["is_up"]
    sessions.close()


def test_few_launches_wait_at_one_time(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pieray.host.device.sessions.MAX_WAITING", 2)
    sessions = DeviceSessions(peer_id="a", token=TOKEN, timeout_s=5, wait_s=60.0)
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(EngineError) as found:
            sessions.current()
        ended.append(found.value.message)

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for thread in waiting:
        thread.start()
    until(lambda: sessions._num_waiting == 2)
    with pytest.raises(DeviceLost):
        sessions.current()
    sessions.close()
    for thread in waiting:
        thread.join(10)
    assert ended == ["this InferletActor is closing"] * 2


# --- the batcher's own link ------------------------------------------------------------------------


class Pair:
    """A real ResourceManager and a real Batcher's loop, as their actors put them together."""

    def __init__(self, num_pages: int) -> None:
        self.leases = LeaseService(num_pages)
        self.ledger_door = serve(self.leases, peer_id="rm", incarnation=1, token=TOKEN)
        core = BatcherCore(DigestRunner(4), ModelSettings(page_size=4))
        self.loop = StepLoop(core, on_failure=lambda: None)
        self.fences = FenceLink(
            lambda service: connect(self.ledger_door.endpoint, service, role="batcher", peer_id="b", token=TOKEN),
            self.loop.lose,
        )
        self.fences.open()
        self.loop.start(self.fences)
        self.door = serve(self.loop, peer_id="batcher", incarnation=1, token=TOKEN)

    def sessions(self, peer_id: str) -> DeviceSessions:
        sessions = DeviceSessions(peer_id=peer_id, token=TOKEN, timeout_s=5)
        sessions.open(self.door.endpoint, self.ledger_door.endpoint)
        return sessions

    def count(self, state: str) -> int:
        found: int = self.leases.status()[state]
        return found

    def close(self) -> None:
        self.fences.close()
        self.door.close()
        self.ledger_door.close()
        self.loop.close()
        self.leases.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(10)
    yield pair
    pair.close()


def leased(pair: Pair, sessions: DeviceSessions, count: int) -> Recorder:
    tenant = Recorder()
    sessions.current().admit(1, tenant)
    lease(sessions.current(), 1, count)
    until(lambda: len(tenant.pages) == count)
    return tenant


def test_fences_that_a_broken_link_has_lost_are_asked_for_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    monkeypatch.setattr(pair.fences, "fenced", lambda _peer_id: told.set())  # lost on the way
    sessions = pair.sessions("a")
    leased(pair, sessions, 4)
    sessions.close()
    assert told.wait(5)
    until(lambda: pair.count("quarantined") == 4)
    monkeypatch.undo()
    pair.leases._batcher.close("a test breaks this link")
    until(lambda: pair.count("free") == 10)
    until(lambda: pair.fences.status() == {"is_up": True, "error": ""})


def test_while_the_batcher_is_away_pages_of_the_dead_stay_where_they_are(pair: Pair) -> None:
    """A step of the batcher's may still touch them: only its fence frees them."""
    away = threading.Event()
    dial = pair.fences._dial

    def late(service: object) -> Connection:
        if away.is_set():
            raise PeerLost("a test keeps it away")
        return dial(service)  # type: ignore[arg-type]

    pair.fences._dial = late
    sessions = pair.sessions("a")
    leased(pair, sessions, 4)
    away.set()
    pair.leases._batcher.close("a test breaks this link")
    until(lambda: not pair.leases.status()["links"]["batcher"]["is_up"])
    until(lambda: not pair.fences.status()["is_up"])
    sessions.close()
    until(lambda: pair.count("quarantined") == 4)
    other = pair.sessions("b")  # leases go on
    leased(pair, other, 3)
    away.clear()
    until(lambda: pair.count("free") == 7)
    other.close()
    until(lambda: pair.count("free") == 10)


def test_a_session_that_the_resource_manager_has_lost_is_over_in_the_batcher_too(pair: Pair) -> None:
    """The client may not have noticed yet (a frozen process, a network that swallows): its steps must end."""
    sessions = pair.sessions("a")
    tenant = leased(pair, sessions, 4)
    session = sessions.current()
    session._ledger._service = _Deaf()  # it hears of nothing
    pair.leases._peers["a/1"].close("a test breaks this link")
    until(lambda: pair.count("free") == 10)
    until(lambda: tenant.lost)
    with pytest.raises(PierayError):
        session.post([CancelInferlet(1, 1)])
    sessions.close()


class _Deaf:
    def on_connect(self, conn: object) -> None: ...

    def on_messages(self, conn: object, messages: object) -> None: ...

    def on_close(self, conn: object, error: object) -> None: ...
