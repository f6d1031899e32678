"""asyncio on tickets: what programs use of it behaves as in a usual event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from fake_host import FakeHost

import pieray.errors
from inferlet import BadHandle, Cancelled, Context, DeadlineExceeded, Deadlock, _host, forward, kv, queue, session
from inferlet._loop import TicketLoop
from inferlet._running import run
from inferlet._waiting import wait_ticket
from inferlet.tickets import Ticket, take_none, take_text


def test_gather_runs_together(host: FakeHost) -> None:
    async def nap(i: int) -> int:
        await asyncio.sleep(1 + i / 10)
        return i

    async def main() -> list[int]:
        return await asyncio.gather(*map(nap, range(10)))

    assert run(main()) == list(range(10))
    assert host.clock == pytest.approx(1.9, abs=0.02)


def test_a_task_group_cancels_the_others_and_raises_all(host: FakeHost) -> None:
    cancelled = []

    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise ValueError("one")

    async def wait() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(wait())

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    assert [str(e) for e in caught.value.exceptions] == ["one"]
    assert cancelled == [1]
    assert host.clock < 1


def test_timeouts_end_waits_for_tickets(host: FakeHost) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await session.receive()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.receive(), 3)
        with pytest.raises(DeadlineExceeded, match="within 4 s"):
            await session.receive(timeout=4)

    run(main())
    assert host.clock == pytest.approx(9, abs=0.02)


def test_no_message_is_lost_to_a_timeout(host: FakeHost) -> None:
    host.inbox = [(5.0, "late"), (6.0, "later")]

    async def main() -> list[str]:
        with pytest.raises(TimeoutError):
            await session.receive(timeout=4)
        task = asyncio.create_task(session.receive())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return [await session.receive(), await session.receive(timeout=10)]

    assert run(main()) == ["late", "later"]


def test_a_wait_under_a_timeout_does_not_slow_others(host: FakeHost) -> None:
    host.inbox = [(1.0, "hello")]

    async def main() -> str:
        async with asyncio.timeout(5), Context("abc") as ctx:
            await ctx.generate(5)
            return await session.receive()

    assert run(main()) == "hello"
    assert host.clock == 1.0


async def spoken() -> Context:
    ctx = Context("abc")
    await ctx.generate(5)
    return ctx


def test_a_wait_for_the_client_says_once_that_the_memory_is_idle(host: FakeHost) -> None:
    host.inbox = [(5.0, "hello"), (5.01, "at once"), (7.0, "and later"), (9.0, "last")]

    async def main() -> None:
        ctx = await spoken()
        await session.receive()
        assert host.idle_at == [0.02]
        await session.receive()  # it does not take long
        assert host.idle_at == [0.02]
        await ctx.generate(5)
        await session.receive(timeout=100)
        assert host.idle_at == pytest.approx([0.02, 5.03], abs=0.005)
        with pytest.raises(DeadlineExceeded):
            await session.receive(timeout=0.5)  # not for long
        ctx.close()
        await session.receive()  # it has nothing to be idle
        assert host.idle_at == pytest.approx([0.02, 5.03], abs=0.005)

    run(main())


def test_what_is_pinned_or_reserved_is_not_called_idle(host: FakeHost) -> None:
    host.inbox = [(float(at), "hello") for at in range(1, 5)]

    async def main() -> None:
        async with await spoken() as ctx:
            ctx.pin()
            await session.receive()
            ctx.unpin()
            await ctx.reserve(50)
            await session.receive()
            assert host.idle_at == []
            ctx.idle()  # gives back what is reserved
            await session.receive()
            assert host.idle_at == [2.0, 2.02]

    run(main())


def test_long_waits_of_several_tasks_are_one_and_others_are_none(host: FakeHost) -> None:
    host.inbox = [(30.0, "hello"), (31.0, "bye")]

    async def tick() -> None:
        for _ in range(20):
            await asyncio.sleep(0.1)

    async def main() -> None:
        async with await spoken():
            await asyncio.gather(session.receive(), asyncio.sleep(20), tick(), session.receive())
            assert host.idle_at == [pytest.approx(2.03, abs=0.02)]  # when no task ticks any more
            host.idle_at.clear()
            await asyncio.sleep(3)
            await asyncio.sleep(0.5)
            assert host.idle_at == [pytest.approx(31.02)]

    run(main())


def test_a_generation_in_another_task_is_never_said_to_be_idle(host: FakeHost) -> None:
    host.inbox = [(3.0, "hello")]
    said: list[int] = []

    async def generate() -> None:
        async with Context("abc abc") as ctx:
            async for token in ctx.generate(60, stop_tokens=()):
                assert not host.idle_at
                said.append(token.id)

    async def main() -> None:
        async with await spoken():
            await asyncio.gather(session.receive(), generate())
            assert len(said) == 60
            assert host.idle_at in ([], [0.02])

    run(main())


def test_queue_event_semaphore(host: FakeHost) -> None:
    async def main() -> list[int]:
        items: asyncio.Queue[int] = asyncio.Queue(2)
        done, slots, seen = asyncio.Event(), asyncio.Semaphore(1), []

        async def produce() -> None:
            for i in range(5):
                await items.put(i)
            done.set()

        async def consume() -> None:
            while True:
                async with slots:
                    seen.append(await items.get())
                items.task_done()

        consumers = [asyncio.create_task(consume()) for _ in range(2)]
        producer = asyncio.create_task(produce())
        await done.wait()
        await items.join()
        await producer
        for task in consumers:
            task.cancel()
        return seen

    assert run(main()) == [0, 1, 2, 3, 4]


def test_a_busy_loop_of_zero_sleeps_lets_tickets_through(host: FakeHost) -> None:
    async def main() -> int:
        async with Context("abc") as ctx:
            task = asyncio.create_task(ctx.collect_text(3, stop_tokens=()))
            rounds = 0
            while not task.done():
                await asyncio.sleep(0)
                rounds += 1
            return rounds

    assert 0 < run(main()) < 200


def test_waiting_for_nothing_is_named(host: FakeHost) -> None:
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.gather(stuck())

    with pytest.raises(Deadlock, match=r"waiting for nothing: .*Task-\d+ at .*test_guest_loop.py:\d+ \(await"):
        run(main())


def test_generators_and_tasks_left_behind_are_closed(host: FakeHost) -> None:
    closed = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append("generator")

    async def forever() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            closed.append("task")

    async def main() -> None:
        kept.append(numbers())
        await anext(kept[0])
        asyncio.create_task(forever())  # noqa: RUF006 - what happens to it is the test
        await asyncio.sleep(0)

    kept: list[AsyncIterator[int]] = []
    run(main())
    assert sorted(closed) == ["generator", "task"]


def test_a_task_that_fails_unseen_is_logged(host: FakeHost) -> None:
    async def fail() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        asyncio.create_task(fail(), name="worker")  # noqa: RUF006 - nobody looks at it
        await asyncio.sleep(0.1)

    run(main())
    assert [level for level, _ in host.logs] == ["error"]
    assert "worker" in host.logs[0][1]
    assert "ValueError: unseen" in host.logs[0][1]


def test_cancelling_a_task_forgets_its_ticket(host: FakeHost) -> None:
    async def main() -> None:
        q = queue.create()
        task = asyncio.create_task(_await(forward.forward(q, kv.alloc(1), 0, [1, 2])))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not host.pending
        kv.free(list(host.pages))

    run(main())


def test_the_loop_is_one_that_asyncio_run_can_use(host: FakeHost) -> None:
    async def main() -> int:
        await asyncio.sleep(0.5)
        return 7

    with asyncio.Runner(loop_factory=TicketLoop) as runner:
        assert runner.run(main()) == 7

    async def nested() -> None:
        inner = main()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            asyncio.run(inner)
        inner.close()

    run(nested())


async def _await(awaitable: object) -> object:
    return await awaitable  # type: ignore[misc]


def answered(host: FakeHost, kind: str, value: object) -> int:
    host.results[ticket := host._new_ticket()] = (kind, value)
    return ticket


def receive() -> Ticket[str]:
    return Ticket(_host.session.receive(), take_text)


def test_two_tasks_that_await_one_ticket_both_get_its_answer(host: FakeHost) -> None:
    host.inbox = [(1.0, "hello")]

    async def read(ticket: Ticket[str]) -> str:
        return await ticket

    async def main() -> list[str]:
        ticket = receive()
        found = await asyncio.gather(read(ticket), read(ticket), read(ticket))
        return [*found, await ticket, ticket.take()]

    assert run(main()) == ["hello"] * 5


def test_a_failure_behind_a_ticket_is_told_to_each_who_awaits_it(host: FakeHost) -> None:
    async def main() -> list[object]:
        ticket: Ticket[None] = Ticket(answered(host, "error", pieray.errors.BadHandle("gone")), take_none)
        return await asyncio.gather(*(asyncio.ensure_future(one(ticket)) for _ in range(2)), return_exceptions=True)

    async def one(ticket: Ticket[None]) -> None:
        await ticket

    first, second = run(main())
    assert str(first) == str(second) == "gone"
    assert first is not second


def test_a_cancelled_wait_leaves_the_ticket_to_the_others(host: FakeHost) -> None:
    host.inbox = [(2.0, "hello")]

    async def read(ticket: Ticket[str]) -> str:
        return await ticket

    async def main() -> str:
        ticket = receive()
        impatient, patient = (asyncio.create_task(read(ticket)) for _ in range(2))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(impatient, 1)
        return await patient

    assert run(main()) == "hello"


@pytest.mark.parametrize("first", [0, 1])
def test_a_wait_that_is_cancelled_as_the_answer_comes_does_not_take_it_from_the_others(
    host: FakeHost, first: int
) -> None:
    """Both have been woken, neither has run: one is cancelled then."""
    host.inbox = [(1.0, "hello")]

    async def main() -> str:
        ticket = receive()
        tasks = [asyncio.create_task(_read(ticket)) for _ in range(2)]
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TicketLoop)
        await asyncio.sleep(0)
        loop._wait(-1)
        tasks[first].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[first], asyncio.CancelledError)
        return str(done[1 - first])

    async def _read(ticket: Ticket[str]) -> str:
        return await ticket

    assert run(main()) == "hello"


def test_a_ticket_cancelled_by_one_task_ends_the_wait_of_another(host: FakeHost) -> None:
    async def read(ticket: Ticket[str]) -> str:
        return await ticket

    async def main() -> None:
        ticket = receive()
        reader = asyncio.create_task(read(ticket))
        await asyncio.sleep(0)
        ticket.cancel()
        with pytest.raises(Cancelled):
            await reader
        await asyncio.sleep(1)  # the loop goes on

    run(main())


def test_a_number_that_is_no_ticket_fails_its_waiter_alone(host: FakeHost) -> None:
    host.inbox = [(1.0, "hello")]

    async def main() -> list[object]:
        number = answered(host, "none", None)
        tasks = [asyncio.create_task(wait_ticket(one)) for one in (number, 999)]
        receiving = asyncio.create_task(session.receive())
        found = await asyncio.gather(*tasks, receiving, return_exceptions=True)
        host.tickets_cancel([number])
        return list(found)

    good, bad, text = run(main())
    assert (good, text) == (None, "hello")
    assert isinstance(bad, BadHandle)


def test_a_sleep_without_end_waits(host: FakeHost) -> None:
    host.inbox = [(1.0, "hello")]

    async def main() -> str:
        sleeping = asyncio.create_task(asyncio.sleep(float("inf")))
        text = await session.receive()
        sleeping.cancel()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(1e10), 1)
        return text

    assert run(main()) == "hello"
