"""Handlers of `kv` beyond alloc, fork, free, copy: over a fake device, and a real ledger with real exports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from arrays import u32
from fakes import NUMBER, Bench
from kv_bench import Engine, forward

from pieray.errors import (
    BadHandle,
    Cancelled,
    Denied,
    DeviceLost,
    Evicted,
    InvalidRequest,
    NotFound,
    OutOfPages,
    QuotaExceeded,
)
from pieray.host.device import leases
from pieray.host.device.visibility import MAX_MASK_BITS
from pieray.messages import CloseLease, Completed, ExportPages, Failed, ImportPages


@pytest.fixture
def engine() -> Engine:
    return Engine()


# --- masks -----------------------------------------------------------------------------------------


def rows(mask: bytes, num_tokens: int, width: int) -> list[str]:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=num_tokens * width, bitorder="little")
    return ["".join("x" if bit else "." for bit in row) for row in bits.reshape(num_tokens, width)]


def test_a_pass_over_masked_tokens_travels_with_their_columns_hidden(engine: Engine) -> None:
    bench = engine.launch()
    pages = np.concatenate((engine.fill(bench, 5), bench.handlers.kv.alloc(1)))
    bench.handlers.kv.mask(int(pages[0]), 1, 2, False)
    forward(bench, pages, 5, 2)
    packed = np.packbits(np.array([1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1], np.uint8), bitorder="little")
    forward(bench, pages, 5, 2, np.frombuffer(packed.tobytes().ljust(4, b"\0"), "<u4").copy())
    bench.handlers.kv.mask(int(pages[0]), 0, 4, True)
    forward(bench, pages, 5, 2)
    bench.handlers.tickets.flush()
    causal, given, shown = bench.forwards()
    assert rows(causal.mask, 2, 7) == ["x..xxx.", "x..xxxx"]
    assert rows(given.mask, 2, 7) == ["x..xxx.", "...xxxx"]
    assert shown.mask == b""


def test_a_composed_mask_has_a_limit_that_is_named(engine: Engine) -> None:
    bench = engine.launch(num_pages=1)
    pages = bench.handlers.kv.alloc(500)
    bench.handlers.kv.mask(int(pages[0]), 0, 4, False)
    object.__setattr__(bench.parts.models.get("").info, "max_context", 1 << 20)
    pages = np.resize(pages, 300_000)
    with pytest.raises(QuotaExceeded, match=f"at most {MAX_MASK_BITS} bits.*run fewer tokens"):
        forward(bench, pages, 1_000_000, 5)


def test_bad_masks_and_truncations_are_typed_errors(engine: Engine) -> None:
    bench = engine.launch()
    pages = bench.handlers.kv.alloc(1)
    with pytest.raises(InvalidRequest):
        bench.handlers.kv.mask(int(pages[0]), 3, 2, False)
    with pytest.raises(BadHandle):
        bench.handlers.kv.mask(7, 0, 1, False)
    with pytest.raises(InvalidRequest):
        bench.handlers.kv.truncate(pages, 5)
    bench.handlers.kv.mask(int(pages[0]), 0, 1, False)
    with pytest.raises(InvalidRequest):
        forward(bench, pages, 4_000_000_000, 1)
    with pytest.raises(BadHandle):
        forward(bench, u32(99), 1, 1)
    assert bench.outbox.num_outstanding == 0


# --- memory ahead of use ---------------------------------------------------------------------------


def test_reserve_leases_what_is_missing_and_keeps_it_from_being_reclaimed(engine: Engine) -> None:
    bench = engine.launch(num_pages=3)
    ticket = bench.handlers.kv.reserve(8)
    (asked,) = bench.device.asked
    assert (asked.count, asked.deadline_s) == (5, bench.limits.page_wait_s)
    engine.done(bench, ticket)
    assert (bench.pages.num_spare, bench.pages.num_reserved) == (8, 8)
    ticket = bench.handlers.kv.reserve(4)
    assert bench.device.asked == []
    bench.handlers.tickets.take_none(ticket)
    assert bench.pages.surplus(keep=bench.pages.num_reserved) == []
    bench.handlers.kv.idle(bench.handlers.kv.alloc(1))
    assert len(bench.device.released) == 8


def test_reserve_that_cannot_be_had_is_out_of_pages_and_past_the_limit_quota(engine: Engine) -> None:
    bench = engine.launch(num_pages=3, pages=100)
    ticket = bench.handlers.kv.reserve(90)
    engine.serve(bench)
    with pytest.raises(OutOfPages):
        bench.handlers.tickets.take_none(ticket)
    assert bench.pages.num_reserved == 0
    with pytest.raises(QuotaExceeded, match=r"limits\.pages is 100"):
        bench.handlers.kv.reserve(101)
    assert len(bench.tickets) == 0


def test_idle_gives_back_what_is_leased_ahead_and_asks_for_no_more_before_a_command_comes(engine: Engine) -> None:
    bench = engine.launch(num_pages=8)
    pages = engine.fill(bench, 4)
    bench.device.leases.clear()
    bench.handlers.kv.idle(pages)
    assert (len(bench.device.released), bench.pages.num_spare) == (7, 0)
    for _ in range(3):
        bench.handlers.tickets.flush()
    bench.outbox.leases.granted([40, 41])  # a lease that was under way
    assert (len(bench.device.released), bench.device.leases) == (9, [])
    forward(bench, np.concatenate((pages, bench.handlers.kv.alloc(1))), 4, 1)
    bench.handlers.tickets.flush()
    assert bench.device.leases == [(1, 9.0)]
    with pytest.raises(BadHandle):
        bench.handlers.kv.idle(u32(5))


def test_what_is_expected_is_leased_ahead_at_once_and_nobody_waits_for_it(engine: Engine) -> None:
    bench = engine.launch(num_pages=3, pages=100)
    pages = engine.fill(bench, 4)
    bench.device.leases.clear()
    bench.handlers.kv.idle(pages)
    bench.handlers.kv.expect(20)
    assert bench.device.leases == [(20, 0.0)]
    assert len(bench.tickets) == 1  # the pass of `fill`
    bench.outbox.leases.granted(range(100, 120))
    assert (bench.device.leases[1:], bench.pages.num_spare, bench.pages.num_reserved) == ([], 20, 0)
    bench.handlers.kv.expect(4)  # less than that
    bench.handlers.tickets.flush()
    assert bench.device.leases[1:] == []
    engine.fill(bench, 40)
    assert (bench.device.leases[1:], bench.pages.num_spare) == ([], 10)  # it is what was expected
    engine.fill(bench, 36)
    assert bench.device.leases[1:] == [(4, 0.0)]  # as always
    with pytest.raises(QuotaExceeded, match=r"limits\.pages is 100"):
        bench.handlers.kv.expect(90)


def test_where_there_is_not_all_that_is_expected_half_of_it_is_asked_for_next(engine: Engine) -> None:
    bench = engine.launch(num_pages=3)
    engine.fill(bench, 4)
    bench.handlers.kv.expect(22)
    for asked in (20, 10, 5, 4, 4):  # 4 are leased ahead of need by all
        assert bench.device.leases == [(asked, 0.0)]
        bench.device.leases.clear()
        bench.outbox.leases.lease_failed(OutOfPages("none free"))
        assert bench.device.leases == []
        bench.handlers.tickets.flush()


def test_what_is_expected_goes_to_who_needs_it_and_is_not_asked_for_again(engine: Engine) -> None:
    bench = engine.launch(num_pages=3)
    pages = engine.fill(bench, 4)
    for give_back in (
        bench.outbox.leases.reclaim,
        lambda: bench.handlers.kv.idle(pages),
        lambda: bench.handlers.kv.expect(0),
    ):
        bench.device.leases.clear()
        bench.handlers.kv.expect(22)
        bench.outbox.leases.granted(range(100, 100 + bench.device.leases[0][0]))
        bench.device.leases.clear()
        give_back()
        bench.outbox.leases.reclaim()
        bench.outbox.leases.wake()
        bench.handlers.tickets.flush()
        assert bench.device.leases == [(4, 0.0)]
        bench.outbox.leases.granted(range(200, 204))
        bench.outbox.leases.reclaim()


def test_what_a_program_that_has_just_begun_has_leased_ahead_is_not_for_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would ask for it again in a moment.  One that takes its time gives it back, and so does one that is idle."""
    bench = engine.launch(num_pages=8)
    assert len(bench.outbox.leases.reclaim()) == 4  # 4 are a usual lease
    assert bench.outbox.leases.reclaim() == []
    monkeypatch.setattr(leases, "BEGIN_S", 0.0)
    assert len(bench.outbox.leases.reclaim()) == 4
    monkeypatch.undo()
    other = engine.launch(num_pages=8)
    other.outbox.leases.idle()
    other.outbox.leases.reclaim()
    assert other.pages.num_spare == 0


# --- exports ---------------------------------------------------------------------------------------


def test_an_export_is_made_once_what_was_staged_before_it_has_run_and_no_sooner(engine: Engine) -> None:
    bench = engine.launch()
    pages = bench.handlers.kv.alloc(2)
    forward(bench, pages, 0, 6)
    ticket = engine.export(bench, "x", pages, 6, meta="m")
    forward(bench, pages, 6, 1)  # behind it: the export has the page as it was
    bench.handlers.tickets.flush()
    assert bench.device.asked == []
    first, copies, second = bench.device.posted
    bench.answer(Completed(first.ticket, None))
    (asked,) = bench.device.asked
    assert isinstance(asked, ExportPages)
    assert np.frombuffer(asked.pages, "<u4").tolist() == np.frombuffer(first.pages, "<u4").tolist()
    assert np.frombuffer(asked.written, "<u8").tolist() == [0b1111, 0b0011]
    assert (asked.name, asked.tenant, asked.user, asked.access, asked.meta) == ("x", "acme", "ann", "owner", "m")
    assert copies.copies[0][0] == np.frombuffer(first.pages, "<u4").tolist()[1]
    assert second.pages != first.pages
    engine.serve(bench)
    bench.handlers.tickets.take_none(ticket)


def test_reading_commands_do_not_hold_up_an_export(engine: Engine) -> None:
    bench = engine.launch()
    pages = np.concatenate((engine.fill(bench, 4), bench.handlers.kv.alloc(1)))
    forward(bench, pages, 4, 1)
    engine.export(bench, "x", pages, 4)
    assert isinstance(bench.device.asked[0], ExportPages)


def test_an_import_elsewhere_reads_the_same_pages_and_copies_them_before_it_writes(engine: Engine) -> None:
    ann, other = engine.launch(), engine.launch()
    pages = engine.fill(ann, 6)
    ticket = engine.export(ann, "x", pages, 6, meta='{"a":1}', access="tenant")
    engine.done(ann, ticket)
    found = engine.open(other, "x")
    assert {k: v for k, v in found.items() if k != "pages"} == {
        "num_tokens": 6,
        "meta": '{"a":1}',
        "access": "tenant",
        "owner": "ann",
    }
    handles = u32(*found["pages"])  # type: ignore[misc]
    with pytest.raises(InvalidRequest, match="kv_len 7"):
        forward(other, handles, 7, 1)
    forward(other, handles, 6, 1)
    other.handlers.tickets.flush()
    copy, run = other.device.posted
    shared = ann.pages._frames.page.take(ann.pages._handles.values(ann.pages._handles.find(pages))).tolist()
    assert copy.copies == [[shared[1], 0, np.frombuffer(run.pages, "<u4")[1], 0, 2]]
    assert np.frombuffer(run.pages, "<u4")[0] == shared[0]
    other.complete_all()
    other.handlers.kv.free(handles)
    other.handlers.tickets.flush()
    assert sorted(other.device.released) == sorted(shared)
    engine.take_back(other)
    assert engine.ledger.num_pages_of(engine.holder(other)) == other.pages.num_granted - other.pages.num_released


def test_pages_outlive_the_inferlet_and_its_actor_and_all_come_back(engine: Engine) -> None:
    ann, other = engine.launch(), engine.launch(num_pages=2)
    engine.done(ann, engine.export(ann, "x", engine.fill(ann, 6), 6))
    engine.ledger.drop_peer(engine.holder(ann).peer_id, fenced=False)
    engine.ledger.fence(engine.holder(ann).peer_id)
    assert (engine.ledger.num_cached, engine.ledger.num_leased) == (2, 2)
    assert len(engine.open(other, "x")["pages"]) == 2  # type: ignore[arg-type]
    engine.done(other, other.handlers.kv.unexport("x", "owner"))
    assert (engine.ledger.num_cached, engine.ledger.num_leased) == (0, 4)
    engine.ledger.close(engine.holder(other))
    assert engine.ledger.num_free == 64


def test_access_and_errors_of_imports(engine: Engine) -> None:
    ann, bob, eve = engine.launch("ann"), engine.launch("bob"), engine.launch("eve", "evil")
    pages = engine.fill(ann, 4)
    for access in ("owner", "tenant", "public"):
        engine.done(ann, engine.export(ann, f"for {access}", pages, 4, access=access))
    assert engine.open(bob, "for tenant")["owner"] == "ann"
    assert engine.open(eve, "for public")["owner"] == "ann"
    for who, name in ((bob, "for owner"), (eve, "for owner"), (eve, "for tenant")):
        with pytest.raises(NotFound):
            engine.open(who, name)
    for call in (
        lambda: eve.handlers.kv.unexport("for public", "public"),
        lambda: engine.export(eve, "for public", engine.fill(eve), 4, access="public", replace=True),
    ):
        with pytest.raises(Denied):
            engine.done(eve, call())
    listed = json.loads(listing(engine, bob, "for "))
    assert listed == [
        {
            "name": f"for {access}",
            "access": access,
            "owner": "ann",
            "num_pages": 1,
            "num_tokens": 4,
            "pinned": False,
            "expires_in_ms": None,
            "num_importers": num,
        }
        for access, num in (("public", 1), ("tenant", 1))
    ]
    assert engine.table.evict(99) == 0  # somebody has them open
    ann.handlers.kv.free(pages)
    ann.handlers.tickets.flush()
    engine.take_back(ann)
    for bench in (bob, eve):
        engine.ledger.close(engine.holder(bench))
    assert engine.table.evict(99) == 1
    with pytest.raises(Evicted):
        engine.open(ann, "for owner")


def listing(engine: Engine, bench: Bench, prefix: str) -> str:
    ticket = bench.handlers.kv.list_exports(prefix)
    engine.serve(bench)
    text: str = bench.handlers.tickets.take_text(ticket)
    return text


def test_names_meta_and_quotas_are_bounded(engine: Engine) -> None:
    bench = engine.launch(message_bytes=100, exports=1, export_pages=1)
    pages = engine.fill(bench, 6)
    for name in ("", "é" * 129):
        for call in (
            bench.handlers.kv.import_pages,
            lambda n: bench.handlers.kv.unexport(n, "owner"),
            lambda n: engine.export(bench, n, pages, 4),
        ):
            with pytest.raises(InvalidRequest, match="from 1 to 256 bytes"):
                call(name)
    with pytest.raises(QuotaExceeded, match="message_bytes: the limit is 100; the meta has 101"):
        engine.export(bench, "x", pages, 4, meta="m" * 101)
    with pytest.raises(QuotaExceeded, match="export_pages: the limit is 1"):
        engine.done(bench, engine.export(bench, "x", pages, 6))
    engine.done(bench, engine.export(bench, "x", pages, 4))
    with pytest.raises(QuotaExceeded, match="exports: the limit is 1"):
        engine.done(bench, engine.export(bench, "y", pages, 4))
    with pytest.raises(QuotaExceeded, match="longer prefix"):
        listing(engine, bench, "")
    assert listing(engine, bench, "z") == "[]"
    bench.handlers.kv.free(pages)
    bench.handlers.tickets.flush()
    engine.take_back(bench)


def test_an_export_of_what_a_failed_pass_was_to_write_fails_with_it(engine: Engine) -> None:
    bench = engine.launch()
    pages = bench.handlers.kv.alloc(1)
    forward(bench, pages, 0, 2)
    ticket = engine.export(bench, "x", pages, 2)
    bench.handlers.tickets.flush()
    (sent,) = bench.forwards()
    bench.answer(Failed(sent.ticket, "internal", "no"))
    with pytest.raises(Cancelled, match="exported"):
        bench.handlers.tickets.take_none(ticket)
    assert bench.device.asked == []
    bench.pages.check()


def test_an_import_that_the_guest_forgot_gives_its_pages_back(engine: Engine) -> None:
    ann, bob = engine.launch(), engine.launch()
    engine.done(ann, engine.export(ann, "x", engine.fill(ann, 6), 6))
    ticket = bob.handlers.kv.import_pages("x")
    bob.handlers.tickets.cancel(u32(ticket))
    engine.serve(bob)
    assert bob.pages.num_handles == 0
    assert engine.ledger.num_pages_of(engine.holder(bob)) == 8


def test_an_import_past_the_limit_of_pages_gives_them_back(engine: Engine) -> None:
    ann, bob = engine.launch(), engine.launch(pages=2, num_pages=2)
    engine.done(ann, engine.export(ann, "x", engine.fill(ann, 6), 6))
    bob.handlers.kv.alloc(1)
    with pytest.raises(QuotaExceeded, match=r"limits\.pages is 2"):
        engine.open(bob, "x")
    assert engine.ledger.num_pages_of(engine.holder(bob)) == 2


def test_when_the_device_is_lost_all_that_waits_is_told(engine: Engine) -> None:
    bench = engine.launch()
    pages = engine.fill(bench, 4)
    more = bench.handlers.kv.alloc(1)
    forward(bench, more, 0, 1)
    tickets = [
        bench.handlers.kv.reserve(20),
        bench.handlers.kv.import_pages("x"),
        bench.handlers.kv.list_exports(""),
        engine.export(bench, "x", pages, 4),
        engine.export(bench, "y", more, 1),
    ]
    bench.outbox.fail_all(DeviceLost("gone"))
    for ticket in tickets:
        with pytest.raises((DeviceLost, Cancelled)):
            bench.handlers.tickets.take_none(ticket)
    bench.device.error = DeviceLost("gone")
    with pytest.raises(DeviceLost):
        bench.handlers.tickets.take_text(bench.handlers.kv.import_pages("x"))
    bench.pages.check()


def test_at_the_guests_end_what_waits_is_dropped_and_nothing_more_is_asked(engine: Engine) -> None:
    bench = engine.launch()
    pages = bench.handlers.kv.alloc(1)
    forward(bench, pages, 0, 1)
    engine.export(bench, "x", pages, 1)
    imported = bench.handlers.kv.import_pages("y")
    assert isinstance(bench.device.asked.pop(), ImportPages)
    bench.outbox.close()
    bench.outbox.ledger.answered(imported, [b"", b"", 0, "", "owner", "ann"])
    assert (bench.device.asked, bench.device.released) == ([], [])
    assert CloseLease(NUMBER) not in bench.device.posted
