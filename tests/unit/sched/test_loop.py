"""The step thread: it ends the process when it can serve nobody any more, and tells why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pieray.errors import DeviceLost, PeerLost
from pieray.messages import Completed, EmbedTokens, Failed, Forward, LoadAdapter, Message
from pieray.model_settings import ModelSettings
from pieray.models.adapter_file import AdapterFile
from pieray.sched.core import BatcherCore
from pieray.sched.loop import StepLoop
from tests.support.rows import RowsAsItems


class PanicError(BaseException):
    """A panic of native code is no Exception."""


class DeadRunner:
    """Meets a dead device in whatever it is asked."""

    def step(self, *_: object) -> Any:
        raise DeviceLost("cuda:0 is dead: an illegal memory access")

    decode = copy_tokens = embed = read_adapter = step


class FakeConnection:
    """Keeps what is sent to a peer."""

    def __init__(self, peer_id: str = "p", sent: list[Message] | None = None) -> None:
        self.peer_id = peer_id
        self.sent: list[Message] = [] if sent is None else sent

    def post(self, messages: list[Message], *, lane: int) -> None:
        assert all(message.ticket >> 32 == lane for message in messages)  # type: ignore[attr-defined]
        self.sent += messages

    def flush(self) -> None: ...


class Rig:
    """A loop over a runner, whose `on_failure` notes instead of ending the process."""

    def __init__(self, runner: Any) -> None:
        self.failures: list[BaseException] = []
        self.failed = threading.Event()
        self.core = BatcherCore(runner, ModelSettings(page_size=4))
        self.loop = StepLoop(self.core, on_failure=self._fail)
        self.conn: Any = FakeConnection()
        self.loop.on_connect(self.conn)
        self.loop.start(self.conn)  # nobody dies here: it is asked for no fence

    def _fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.failed.set()

    def given(self, *messages: Message) -> BaseException:
        """What the loop ends with."""
        self.loop.on_messages(self.conn, list(messages))
        assert self.failed.wait(10)
        (error,) = self.failures
        return error


def forward(ticket: int, inferlet: int) -> Forward:
    one = np.array([1], "<u4").tobytes()
    return Forward(ticket, inferlet, 1, 0, one, 0, one, b"", b"", [])


@pytest.mark.parametrize(
    "message",
    [forward(1, 1), EmbedTokens(1, 1, b"\1\0\0\0"), LoadAdapter(1, 1, 1 << 31, "a", b"", 1.0, False, 1 << 20)],
    ids=["forward", "embed", "adapter"],
)
def test_a_dead_device_ends_the_batcher_after_its_answers(message: Message) -> None:
    rig = Rig(DeadRunner())
    error = rig.given(message)
    assert isinstance(error, DeviceLost)
    assert "illegal memory access" in error.message
    (answer,) = rig.conn.sent
    assert isinstance(answer, Failed)
    assert (answer.ticket, answer.code) == (1, "device-lost")


def test_an_adapter_of_the_engine_that_meets_a_dead_device_ends_the_batcher() -> None:
    rig = Rig(DeadRunner())
    with pytest.raises(DeviceLost):
        rig.core.adapters.add(1, AdapterFile("a", b""))
    assert rig.failed.wait(10)


@pytest.mark.parametrize("error", [ValueError("a bug of ours"), PanicError("native")])
def test_a_bug_in_the_step_thread_ends_the_batcher(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(DeadRunner())

    def fail(*_: object) -> Callable[..., Any]:
        raise error

    monkeypatch.setattr(rig.core, "step", fail)
    assert rig.given(forward(1, 1)) is error


def test_a_peer_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(DeadRunner())

    def gone(*_: object, **_lane: object) -> None:
        raise PeerLost("gone")

    monkeypatch.setattr(rig.conn, "post", gone)
    monkeypatch.setattr(rig.core, "submit", lambda *_: [("p", Completed(1, None))])
    rig.loop.on_messages(rig.conn, [forward(1, 1)])
    rig.loop.close()
    assert rig.failures == []


class IdleRunner(RowsAsItems):
    """Computes nothing, and says so at once."""

    def step(self, items: Any, outputs: Any) -> Any:
        return [[] for _ in items]


def test_a_flood_of_one_peers_messages_keeps_no_other_waiting_and_each_keeps_its_order() -> None:
    sent: list[Message] = []
    loop = StepLoop(BatcherCore(IdleRunner(), ModelSettings(page_size=4)), on_failure=lambda _: None)
    flood, other = (FakeConnection(name, sent) for name in ("flood", "other"))
    for conn in (flood, other):
        loop.on_connect(conn)  # type: ignore[arg-type]
    many = [forward(1 << 32 | number, 1) for number in range(1, 2001)]
    loop.on_messages(flood, many)  # type: ignore[arg-type]
    loop.on_messages(other, [forward(2 << 32 | number, 2) for number in (1, 2)])  # type: ignore[arg-type]
    loop.start(flood)  # type: ignore[arg-type]
    deadline = time.monotonic() + 30.0
    while len(sent) < 2002 and time.monotonic() < deadline:
        time.sleep(0.01)
    loop.close()
    tickets = [message.ticket for message in sent]  # type: ignore[attr-defined]
    assert [t for t in tickets if t >> 32 == 1] == [message.ticket for message in many]
    assert [t & 0xFF for t in tickets if t >> 32 == 2] == [1, 2]
    assert tickets.index(2 << 32 | 2) < 200
