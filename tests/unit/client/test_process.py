"""The client's handle: events in order, results, errors, loss, several readers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator

import pytest

from pieray.client.process import Event, Process
from pieray.errors import DeadlineExceeded, PeerLost, QuotaExceeded


class NoLink:
    """A link that records."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.killed: list[str] = []

    def send_text(self, instance_id: str, text: str, timeout_s: float) -> None:
        self.sent.append(text)

    def kill(self, instance_id: str, reason: str, timeout_s: float) -> None:
        self.killed.append(reason)

    def usage(self, instance_id: str, timeout_s: float) -> dict[str, int]:
        return {"asked": int(timeout_s)}


@pytest.fixture
def process() -> Process:
    return Process("it", "demo", NoLink())


def text(number: int, value: str) -> Event:
    return Event("text", value, number)


def test_texts_come_in_order_and_logs_aside(process: Process) -> None:
    process.add([text(0, "a"), Event("log", "info: hm", 1), text(2, "b"), Event("result", "[1]", 3)])
    assert [e.text for e in process] == ["a", "b"]
    assert [e.kind for e in process.events()] == ["text", "log", "text", "result"]
    assert process.logs == ["info: hm"]
    assert process.result() == [1]


def test_usage_is_asked_of_the_actor_whether_it_runs_or_has_ended(process: Process) -> None:
    assert process.usage(3) == {"asked": 3}
    process.add([Event("result", "1", 0)])
    assert asyncio.run(process.ausage(4)) == {"asked": 4}


def test_whoever_iterates_may_say_how_long_the_next_event_may_take(process: Process) -> None:
    process.add([text(0, "a")])
    events = process.events(timeout=0.02)
    assert next(events).text == "a"
    with pytest.raises(DeadlineExceeded, match="no event of demo it has come within 0.02 s"):
        next(events)

    async def all_of() -> list[str]:
        return [event.text async for event in process.aevents(timeout=0.02)]

    with pytest.raises(DeadlineExceeded, match="within 0.02 s"):
        asyncio.run(all_of())
    process.add([Event("result", "1", 1)])
    assert asyncio.run(all_of()) == ["a", "1"]
    assert [event.text for event in process.events(timeout=0)] == ["a", "1"]


def test_events_that_come_twice_are_taken_once(process: Process) -> None:
    process.add([text(0, "a")])
    process.add([text(0, "a"), text(1, "b")])
    process.add([Event("result", "null", 2)])
    assert [e.text for e in process] == ["a", "b"]


def test_the_inferlets_error_is_raised_as_its_class(process: Process) -> None:
    fail(process)
    with pytest.raises(QuotaExceeded, match="the limit is 3"):
        process.result()


def fail(process: Process) -> None:
    process.add([text(0, "a"), Event("error", json.dumps({"code": "quota", "message": "pages: the limit is 3"}), 1)])


async def read_kinds(stream: AsyncIterator[Event], seen: list[str]) -> None:
    async for event in stream:
        seen.append(event.kind)  # noqa: PERF401 - what was seen before an error counts


def test_iterating_a_failed_inferlet_raises_its_error_at_the_end(process: Process) -> None:
    fail(process)
    seen: list[str] = []
    for read in (lambda: iter(process), process.events):
        with pytest.raises(QuotaExceeded, match="the limit is 3"):
            seen.extend(event.kind for event in read())
    assert seen == ["text", "text", "error"]

    async def main() -> None:
        for stream in (process.__aiter__(), process.aevents()):
            with pytest.raises(QuotaExceeded, match="the limit is 3"):
                await read_kinds(stream, seen)
        with pytest.raises(QuotaExceeded, match="the limit is 3"):
            await process

    asyncio.run(main())
    assert seen[3:] == ["text", "text", "error"]


def test_what_is_sent_after_the_connection_is_lost_is_an_error_and_no_silence(process: Process) -> None:
    link = process._link

    def refuse(*_: object) -> None:
        raise PeerLost("the client has closed its engine handle")

    link.kill = refuse  # type: ignore[method-assign]
    process.lose(PeerLost("gone"))
    with pytest.raises(PeerLost, match="closed its engine handle"):
        process.kill()


def test_a_process_is_awaited_and_its_calls_have_twins_for_an_event_loop(process: Process) -> None:
    async def main() -> object:
        await process.asend("hello")
        await process.akill("enough")
        asyncio.get_running_loop().call_later(0.01, process.add, [text(0, "a"), Event("result", "7", 1)])
        assert [event.kind async for event in process.aevents()] == ["text", "result"]
        return await process

    assert asyncio.run(main()) == 7
    assert (process._link.sent, process._link.killed) == (["hello"], ["enough"])  # type: ignore[attr-defined]


def test_a_call_that_waits_does_not_hold_up_the_event_loop_nor_others(process: Process) -> None:
    go = threading.Event()

    def block(instance_id: str, value: str, timeout_s: float) -> None:
        assert go.wait(30)

    process._link.send_text = block  # type: ignore[method-assign]

    async def main() -> None:
        sends = [asyncio.ensure_future(process.asend("x")) for _ in range(100)]
        await process.akill("enough")  # no queue behind those that wait
        sends[0].cancel()
        go.set()
        done = await asyncio.gather(*sends, return_exceptions=True)
        assert [type(one) for one in done] == [asyncio.CancelledError] + [type(None)] * 99

    asyncio.run(main())


def test_a_result_that_does_not_come_is_a_deadline(process: Process) -> None:
    with pytest.raises(DeadlineExceeded, match="0.01 s"):
        process.result(timeout=0.01)


def test_a_lost_actor_answers_everybody_who_waits(process: Process) -> None:
    got: list[object] = []

    def wait() -> None:
        try:
            got.append(process.result())
        except PeerLost as error:
            got.append(error.message)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    process.lose(PeerLost("gone"))
    for thread in threads:
        thread.join(5)
    assert got == ["gone"] * 3
    with pytest.raises(PeerLost, match="gone"):
        list(process)


def test_a_loss_after_the_end_changes_nothing(process: Process) -> None:
    process.add([Event("result", "7", 0)])
    process.lose(PeerLost("gone"))
    assert process.result() == 7
    process.kill()
    assert process._link.killed == []  # type: ignore[attr-defined]


def test_async_iteration_sees_what_a_thread_adds(process: Process) -> None:
    async def read() -> list[str]:
        return [e.text async for e in process]

    async def main() -> tuple[list[str], list[str], object]:
        def produce() -> None:
            for i in range(50):
                process.add([text(i, str(i))])
            process.add([Event("result", "50", 50)])

        readers = asyncio.gather(read(), read())
        await asyncio.sleep(0.01)
        thread = threading.Thread(target=produce)
        thread.start()
        first, second = await asyncio.wait_for(readers, 5)
        thread.join()
        return first, second, await process.wait(timeout=1)

    first, second, result = asyncio.run(main())
    assert first == second == [str(i) for i in range(50)]
    assert result == 50


def test_events_out_of_turn_wait_for_those_before_them(process: Process) -> None:
    process.add([text(2, "c")])  # of another handle's stream: our own past is still to come
    process.add([text(0, "a"), text(1, "b"), text(2, "c"), Event("result", "1", 3)])
    assert [e.text for e in process] == ["a", "b", "c"]


def test_waiting_takes_any_timeout_and_names_its_deadline(process: Process) -> None:
    async def wait() -> object:
        return await process.wait(timeout=0.01)

    with pytest.raises(DeadlineExceeded, match="0.01 s"):
        asyncio.run(wait())
    threading.Timer(0.05, process.add, ([Event("result", "1", 0)],)).start()
    assert process.result(timeout=float("inf")) == 1


def test_a_reader_whose_loop_is_closed_does_not_hold_up_the_others(process: Process) -> None:
    loop = asyncio.new_event_loop()
    reader = process.__aiter__()
    process.add([text(0, "a")])
    assert loop.run_until_complete(anext(reader)).text == "a"
    loop.close()
    process.add([Event("result", "1", 1)])
    assert process.result(timeout=1) == 1
