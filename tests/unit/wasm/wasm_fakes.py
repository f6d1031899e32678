"""What the tests of the wasm host share: handlers without a device, and guests under watch."""

from __future__ import annotations

import json
import queue
import threading
import time
from pathlib import Path

import numpy as np
from interfaces import ByInterface

from pieray.config import Limits
from pieray.errors import BadHandle, QuotaExceeded
from pieray.wasm.host import Guest, Outcome, Program, WasmHost

GUESTS_C = Path(__file__).resolve().parents[2] / "inferlets" / "guests_c"
STOP = 0


class FakeHandlers:
    """The handler API over dictionaries, for `ByInterface`.  A token is a byte; the model answers `reply`, then STOP.

    `resolve` gives a ticket its result; the guest has to be unparked by whoever calls it.
    """

    def __init__(self, reply: str = "") -> None:
        self.reply = [*list(reply.encode()), STOP]
        self.results: dict[int, object] = {}
        self.issued: set[int] = set()
        self.staged: list[tuple[int, object]] = []
        self.pages: set[int] = set()
        self.calls: list[tuple[str, tuple]] = []
        self.printed: list[tuple[int, bytes]] = []
        self.sent: list[str] = []
        self.num_flushes = 0
        self.max_printed = 1 << 20

    # tickets
    def issue(self) -> int:
        self.issued.add(len(self.issued) + 1)
        return len(self.issued)

    def resolve(self, ticket: int, value: object = None) -> None:
        self.issued.add(ticket)
        self.results[ticket] = value

    def resolve_staged(self) -> None:
        staged, self.staged = self.staged, []
        self.results.update(staged)

    def _take(self, ticket: int):
        if ticket not in self.results:
            raise BadHandle(f"ticket {ticket}")
        return self.results.pop(ticket)

    tickets_take_none = tickets_take_tokens = tickets_take_floats = tickets_take_text = _take
    tickets_take_distribution = _take

    def tickets_flush(self) -> None:
        self.num_flushes += 1

    def tickets_ready(self, tickets) -> list[int]:
        wanted = [int(t) for t in tickets]
        if unknown := [t for t in wanted if t not in self.issued]:
            raise BadHandle(f"no ticket {unknown[0]}")
        return [t for t in wanted if t in self.results]

    def tickets_cancel(self, tickets) -> None:
        raise BadHandle("no ticket")

    # queues, pages
    def queues_create(self, model: str) -> int:
        return 1

    def _no_queue(self, queue: int, *_) -> int:
        raise BadHandle(f"no queue {queue}")

    queues_set_priority = queues_set_reuse = queues_flush = queues_synchronize = _no_queue

    def queues_close(self, queue: int) -> None:
        if queue != 1:
            raise BadHandle("no queue")

    def kv_page_size(self) -> int:
        return 16

    def kv_alloc(self, count: int):
        if count > 100:
            raise QuotaExceeded(f"pages is 100; asked for {count}")
        new = list(range(len(self.pages) + 1, len(self.pages) + 1 + count))
        self.pages.update(new)
        return new

    def kv_free(self, pages) -> None:
        if unknown := {int(p) for p in pages} - self.pages:
            raise BadHandle(f"no page {min(unknown)}")
        self.pages -= {int(p) for p in pages}

    def kv_fork(self, pages):
        raise BadHandle("no page")

    def kv_copy(self, *args: int) -> int:
        raise BadHandle("no page")

    # forward
    def forward_forward(self, queue, pages, kv_len, tokens, positions, mask) -> int:
        self.calls.append(("forward", (queue, pages, kv_len, tokens, positions, mask)))
        ticket = self.issue()
        self.staged.append((ticket, None))
        return ticket

    def forward_sample(self, pass_, row, temperature, top_k, top_p, min_p, seed) -> int:
        self.calls.append(("sample", (pass_, row, temperature, top_k, top_p, min_p, seed)))
        ticket = self.issue()
        self.staged.append((ticket, np.array([self.reply.pop(0)], np.uint32)))
        return ticket

    def forward_distribution(self, *args):
        raise BadHandle("no pass")

    forward_logprobs = forward_logits = forward_distribution

    # model
    def model_names(self):
        return ["tiny", "naïve"]

    def model_info(self, model: str) -> str:
        return "{}"

    def model_tokenize(self, model: str, text: str):
        return list(text.encode())

    def model_detokenize(self, model, tokens, skip_special) -> str:
        return bytes(tokens.tolist()).decode(errors="replace")

    def model_stop_tokens(self, model: str):
        return [STOP]

    def chat_render(self, model, messages, tools, add_generation_prompt, arguments, now) -> str:
        self.calls.append(("render", (model, messages, tools, add_generation_prompt, arguments, now)))
        return messages

    def model_stream_open(self, model, skip_special, after) -> int:
        return 9

    def model_stream_push(self, stream, tokens) -> str:
        if stream != 9:
            raise BadHandle("no stream")
        return bytes(tokens.tolist()).decode()

    def model_stream_close(self, stream) -> None:
        if stream != 9:
            raise BadHandle("no stream")

    # the rest
    def session_send(self, text: str) -> None:
        self.sent.append(text)

    def session_receive(self) -> int:
        return self.issue()

    def runtime_version(self) -> str:
        return "0.2.0"

    def runtime_instance_id(self) -> str:
        return "i-1"

    def runtime_limits(self) -> str:
        return json.dumps({})

    def runtime_monotonic_now(self) -> int:
        return time.monotonic_ns()

    def runtime_wall_now(self) -> int:
        return 1_000_000_007

    def runtime_random_u64(self) -> int:
        return 2**63 + 11

    def runtime_log(self, level: str, message: str) -> None:
        self.calls.append(("log", (level, message)))

    def stdout(self, fd: int, text: bytes) -> None:
        self.printed.append((fd, text))
        if sum(len(t) for _, t in self.printed) > self.max_printed:
            raise QuotaExceeded(f"log_bytes is {self.max_printed}")


class Watched:
    """A spawned guest and its outcomes."""

    def __init__(
        self, host: WasmHost, program: Program, text: str, handlers=None, limits: Limits | None = None, **kwargs
    ):
        self.handlers = handlers or FakeHandlers()
        self.outcomes: list[Outcome] = []
        self._ended = threading.Event()
        self.guest: Guest = host.spawn(
            program, ByInterface(self.handlers), limits or Limits(), input=text, on_exit=self._exit, **kwargs
        )

    def _exit(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._ended.set()

    def has_ended(self, within_s: float) -> bool:
        return self._ended.wait(within_s)

    def outcome(self, within_s: float = 20.0) -> Outcome:
        assert self._ended.wait(within_s), f"{self.guest} still runs after {within_s} s"
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    @property
    def error(self):
        return self.outcome().error

    @property
    def value(self) -> str | None:
        outcome = self.outcome()
        assert outcome.error is None, outcome.error
        return outcome.value

    def resolve(self, ticket: int, value: object = None) -> None:
        self.handlers.resolve(ticket, value)
        self.guest.unpark()


class Device:
    """A thread that runs what handlers stage, a moment after they flush, as a batcher would."""

    def __init__(self) -> None:
        self._flushed: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def run(self, host: WasmHost, program: Program, text: str, reply: str) -> Watched:
        handlers, spawned, box = FakeHandlers(reply), threading.Event(), []
        handlers.tickets_flush = lambda: self._flushed.put((spawned, box))
        box.append(Watched(host, program, text, handlers))
        spawned.set()
        return box[0]

    def close(self) -> None:
        self._flushed.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._flushed.get()) is not None:
            spawned, box = item
            spawned.wait()
            box[0].handlers.resolve_staged()
            box[0].guest.unpark()
