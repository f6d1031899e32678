"""ImageQueue: tenants take turns, steps go on, and whoever has ended is not answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pieray.errors import DeviceLost, InvalidRequest
from pieray.messages import Completed, EmbedImage, Failed, Message
from pieray.models.images import SeenImage
from pieray.sched.images import ImageQueue

WAIT_S = 10.0


class Eye:
    """Waits at each image until it is let go; `b"bad"` is refused, `b"dead"` meets a dead device."""

    def __init__(self) -> None:
        self.looked: list[bytes] = []
        self.gate = threading.Semaphore(0)
        self.at = threading.Semaphore(0)

    def see(self, data: bytes, max_pixels: int, max_bytes: int) -> SeenImage:
        assert max_pixels == 1000
        self.looked.append(data)
        self.at.release()
        assert self.gate.acquire(timeout=WAIT_S)
        if data == b"bad":
            raise InvalidRequest("the image is damaged")
        if data == b"dead":
            raise DeviceLost("gone")
        return SeenImage(np.ones((2, 3), np.float32), None, b"d" * 16)


class Desk:
    def __init__(self) -> None:
        self.eye = Eye()
        self.queue = ImageQueue(self.eye, 1000)
        self.answers: list[tuple[str, Message]] = []
        self.charged: list[tuple[tuple[str, int], str, float]] = []
        self.lost: list[DeviceLost] = []
        self.came = threading.Semaphore(0)
        self.queue.send = self._send
        self.queue.on_seen = lambda lane, tenant, seconds: self.charged.append((lane, tenant, seconds))
        self.queue.on_lost = self.lost.append

    def _send(self, answers: list[tuple[str, Message]]) -> None:
        self.answers += answers
        self.came.release()

    def give(self, ticket: int, inferlet: int, tenant: str, data: bytes, peer: str = "p") -> None:
        self.queue.submit(peer, EmbedImage(ticket, inferlet, tenant, data, 100))

    def let(self, count: int) -> None:
        """So many images are seen, and answered."""
        for _ in range(count):
            self.eye.gate.release()
            assert self.came.acquire(timeout=WAIT_S)

    def looks(self) -> None:
        assert self.eye.at.acquire(timeout=WAIT_S)


@pytest.fixture
def desk() -> Iterator[Desk]:
    found = Desk()
    yield found
    found.eye.gate.release(100)
    found.queue.close()


def test_a_flood_of_one_tenant_is_behind_one_image_of_anothers(desk: Desk) -> None:
    for number in range(5):
        desk.give(number, 1, "loud", b"loud%d" % number)
    desk.looks()
    desk.give(10, 2, "loud", b"other")
    desk.give(20, 3, "quiet", b"quiet")
    desk.let(7)
    assert desk.eye.looked == [b"loud0", b"loud1", b"quiet", b"other", b"loud2", b"loud3", b"loud4"]
    assert [message.ticket for _, message in desk.answers] == [0, 1, 20, 10, 2, 3, 4]
    assert [lane for lane, _, _ in desk.charged][2] == ("p", 3)
    assert all(seconds >= 0 for _, _, seconds in desk.charged)


def test_values_places_and_digest_are_answered_and_what_fails_fails_alone(desk: Desk) -> None:
    desk.give(1, 1, "a", b"bad")
    desk.give(2, 1, "a", b"good")
    desk.let(2)
    assert desk.answers == [
        ("p", Failed(1, "invalid", "the image is damaged")),
        ("p", Completed(2, [np.ones(6, "<f4").tobytes(), b"", b"d" * 16])),
    ]


def test_whoever_has_ended_is_not_answered(desk: Desk) -> None:
    for ticket, inferlet, peer in ((1, 1, "p"), (2, 1, "p"), (3, 2, "p"), (4, 1, "q")):
        desk.give(ticket, inferlet, "a", b"%d" % ticket, peer)
    desk.looks()
    desk.queue.drop("p", 1)
    desk.queue.drop("q")
    assert desk.queue.num_waiting == 1
    desk.eye.gate.release()  # of the one that has ended
    desk.let(1)
    assert desk.eye.looked == [b"1", b"3"]
    assert [message.ticket for _, message in desk.answers] == [3]


def test_a_dead_device_is_told_and_those_that_wait_fail(desk: Desk) -> None:
    desk.give(1, 1, "a", b"dead")
    desk.give(2, 2, "a", b"waits")
    desk.looks()
    failed = desk.queue.fail_all(DeviceLost("gone"))
    assert sorted(message.ticket for _, message in failed) == [1, 2]
    desk.eye.gate.release()
    desk.give(3, 3, "a", b"dead")
    desk.let(1)
    assert len(desk.lost) == 2
    assert desk.answers == [("p", Failed(3, "device-lost", "gone"))]
