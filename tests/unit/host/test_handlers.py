"""Handlers of one inferlet over a fake device: handles, quotas, order, errors."""

from __future__ import annotations

import numpy as np
import pytest
from arrays import NONE, u32
from fakes import NUMBER, PAGE_SIZE, Bench, limits_json

from pieray.config import Limits
from pieray.errors import (
    BadHandle,
    Cancelled,
    DeviceLost,
    InvalidRequest,
    NotFound,
    OutOfPages,
    Pending,
    QuotaExceeded,
    WrongType,
)
from pieray.messages import Completed, CopyTokens, Failed, Sample, Sampler


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.outbox.leases.granted(range(100, 120))
    return bench


def run_pass(bench: Bench, pages: np.ndarray, kv_len: int, tokens: np.ndarray, queue: int | None = None) -> int:
    queue = bench.handlers.queues.create("") if queue is None else queue
    return bench.handlers.forward.forward(queue, pages, kv_len, tokens, NONE, NONE)


def test_a_pass_travels_with_physical_pages_and_its_outputs(bench: Bench) -> None:
    pages = bench.handlers.kv.alloc(2)
    pass_ = run_pass(bench, pages, 0, u32(1, 2, 3, 4, 5))
    sample = bench.handlers.forward.sample(pass_, 4, 0.5, 3, 0.9, 0.1, 42)
    assert bench.forwards() == []  # nothing crosses a process before the guest waits
    bench.handlers.tickets.flush()
    (sent,) = bench.forwards()
    assert np.frombuffer(sent.pages, "<u4").tolist() == [100, 101]
    assert sent.ticket == NUMBER << 32 | pass_
    assert sent.outputs == [Sample(4, Sampler(0.5, 3, 0.9, 0.1, seed=42), NUMBER << 32 | sample)]
    assert bench.handlers.tickets.ready(u32(sample)) == []
    with pytest.raises(Pending):
        bench.handlers.tickets.take_tokens(sample)
    bench.complete_all(token=65)
    assert bench.handlers.tickets.ready(u32(sample)) == [sample]
    assert bench.handlers.tickets.take_tokens(sample).tolist() == [65]
    with pytest.raises(BadHandle, match=f"ticket {sample}"):
        bench.handlers.tickets.take_tokens(sample)
    assert len(bench.tickets) == 0  # the pass closed with its last output
    bench.pages.check()


def test_commands_wait_for_memory_in_order_and_fail_typed_without_it() -> None:
    bench = Bench(lease_pages=2)
    bench.handlers.tickets.flush()
    assert bench.device.leases == [(2, 0.0)]  # ahead of need: granted at once or not at all
    bench.outbox.leases.granted([5, 6])
    queue = bench.handlers.queues.create("")
    pages = bench.handlers.kv.alloc(4)
    first = run_pass(bench, pages[:3], 0, u32(*range(12)), queue)
    second = run_pass(bench, pages[3:], 0, u32(1), queue)
    bench.handlers.tickets.flush()
    assert bench.forwards() == []
    assert bench.device.leases[1:] == [(2, 9.0)]  # four needed, two spare
    bench.outbox.leases.lease_failed(OutOfPages("2 pages asked for; 0 free"))
    with pytest.raises(OutOfPages, match="2 pages asked for"):
        bench.handlers.tickets.take_none(first)
    (sent,) = bench.forwards()  # what is behind the failed one gets its turn
    assert sent.ticket & 0xFFFFFFFF == second
    bench.complete_all()
    bench.handlers.tickets.take_none(second)
    bench.handlers.kv.free(pages)
    bench.pages.check()
    assert bench.pages.num_bound == 0


def test_a_lease_that_comes_between_a_pass_and_its_outputs_does_not_send_it(bench: Bench) -> None:
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    bench.outbox.leases.granted([50, 51])
    assert bench.forwards() == []
    bench.handlers.forward.sample(pass_, 0, 0, 0, 1, 0, 0)
    bench.handlers.tickets.flush()
    assert len(bench.forwards()[0].outputs) == 1


def test_fork_writes_to_its_own_copy_and_the_copy_is_sent_first(bench: Bench) -> None:
    queue = bench.handlers.queues.create("")
    pages = bench.handlers.kv.alloc(1)
    run_pass(bench, pages, 0, u32(1, 2), queue)
    forked = bench.handlers.kv.fork(pages)
    run_pass(bench, forked, 2, u32(3), queue)
    bench.handlers.tickets.flush()
    first, copy, second = bench.device.posted
    assert isinstance(copy, CopyTokens)
    assert copy.copies == [[100, 0, 101, 0, 2]]
    assert np.frombuffer(first.pages, "<u4").tolist() == [100]  # type: ignore[attr-defined]
    assert np.frombuffer(second.pages, "<u4").tolist() == [101]  # type: ignore[attr-defined]


def test_freed_pages_are_not_reused_while_a_command_uses_them(bench: Bench) -> None:
    pages = bench.handlers.kv.alloc(1)
    spare = bench.pages.num_spare
    pass_ = run_pass(bench, pages, 0, u32(1))
    bench.handlers.kv.free(pages)
    bench.handlers.tickets.flush()
    assert bench.pages.num_spare == spare - 1
    bench.complete_all()
    bench.handlers.tickets.take_none(pass_)
    assert bench.pages.num_spare == spare


def test_synchronize_resolves_when_the_queue_has_run(bench: Bench) -> None:
    queue = bench.handlers.queues.create("")
    empty = bench.handlers.queues.synchronize(queue)
    bench.handlers.tickets.take_none(empty)
    run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1), queue)
    sync = bench.handlers.queues.synchronize(queue)
    with pytest.raises(InvalidRequest, match="outstanding"):
        bench.handlers.queues.close(queue)
    bench.handlers.tickets.flush()
    assert bench.handlers.tickets.ready(u32(sync)) == []
    bench.complete_all()
    assert bench.handlers.tickets.ready(u32(sync)) == [sync]
    bench.handlers.queues.close(queue)
    with pytest.raises(BadHandle):
        bench.handlers.queues.flush(queue)


def test_outputs_are_asked_for_before_the_pass_is_sent(bench: Bench) -> None:
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    bench.handlers.tickets.flush()
    with pytest.raises(InvalidRequest, match="sent already"):
        bench.handlers.forward.logits(pass_, 0)
    with pytest.raises(BadHandle, match="pass 999"):
        bench.handlers.forward.logits(999, 0)


def test_a_failed_pass_fails_its_outputs(bench: Bench) -> None:
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    sample = bench.handlers.forward.sample(pass_, 0, 0, 0, 1, 0, 0)
    bench.handlers.tickets.flush()
    bench.answer(Failed(NUMBER << 32 | pass_, "invalid", "not in the mood"))
    with pytest.raises(InvalidRequest, match="not in the mood"):
        bench.handlers.tickets.take_tokens(sample)


def test_a_lost_device_fails_what_is_in_flight_and_what_comes(bench: Bench) -> None:
    pages = bench.handlers.kv.alloc(2)
    first = run_pass(bench, pages[:1], 0, u32(1))
    bench.handlers.tickets.flush()
    bench.device.error = DeviceLost("gone")
    bench.outbox.fail_all(DeviceLost("gone"))
    second = run_pass(bench, pages[1:], 0, u32(1))
    bench.handlers.tickets.flush()
    for ticket in (first, second):
        with pytest.raises(DeviceLost):
            bench.handlers.tickets.take_none(ticket)


@pytest.mark.parametrize("is_asked_by", ["a command that waits", "the lease ahead of need"])
def test_a_lease_that_was_under_way_when_the_device_was_lost_holds_up_nothing(is_asked_by: str) -> None:
    bench = Bench(lease_pages=4)
    pages = bench.handlers.kv.alloc(2)
    if is_asked_by == "a command that waits":
        first = run_pass(bench, pages[:1], 0, u32(1))
    bench.handlers.tickets.flush()
    assert len(bench.device.leases) == 1  # and no answer to it will come
    bench.device.error = DeviceLost("gone")
    bench.outbox.fail_all(DeviceLost("gone"))
    if is_asked_by == "a command that waits":
        with pytest.raises(DeviceLost):
            bench.handlers.tickets.take_none(first)
    second = run_pass(bench, pages[1:], 0, u32(1))
    bench.handlers.tickets.flush()
    assert bench.handlers.tickets.ready(u32(second)) == [second]
    with pytest.raises(DeviceLost):
        bench.handlers.tickets.take_none(second)


def test_a_pass_lost_before_its_outputs_were_asked_for_says_so(bench: Bench) -> None:
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    bench.outbox.fail_all(DeviceLost("gone"))
    with pytest.raises(DeviceLost, match="gone"):
        bench.handlers.forward.logits(pass_, 0)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda h, p, q: h.forward.forward(q, p, 0, NONE, NONE, NONE), InvalidRequest, "at least 1 token"),
        (lambda h, p, q: h.forward.forward(q, p, 0, u32(256), NONE, NONE), InvalidRequest, "below 256; given 256"),
        (lambda h, p, q: h.forward.forward(q, p, 0, u32(1), u32(1024), NONE), InvalidRequest, "below 1024"),
        (lambda h, p, q: h.forward.forward(q, p, 0, u32(1), u32(1, 2), NONE), InvalidRequest, "one per token"),
        (lambda h, p, q: h.forward.forward(q, p, 0, u32(1), NONE, u32(1, 2)), InvalidRequest, "takes 1 words"),
        (lambda h, p, q: h.forward.forward(q, p, 1, u32(1), NONE, NONE), InvalidRequest, "written"),
        (lambda h, p, q: h.forward.forward(q, p, 0, u32(*[1] * 9), NONE, NONE), InvalidRequest, "8 slots"),
        (lambda h, p, q: h.forward.forward(q, u32(12345), 0, u32(1), NONE, NONE), BadHandle, "12345"),
        (lambda h, p, q: h.forward.forward(77, p, 0, u32(1), NONE, NONE), BadHandle, "queue 77"),
        (lambda h, p, q: h.kv.free(u32(p[0], p[0])), BadHandle, "twice"),
        (lambda h, p, q: h.kv.copy(q, int(p[0]), 0, int(p[1]), 3, 2), InvalidRequest, "outside a page"),
        (lambda h, p, q: h.queues.create("gpt-9"), NotFound, "fake"),
        (lambda h, p, q: h.queues.set_priority(q, 101), InvalidRequest, "given 101"),
        (lambda h, p, q: h.model.detokenize("", u32(4096), False), InvalidRequest, "given 4096"),
        (lambda h, p, q: h.chat.render("", "{", "", True, "", 0), InvalidRequest, "JSON"),
        (lambda h, p, q: h.model.stream_push(3, u32(1)), BadHandle, "text stream 3"),
        (lambda h, p, q: h.tickets.cancel(u32(5)), BadHandle, "ticket 5"),
        (lambda h, p, q: h.tickets.ready(u32(5)), BadHandle, "ticket 5"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(bench: Bench, call, error, text) -> None:  # type: ignore[no-untyped-def]
    pages = bench.handlers.kv.alloc(2)
    queue = bench.handlers.queues.create("")
    num_tickets = len(bench.tickets)
    with pytest.raises(error, match=text):
        call(bench.handlers, pages, queue)
    assert len(bench.tickets) == num_tickets
    assert bench.outbox.num_outstanding == 0
    assert bench.pages.num_handles == 2
    bench.pages.check()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((-1.0, 0, 1.0, 0.0), "temperature"),
        ((float("nan"), 0, 1.0, 0.0), "temperature"),
        ((float("inf"), 0, 1.0, 0.0), "temperature"),
        ((1.0, 0, 1.5, 0.0), "top-p"),
        ((1.0, 0, 1.0, -0.5), "min-p"),
    ],
)
def test_sampling_parameters_out_of_range_are_refused(bench: Bench, values: tuple[float, ...], text: str) -> None:
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    with pytest.raises(InvalidRequest, match=text):
        bench.handlers.forward.sample(pass_, 0, *values, 0)  # type: ignore[arg-type]


def test_quotas_name_their_limit() -> None:
    bench = Bench(Limits(pages=3, tickets=2, queues=1, message_bytes=4, log_bytes=6, output_bytes=6, mailbox_bytes=5))
    handlers = bench.handlers
    with pytest.raises(QuotaExceeded, match="pages.*3"):
        handlers.kv.alloc(4)
    handlers.queues.create("")
    with pytest.raises(QuotaExceeded, match="queues.*1"):
        handlers.queues.create("")
    handlers.session.receive()
    handlers.session.receive()
    with pytest.raises(QuotaExceeded, match="tickets.*2"):
        handlers.session.receive()
    with pytest.raises(QuotaExceeded, match="message_bytes.*4.*5"):
        handlers.session.send("12345")
    handlers.session.send("1234")
    with pytest.raises(QuotaExceeded, match="output_bytes.*6"):
        handlers.session.send("123")
    handlers.runtime.log("info", "123456")
    with pytest.raises(QuotaExceeded, match="log_bytes.*6"):
        handlers.printed.write(1, b"1\n")
    assert limits_json(bench)["used"]["log_bytes"] == 6


def test_receives_get_messages_in_order_and_forget_cancelled_ones() -> None:
    bench = Bench(Limits(message_bytes=8, mailbox_bytes=8))
    first, second = bench.handlers.session.receive(), bench.handlers.session.receive()
    bench.handlers.tickets.cancel(u32(first))
    bench.mailbox.put("one")
    bench.mailbox.put("two")
    third = bench.handlers.session.receive()
    assert bench.handlers.tickets.take_text(second) == "one"
    assert bench.handlers.tickets.take_text(third) == "two"
    bench.mailbox.put("12345678")
    with pytest.raises(QuotaExceeded, match="mailbox_bytes"):
        bench.mailbox.put("x")
    bench.mailbox.close()
    with pytest.raises(Cancelled):
        bench.mailbox.put("late")


def test_a_ticket_yields_its_own_type_only(bench: Bench) -> None:
    ticket = bench.handlers.session.receive()
    bench.mailbox.put("text")
    with pytest.raises(WrongType, match="yields text; take-tokens"):
        bench.handlers.tickets.take_tokens(ticket)
    assert bench.handlers.tickets.take_text(ticket) == "text"


def test_text_comes_whole_from_bytes_that_come_in_pieces(bench: Bench) -> None:
    text = "aé😀"
    tokens = bench.handlers.model.tokenize("", text)
    stream = bench.handlers.model.stream_open("", True, np.array([], np.uint32))
    pieces = [bench.handlers.model.stream_push(stream, u32(t)) for t in tokens]
    assert "".join(pieces) == text
    assert all("�" not in p for p in pieces)
    bench.handlers.model.stream_close(stream)


def test_prints_become_log_lines_and_the_rest_at_the_end(bench: Bench) -> None:
    bench.handlers.printed.write(1, b"one\ntw")
    bench.handlers.printed.write(1, b"o\nrest")
    bench.handlers.printed.write(2, b"bad\n")
    bench.handlers.printed.end()
    assert bench.events() == [
        ("log", "info: one"),
        ("log", "info: two"),
        ("log", "warning: bad"),
        ("log", "info: rest"),
    ]


def test_a_late_answer_to_a_forgotten_ticket_is_dropped(bench: Bench) -> None:
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    sample = bench.handlers.forward.sample(pass_, 0, 0, 0, 1, 0, 0)
    bench.handlers.tickets.flush()
    bench.handlers.tickets.cancel(u32(sample))
    bench.answer(Completed(NUMBER << 32 | sample, b"\1\0\0\0"))
    bench.answer(Completed(NUMBER << 32 | pass_, None))
    assert len(bench.tickets) == 0
    assert bench.outbox.num_outstanding == 0


def test_long_texts_are_refused_before_they_hold_up_the_neighbours() -> None:
    bench = Bench(Limits(tokenize_bytes=10))
    assert len(bench.handlers.model.tokenize("", "x" * 10)) == 10
    for call in (bench.handlers.model.tokenize, lambda m, t: bench.handlers.chat.render(m, t, "", True, "", 0)):
        with pytest.raises(QuotaExceeded, match="tokenize_bytes: the limit is 10 in one call; given 11"):
            call("", "x" * 11)


def test_page_size_is_the_models(bench: Bench) -> None:
    assert bench.handlers.kv.page_size() == PAGE_SIZE


def test_a_refusal_ahead_of_need_does_not_fail_the_command_that_came_meanwhile() -> None:
    bench = Bench(lease_pages=4)
    bench.handlers.tickets.flush()
    assert bench.device.leases == [(4, 0.0)]
    pass_ = run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1))
    bench.handlers.tickets.flush()
    bench.outbox.leases.lease_failed(OutOfPages("4 pages asked for; 0 free"))
    assert bench.device.leases[1:] == [(1, 9.0)]  # now in need: it waits in line
    assert bench.handlers.tickets.ready(u32(pass_)) == []
    bench.outbox.leases.granted([3])
    assert len(bench.forwards()) == 1


def test_an_inferlet_that_has_ended_leases_nothing_more() -> None:
    bench = Bench(lease_pages=4)
    bench.handlers.tickets.flush()
    bench.outbox.close()
    bench.outbox.leases.granted([1])  # less than half a lease is spare: a live inferlet would ask for more
    bench.outbox.flush()
    assert len(bench.device.leases) == 1


def test_cancelled_tickets_do_not_let_a_guest_enqueue_without_limit() -> None:
    bench = Bench(Limits(tickets=5))
    bench.outbox.leases.granted(range(100))
    queue, pages = bench.handlers.queues.create(""), bench.handlers.kv.alloc(1)
    for _ in range(5):
        bench.handlers.tickets.cancel(u32(run_pass(bench, pages, 0, u32(1), queue)))
    with pytest.raises(QuotaExceeded, match="tickets.*5"):
        run_pass(bench, pages, 0, u32(1), queue)
    with pytest.raises(QuotaExceeded, match="tickets.*5"):
        bench.handlers.kv.copy(queue, int(pages[0]), 0, int(pages[0]), 1, 1)
    bench.handlers.tickets.flush()
    bench.complete_all()
    run_pass(bench, pages, 0, u32(1), queue)
    bench.pages.check()


def test_synchronize_waits_for_what_came_before_it_alone(bench: Bench) -> None:
    queue, pages = bench.handlers.queues.create(""), bench.handlers.kv.alloc(3)
    first = run_pass(bench, pages[:1], 0, u32(1), queue)
    early = bench.handlers.queues.synchronize(queue)
    second = run_pass(bench, pages[1:2], 0, u32(1), queue)
    late, forgotten = bench.handlers.queues.synchronize(queue), bench.handlers.queues.synchronize(queue)
    bench.handlers.tickets.cancel(u32(forgotten))
    bench.handlers.tickets.flush()
    bench.answer(Completed(NUMBER << 32 | second, None))
    assert bench.handlers.tickets.ready(u32(early, late)) == []
    assert len(bench.parts.tables.queues.get(queue).syncs) == 2
    bench.answer(Completed(NUMBER << 32 | first, None))
    assert bench.handlers.tickets.ready(u32(early, late)) == [early, late]


def test_errors_that_many_tickets_share_do_not_pile_up_tracebacks(bench: Bench) -> None:
    lost = DeviceLost("gone")
    tickets = [run_pass(bench, bench.handlers.kv.alloc(1), 0, u32(1)) for _ in range(3)]
    bench.outbox.fail_all(lost)
    for ticket in tickets:
        with pytest.raises(DeviceLost, match="gone"):
            bench.handlers.tickets.take_none(ticket)
    assert lost.__traceback__ is None


def test_messages_given_to_receives_and_not_taken_count_as_unread() -> None:
    bench = Bench(Limits(message_bytes=8, mailbox_bytes=8))
    tickets = [bench.handlers.session.receive() for _ in range(3)]
    bench.mailbox.put("12345")
    with pytest.raises(QuotaExceeded, match="mailbox_bytes.*8.*5 wait unread, 4 more"):
        bench.mailbox.put("1234")
    assert bench.handlers.tickets.take_text(tickets[0]) == "12345"
    bench.mailbox.put("12345678")
    bench.handlers.tickets.cancel(u32(tickets[1]))
    bench.mailbox.put("abcdefgh")
    assert bench.handlers.tickets.take_text(tickets[2]) == "abcdefgh"
    bench.mailbox.put("12345678")


@pytest.mark.parametrize("text", ["\\ud800", "a\\uDFFFb", "\\udc00\\ud800"])
def test_a_conversation_with_a_lone_surrogate_is_invalid(text: str) -> None:
    from pieray.models.chat import json_objects

    with pytest.raises(InvalidRequest, match="messages: a lone surrogate is no Unicode text"):
        json_objects("messages", f'[{{"role": "user", "content": "{text}"}}]', "{role, content}")
    (whole,) = json_objects("messages", '[{"role": "user", "content": "\\ud83d\\ude00"}]', "{role, content}")
    assert whole["content"] == "😀"
