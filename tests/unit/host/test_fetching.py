"""Exports of other device groups: copied when they are opened, and whatever goes wrong leaves nothing behind."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import pytest
from arrays import u32
from fakes import NUMBER, Bench
from kv_bench import Engine

from pieray.errors import Cancelled, DeviceLost, Evicted, NotFound, OutOfPages, PierayError, QuotaExceeded
from pieray.host.device import fetching
from pieray.host.device.visits import Visits
from pieray.leases import export_calls
from pieray.leases.ledger import Holder
from pieray.messages import Completed, ReadPages, SwapOut, WritePages

PAGE_BYTES = 64


class Elsewhere:
    """A session with another group: a real ledger with exports; what pages hold is their number."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.visitors: dict[int, Any] = {}
        self.asked: list[Any] = []
        self.lost: DeviceLost | None = None
        self.damage = 0

    def admit(self, number: int, visitor: Any, *standing: Any) -> None:
        if self.lost is not None:
            raise self.lost
        assert standing == ("acme", 0, 0.0, 0.0, "", "")
        self.visitors[number] = visitor

    def ask_ledger(self, message: Any) -> None:
        self.asked.append(message)

    def post(self, messages: Any) -> None:
        if self.lost is not None:
            raise self.lost
        self.asked.extend(messages)

    def flush(self) -> None: ...

    def preempted(self, number: int, num_pages: int, *, is_whole: bool) -> None:
        assert (num_pages, is_whole) == (0, False)

    def retire(self, number: int, done: Any) -> None:
        self.visitors.pop(number)
        self.engine.ledger.close(Holder("visitor", number))
        done()

    def serve(self, most: int = 1000) -> int:
        """Answer so many requests; how many there were."""
        count = 0
        while self.asked and count < most:
            message, count = self.asked.pop(0), count + 1
            number, holder = message.inferlet, Holder("visitor", message.inferlet)
            if (visitor := self.visitors.get(number)) is None:
                continue
            if isinstance(message, ReadPages):
                pages = np.frombuffer(message.pages, "<u4")
                assert self.engine.ledger.is_held(holder, pages.tolist())
                data = b"".join(int(page).to_bytes(4, "little") * (PAGE_BYTES // 4) for page in pages)
                visitor.answered([(message.ticket & 0xFFFFFFFF, [data, zlib.crc32(data) + self.damage])])
                continue
            try:
                result = export_calls.answer(self.engine.table, holder, message, 0.0)
            except PierayError as error:
                result = error
            visitor.ledger_answered(message.ticket & 0xFFFFFFFF, result)
        return count

    def lose(self) -> None:
        self.lost = DeviceLost("the other group is gone")
        for visitor in list(self.visitors.values()):
            visitor.device_lost(self.lost)


class Nearby:
    """A `LateDevice` that was chosen among others."""

    def __init__(self, sessions: list[Elsewhere]) -> None:
        self.sessions = sessions
        self.number = 1 << 31

    def others(self) -> list[Any]:
        return [one for one in self.sessions if one.lost is None]

    def other_with(self, prints: Any) -> Any:
        return None

    def standing(self) -> tuple[Any, ...]:
        return ("acme", 0, 0.0, 0.0, "", "")

    def visitor_number(self) -> int:
        self.number += 1
        return self.number


class World:
    """An inferlet of one group, and others elsewhere that have exports."""

    def __init__(self, num_groups: int = 1, **limits: float) -> None:
        self.here = Engine()
        self.here.num_on_their_way = 10
        self.groups = [Elsewhere(Engine()) for _ in range(num_groups)]
        self.bench: Bench = self.here.launch(**limits)
        self.bench.change(visits=Visits(Nearby(self.groups), lambda call: call(), lambda call: call()))  # type: ignore[arg-type]
        self.written: dict[int, bytes] = {}

    def export(self, name: str, num_tokens: int, group: int = 0) -> list[int]:
        """Its pages."""
        engine = self.groups[group].engine
        bench = engine.launch(num_pages=20)
        engine.done(bench, engine.export(bench, name, engine.fill(bench, num_tokens), num_tokens))
        return next(export.pages for export in engine.table.all() if export.name == name)

    def write(self) -> int:
        """The batcher here does what it was asked to."""
        posted, self.bench.device.posted = self.bench.device.posted, []
        for message in posted:
            assert isinstance(message, WritePages)
            pages = np.frombuffer(message.pages, "<u4").tolist()
            assert self.here.ledger.is_held(self.here.holder(self.bench), pages)
            if zlib.crc32(message.data) != message.checksum:
                self.bench.outbox.answered(message.ticket & 0xFFFFFFFF, Cancelled("it has changed on its way"))
                continue
            for place, page in enumerate(pages):
                self.written[page] = message.data[place * PAGE_BYTES : (place + 1) * PAGE_BYTES]
            self.bench.answer(Completed(message.ticket, None))
        return len(posted)

    def run(self, *tickets: int) -> None:
        """Until nobody has anything to do."""
        while True:
            asked = len(self.bench.device.asked)
            self.here.serve(self.bench)
            if not asked + sum(group.serve() for group in self.groups) + self.write():
                return

    def opened(self, ticket: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.bench.handlers.tickets.take_text(ticket))
        return found

    def check_nothing_is_left(self, free_here: int) -> None:
        self.here.num_on_their_way = 0
        self.here.take_back(self.bench)
        assert all(not group.visitors for group in self.groups)
        assert all(
            not group.engine.ledger.num_pages_of(Holder("visitor", (1 << 31) + n))
            for group in self.groups
            for n in range(9)
        )
        assert self.here.ledger.num_free == free_here
        self.bench.pages.check()
        for group in self.groups:
            group.engine.ledger.check()


def test_an_export_of_another_group_is_copied_and_is_the_inferlets_own() -> None:
    world = World(num_groups=2)
    pages = world.export("x", 38, group=1)
    free = world.here.ledger.num_free
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    found = world.opened(ticket)
    assert (found["num_tokens"], found["owner"], found["access"]) == (38, "ann", "owner")
    copies = world.bench.pages.rows_of(np.array(found["pages"], "<u4"))
    here = world.bench.pages.runs and [int(page) for page in world.bench.pages._frames.page[copies]]
    assert [int.from_bytes(world.written[page][:4], "little") for page in here] == pages
    assert world.here.ledger.num_free == free - len(pages)
    world.bench.handlers.kv.free(np.array(found["pages"], "<u4"))
    world.bench.handlers.tickets.flush()
    world.run()
    world.check_nothing_is_left(free)


def test_large_ones_travel_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK_BYTES", 3 * PAGE_BYTES)
    world = World()
    world.export("x", 38)
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    assert len(world.opened(ticket)["pages"]) == 10
    assert len(world.written) == 10


@pytest.mark.parametrize("steps", range(6))
def test_a_group_that_dies_meanwhile_is_told_and_nothing_is_left(steps: int) -> None:
    world = World()
    world.export("x", 38)
    free = world.here.ledger.num_free
    ticket = world.bench.handlers.kv.import_pages("x")
    for _ in range(steps):
        world.here.serve(world.bench)
        world.groups[0].serve(1)
        world.write()
    is_done = bool(world.bench.handlers.tickets.ready(u32(ticket)))
    world.groups[0].lose()
    world.run()
    if is_done:
        world.opened(ticket)
        return
    with pytest.raises((DeviceLost, NotFound)):
        world.opened(ticket)
    world.check_nothing_is_left(free)


def test_what_has_changed_on_its_way_is_not_used() -> None:
    world = World()
    world.export("x", 20)
    world.groups[0].damage = 1
    free = world.here.ledger.num_free
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    with pytest.raises(Cancelled, match="changed on its way"):
        world.opened(ticket)
    world.check_nothing_is_left(free)


def test_where_pages_are_short_here_it_is_said_and_nothing_is_held_there() -> None:
    world = World()
    world.export("x", 38)
    other = world.here.launch(num_pages=world.here.ledger.num_free)
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    with pytest.raises(OutOfPages):
        world.opened(ticket)
    world.check_nothing_is_left(0)
    assert other.pages.num_granted


def test_past_the_limit_of_handles_the_copies_are_given_back() -> None:
    world = World(pages=5)
    world.export("x", 38)
    free = world.here.ledger.num_free
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    with pytest.raises(QuotaExceeded, match=r"limits\.pages is 5"):
        world.opened(ticket)
    world.run()
    world.check_nothing_is_left(free)


def test_what_no_group_has_is_not_found_and_what_one_has_dropped_is_evicted() -> None:
    world = World(num_groups=2)
    ticket = world.bench.handlers.kv.import_pages("y")
    world.run()
    with pytest.raises(NotFound, match="there is no export 'y'"):
        world.opened(ticket)
    world.export("x", 20, group=0)
    there = world.groups[0].engine
    for bench in there.benches:
        bench.handlers.kv.free(np.array(bench.pages._handles.live_values() * 0, "<u4")[:0])
        there.ledger.close(there.holder(bench))
    there.table.evict(100)
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    with pytest.raises(Evicted, match="memory was short"):
        world.opened(ticket)


def test_several_are_fetched_one_behind_the_other() -> None:
    world = World(num_groups=2)
    for number in range(4):
        world.export(f"x{number}", 10 + number, group=number % 2)
    tickets = [world.bench.handlers.kv.import_pages(f"x{number}") for number in range(4)]
    world.here.serve(world.bench)
    assert sum(len(group.visitors) for group in world.groups) == 1
    world.run()
    assert [world.opened(ticket)["num_tokens"] for ticket in tickets] == [10, 11, 12, 13]


def test_at_the_inferlets_end_nothing_is_held_elsewhere() -> None:
    world = World()
    world.export("x", 38)
    world.bench.handlers.kv.import_pages("x")
    world.here.serve(world.bench)
    world.groups[0].serve()
    world.here.serve(world.bench)
    assert world.groups[0].visitors
    world.bench.outbox.close()
    world.bench.sides.first.visits.close()
    assert not world.groups[0].visitors
    world.groups[0].serve()
    assert world.bench.device.posted == []
    with pytest.raises(Cancelled):
        world.bench.sides.first.visits.begin(world.groups[0])  # type: ignore[arg-type]


def test_a_guest_that_has_forgotten_it_has_no_pages_of_it() -> None:
    world = World()
    world.export("x", 20)
    free = world.here.ledger.num_free
    ticket = world.bench.handlers.kv.import_pages("x")
    world.bench.handlers.tickets.cancel(u32(ticket))
    world.run()
    world.bench.handlers.tickets.flush()
    world.run()
    world.check_nothing_is_left(free)
    assert world.bench.pages.num_handles == 0
    assert NUMBER not in world.groups[0].visitors


def test_many_that_no_group_has_any_more_all_have_their_answers() -> None:
    world = World()
    tickets = [world.bench.handlers.kv.import_pages(f"x{number}") for number in range(500)]
    world.here.serve(world.bench)
    world.groups[0].lose()
    world.run()
    for ticket in tickets:
        with pytest.raises((NotFound, DeviceLost)):
            world.opened(ticket)
    world.check_nothing_is_left(world.here.ledger.num_free)


def test_requests_whose_tickets_were_cancelled_are_bounded_too_and_are_not_made() -> None:
    world = World(tickets=20)
    first = world.bench.handlers.kv.import_pages("x")
    for number in range(19):
        world.bench.handlers.tickets.cancel(u32(world.bench.handlers.kv.import_pages(f"x{number}")))
    world.here.serve(world.bench)
    with pytest.raises(QuotaExceeded, match="tickets: the limit is 20, as many requests to other device groups"):
        world.bench.handlers.kv.import_pages("x")
    assert world.groups[0].serve() == 1
    with pytest.raises(NotFound):
        world.opened(first)
    assert not world.groups[0].asked
    ticket = world.bench.handlers.kv.import_pages("x")
    world.run()
    with pytest.raises(NotFound):
        world.opened(ticket)


def test_what_would_pass_the_limit_of_handles_is_not_even_leased() -> None:
    world = World(pages=5)
    world.export("x", 38)
    world.bench.handlers.kv.import_pages("x")
    world.here.serve(world.bench)
    world.groups[0].serve()
    assert world.bench.device.asked == []


def test_who_gives_up_its_pages_meanwhile_says_that_it_has_others() -> None:
    world = World()
    world.export("x", 38)
    ticket = world.bench.handlers.kv.import_pages("x")
    world.here.serve(world.bench)
    world.groups[0].serve()
    world.here.serve(world.bench)  # leased here, and not copied yet
    world.bench.outbox.preempt(())
    swap = world.bench.device.posted.pop()
    assert isinstance(swap, SwapOut)
    world.bench.answer(Completed(swap.ticket, b""))
    assert world.bench.device.preempted_pages[-1][1] is False
    world.run()
    assert world.opened(ticket)["num_tokens"] == 38
