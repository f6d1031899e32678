"""Places shared by tenants: HTTP connections, name lookups, calls of MCP servers."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import examples

from pieray.concurrency.loop_shares import Shares, Who
from pieray.concurrency.loop_thread import LoopThread
from pieray.config import Limits
from pieray.errors import DeadlineExceeded
from pieray.world.http.bodies import Budget
from pieray.world.http.client import Ask, HttpClient
from pieray.world.http.policy import Policy, parse_patterns
from pieray.world.http.transport import SystemResolver
from pieray.world.mcp.servers import ToolServers


def who(tenant: str, inferlet: str = "it") -> Who:
    return Who(tenant, inferlet)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def hold(shares: Shares, whose: Who, num: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(shares.take(whose)) for _ in range(num)]
    await settle()
    return tasks


def test_a_tenant_has_its_own_places_whatever_the_others_hold() -> None:
    async def main() -> None:
        shares = Shares(own=2, common=8)
        for tenant in "abcd":
            for inferlet in "xyz":
                await hold(shares, who(tenant, inferlet), 100)
        assert shares.num_held == 4 * 2 + 8
        comes = await hold(shares, who("new"), 3)
        assert [task.done() for task in comes] == [True, True, False]

    asyncio.run(main())


def test_no_tenant_has_more_than_half_of_the_common_ones_and_no_inferlet_more_than_half_of_its_tenants() -> None:
    async def main() -> None:
        shares = Shares(own=2, common=8)
        one = await hold(shares, who("a", "x"), 100)
        assert sum(task.done() for task in one) == 3
        another = await hold(shares, who("a", "y"), 100)
        assert sum(task.done() for task in another) == 3
        assert sum(task.done() for task in await hold(shares, who("a", "z"), 100)) == 0

    asyncio.run(main())


def test_a_place_that_comes_free_goes_to_who_has_least() -> None:
    async def main() -> None:
        shares = Shares(own=1, common=4)
        for tenant in ("a", "b"):
            for inferlet in "xyz":
                await hold(shares, who(tenant, inferlet), 5)
        late = [*await hold(shares, who("late", "x"), 1), *await hold(shares, who("late", "y"), 1)]
        assert [task.done() for task in late] == [True, False]
        shares.give(who("a", "x"))
        await settle()
        assert late[1].done()

    asyncio.run(main())


@settings(max_examples=examples(100), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_places_are_conserved_and_nobody_waits_for_one_that_is_free(seed: int) -> None:
    async def main() -> None:
        random = Random(seed)
        shares = Shares(own=random.randint(1, 3), common=random.randint(1, 8))
        held: Counter[Who] = Counter()

        async def user(whose: Who) -> None:
            for _ in range(random.randint(1, 4)):
                async with shares.place(whose):
                    held[whose] += 1
                    assert held[whose] <= shares.inferlet_most
                    for _ in range(random.randint(0, 3)):
                        await asyncio.sleep(0)
                    held[whose] -= 1

        tasks = [asyncio.create_task(user(who(random.choice("abc"), random.choice("xy")))) for _ in range(30)]
        for _ in range(10):
            await asyncio.sleep(0)
            if random.random() < 0.5:
                random.choice(tasks).cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert shares.num_held == shares.num_waiting == 0

    asyncio.run(main())


# --- HTTP ---------------------------------------------------------------------------------------


class Trickle:
    """A server that answers /fast at once, and everything else with a byte now and then, for ever."""

    def __init__(self) -> None:
        self._door = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._door.getsockname()[1]
        self.num_slow = 0
        self._is_closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._is_closed.is_set():
            try:
                conn, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn:
            if b"/fast" in conn.recv(65536).split(b"\r\n")[0]:
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                return
            self.num_slow += 1
            try:
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not self._is_closed.wait(0.02):
                    conn.sendall(b"x")
            except OSError:
                return

    def close(self) -> None:
        self._is_closed.set()
        self._door.close()


@pytest.fixture
def trickle() -> Iterator[Trickle]:
    server = Trickle()
    yield server
    server.close()


def request(client: HttpClient, whose: Who, url: str, timeout_s: float) -> Any:
    patterns = parse_patterns(["*:*"])
    policy = Policy(patterns, patterns)
    ask = Ask(whose, "GET", policy.check(url), [], "", False, timeout_s)
    return client.request(ask, policy, Budget(Limits()))


@pytest.mark.slow
def test_slow_servers_of_one_tenant_take_no_connection_of_another(trickle: Trickle) -> None:
    async def main() -> None:
        client = HttpClient(["*:*"], allow_private=True)
        slow = f"http://127.0.0.1:{trickle.port}/slow"
        hostile = [
            asyncio.create_task(request(client, who(f"hostile-{i % 3}", f"it-{i}"), slow, 60)) for i in range(300)
        ]
        while trickle.num_slow < 64:
            await asyncio.sleep(0.01)
        for _ in range(5):
            answer = await request(client, who("victim"), f"http://127.0.0.1:{trickle.port}/fast", 20)
            assert '"body": "ok"' in answer
        assert not any(task.done() for task in hostile)
        for task in hostile:
            task.cancel()
        await asyncio.gather(*hostile, return_exceptions=True)
        assert client.connections.num_held == client.connections.num_waiting == 0

    asyncio.run(main())


def test_a_deadline_holds_while_bytes_trickle_and_while_a_place_is_waited_for(trickle: Trickle) -> None:
    async def main() -> None:
        client = HttpClient(["*:*"], allow_private=True)
        slow = f"http://127.0.0.1:{trickle.port}/slow"
        began = time.monotonic()
        found = await asyncio.gather(
            *(request(client, who("t", f"it-{i}"), slow, 0.5) for i in range(100)), return_exceptions=True
        )
        assert {type(error) for error in found} == {DeadlineExceeded}
        assert time.monotonic() - began < 15
        assert client.connections.num_held == client.connections.num_waiting == 0

    asyncio.run(main())


def test_names_that_are_not_answered_hold_up_their_tenant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup cannot be interrupted: it holds its place until the system gives up, whoever has stopped to wait."""
    released = threading.Event()

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        if host == "silent.example":
            assert released.wait(30)
        return [(0, 0, 0, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def main() -> None:
        resolver = SystemResolver()

        async def silent(i: int) -> None:
            async with asyncio.timeout(0.05):
                await resolver.look_up(who("hostile", f"it-{i}"), "silent.example", 80)

        found = await asyncio.gather(*map(silent, range(100)), return_exceptions=True)
        assert {type(error) for error in found} == {TimeoutError}
        assert resolver.lookups.num_held == resolver.lookups.tenant_most
        async with asyncio.timeout(20):
            assert await resolver.look_up(who("victim"), "fast.example", 80) == ["192.0.2.1"]
        released.set()
        while resolver.lookups.num_held:
            await asyncio.sleep(0.005)
        resolver.close()

    asyncio.run(main())


def test_calls_of_one_tenant_leave_an_mcp_server_to_the_others() -> None:
    servers = ToolServers({"tools": {"command": ["true"]}})
    calls = servers.calls("tools")

    async def main() -> None:
        for i in range(100):
            await hold(calls, who("hostile", f"it-{i}"), 5)
        assert calls.num_held == calls.tenant_most
        assert all(task.done() for task in await hold(calls, who("victim"), 2))

    asyncio.run(main())


# --- the loop -----------------------------------------------------------------------------------


def _raise(error: BaseException) -> None:
    raise error


class Panic(BaseException):
    """As a panic of native code arrives in Python."""


@pytest.mark.parametrize("error", [Panic("boom"), SystemExit(3), KeyboardInterrupt(), ValueError("plain")])
def test_work_that_panics_fails_alone_and_the_loop_goes_on(error: BaseException) -> None:
    from pieray.concurrency.loop_thread import Job

    loop = LoopThread()
    results: list[Any] = []
    done = threading.Event()

    async def bad() -> None:
        raise error

    async def good() -> str:
        return "fine"

    Job(loop).start(bad(), results.append)
    Job(loop).start(good(), lambda result: (results.append(result), done.set()))
    assert done.wait(10)
    assert loop.call(_raise, error)
    assert loop.call(done.clear)
    Job(loop).start(good(), lambda _: done.set())
    until = time.monotonic() + 10
    while not done.is_set():
        assert time.monotonic() < until, "the loop has ended"
        time.sleep(0.005)
    assert type(error).__name__ in results[0].message
    assert results[1] == "fine"
    loop.close()
