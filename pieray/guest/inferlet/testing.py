"""For your own tests of an inferlet, in plain Python: a host with a model that says what you want.

    from inferlet import testing
    from main import main

    def test_it_greets():
        done = testing.run(main, reply="Hello!", prompt="Say hello")
        assert done.result["text"] == "Hello!"
        assert done.sent == list("Hello!")

Not part of a guest.  A token is a byte of UTF-8; pages, forks and passes are kept as a real host keeps them.  A handler
that is not here raises Unsupported: derive from `Host`, with methods named interface_function, and give it to `run`.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

from pieray.stops import StopMatcher
from pieray.wit import api

from . import _host, _program, _raw, _running
from ._testing_plans import HandlerError, PlanHandlers

END = 256
"""The token that ends a reply."""
PAGE_SIZE = 16

Reply: TypeAlias = str | Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Run:
    """How a run went; what its main raised comes out of `run`."""

    result: Any
    sent: list[str]
    """Texts of `session.send`, in order."""
    logs: list[str]
    """ "level: line" of each log line."""
    host: Host


def run(
    main: Callable[..., Any],
    *,
    reply: Reply = "",
    messages: Iterable[str] = (),
    host: Host | None = None,
    **arguments: Any,
) -> Run:
    """Run an inferlet's `main` with these arguments.

    `reply`: what the model says after any prompt, or a function from all of the text so far to what follows it.
    `messages`: what the client sends.  An AssertionError ends a wait that nothing can end.
    """
    served = host or Host(reply, messages)
    _host.install(_interfaces(served))
    value = main(**_program.arguments_of(main, json.dumps(arguments)))
    if hasattr(value, "__await__"):
        value = _running.run(_program._await(value))
    return Run(json.loads(_program._to_json(value)), served.sent, served.logs, served)


class Host(PlanHandlers):
    """The handlers of one inferlet.  Everything has its result at once."""

    def __init__(self, reply: Reply = "", messages: Iterable[str] = ()) -> None:
        self.sent: list[str] = []
        self.logs: list[str] = []
        self.num_passes = 0
        self._model = _says(reply) if isinstance(reply, str) else reply
        self._messages = deque(messages)
        self._ids = itertools.count(1)
        self._results: dict[int, Any] = {}
        self._pages: dict[int, list[int | None]] = {}
        self._plans = {}
        self._rows: dict[int, list[list[int]]] = {}  # by pass: all tokens up to each row
        self._streams: dict[int, _Stream] = {}
        self._clock = 0.0
        self._num_pins = 0

    def ticket(self, value: Any = None) -> int:
        """A ticket whose result is there."""
        self._results[number := next(self._ids)] = value
        return number

    def next_token(self, tokens: Sequence[int]) -> int:
        """What the model says after these tokens."""
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        text = decoder.decode(_bytes(tokens))
        begun = decoder.getstate()[0]  # of the character that comes next
        rest = self._model(text).encode().removeprefix(begun)
        return rest[0] if rest else END

    # --- tickets, queues, pages

    def tickets_wait(self, tickets: Sequence[int], timeout_ms: int) -> list[int]:
        ready = [ticket for ticket in tickets if ticket in self._results]
        assert ready or timeout_ms >= 0, f"the inferlet waits for ever for tickets {list(tickets)}"
        if not ready:
            self._clock += timeout_ms / 1e3
        return ready

    def tickets_take_none(self, ticket: int) -> Any:
        if ticket not in self._results:
            raise HandlerError("bad-handle", f"ticket {ticket} has no result")
        return self._results.pop(ticket)

    tickets_take_tokens = tickets_take_floats = tickets_take_text = tickets_take_distribution = tickets_take_none

    def tickets_cancel(self, tickets: Sequence[int]) -> None:
        for ticket in tickets:
            self._results.pop(ticket, None)

    def queues_create(self, model: str) -> int:
        return next(self._ids)

    def queues_set_priority(self, queue: int, priority: int) -> None: ...

    def queues_set_reuse(self, queue: int, reuse: bool) -> None: ...

    def queues_flush(self, queue: int) -> None: ...

    def queues_synchronize(self, queue: int) -> int:
        return self.ticket()

    def queues_close(self, queue: int) -> None: ...

    def kv_page_size(self) -> int:
        return PAGE_SIZE

    def kv_alloc(self, count: int) -> list[int]:
        handles = [next(self._ids) for _ in range(count)]
        self._pages |= {handle: [None] * PAGE_SIZE for handle in handles}
        return handles

    def kv_free(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._slots(page)
            del self._pages[page]

    def kv_idle(self, pages: Sequence[int]) -> None:
        for page in pages:
            self._slots(page)

    def kv_pin(self) -> None:
        self._num_pins += 1

    def kv_unpin(self) -> None:
        if not self._num_pins:
            raise HandlerError("invalid", "this inferlet is not pinned")
        self._num_pins -= 1

    def kv_expect(self, count: int) -> None:
        """There is always memory."""

    def kv_fork(self, pages: Sequence[int]) -> list[int]:
        handles = [next(self._ids) for _ in pages]
        self._pages |= {new: list(self._slots(old)) for old, new in zip(pages, handles, strict=True)}
        return handles

    def _slots(self, page: int) -> list[int | None]:
        if page not in self._pages:
            raise HandlerError("bad-handle", f"page {page} is not open")
        return self._pages[page]

    # --- passes

    def forward_forward(
        self,
        queue: int,
        pages: Sequence[int],
        kv_len: int,
        tokens: Sequence[int],
        positions: Sequence[int],
        mask: Sequence[int],
    ) -> int:
        end = kv_len + len(tokens)
        if not tokens or end > len(pages) * PAGE_SIZE:
            raise HandlerError("invalid", f"{len(pages)} pages have no room for {kv_len} and {len(tokens)} tokens")
        for place, token in enumerate(tokens, kv_len):
            self._slots(pages[place // PAGE_SIZE])[place % PAGE_SIZE] = token
        line = [self._slots(pages[place // PAGE_SIZE])[place % PAGE_SIZE] for place in range(end)]
        if None in line:
            raise HandlerError("invalid", f"a pass reads {line.count(None)} slots that were never written")
        self.num_passes += 1
        handle = self.ticket()
        self._rows[handle] = [[t for t in line[: kv_len + row + 1] if t is not None] for row in range(len(tokens))]
        return handle

    def forward_sample(self, pass_: int, row: int, *sampler: float) -> int:
        return self.ticket([self.next_token(self._rows[pass_][row])])

    def forward_distribution(self, pass_: int, row: int, k: int) -> int:
        best = self.next_token(self._rows[pass_][row])
        tokens = [best, *(t for t in range(END + 1) if t != best)][:k]
        return self.ticket((tokens, [self._probability(t, best) for t in tokens]))

    def forward_logprobs(self, pass_: int, row: int, tokens: Sequence[int]) -> int:
        best = self.next_token(self._rows[pass_][row])
        return self.ticket([math.log(self._probability(t, best)) for t in tokens])

    def _probability(self, token: int, best: int) -> float:
        return 0.9 if token == best else 0.1 / END

    def samplers_create(self, *sampler: float) -> int:
        return next(self._ids)

    def samplers_free(self, sampler: int) -> None: ...

    # --- models, chats

    def model_names(self) -> list[str]:
        return ["test"]

    def model_info(self, model: str) -> str:
        return json.dumps({"name": "test", "vocab_size": END + 1, "max_context": 1 << 20, "page_size": PAGE_SIZE})

    def model_tokenize(self, model: str, text: str) -> list[int]:
        return list(text.encode())

    def model_detokenize(self, model: str, tokens: Sequence[int], skip_special: bool) -> str:
        return _text(tokens)

    def model_stop_tokens(self, model: str) -> list[int]:
        return [END]

    def model_stream_open(self, model: str, skip_special: bool, after: Sequence[int]) -> int:
        self._streams[number := next(self._ids)] = _Stream()
        return number

    def model_stream_push(self, handle: int, tokens: Sequence[int]) -> str:
        return self._stream(handle).push(tokens)

    def model_stream_stop(self, handle: int, texts: Sequence[str]) -> None:
        self._stream(handle).matcher = StopMatcher(texts)

    def model_stream_stopped(self, handle: int) -> str:
        return self._stream(handle).stopped_by

    def model_stream_rest(self, handle: int) -> str:
        return self._stream(handle).matcher.flush()

    def _stream(self, handle: int) -> _Stream:
        if handle not in self._streams:
            raise HandlerError("bad-handle", f"text stream {handle} is not open")
        return self._streams[handle]

    def model_stream_close(self, handle: int) -> None:
        self._stream(handle)
        del self._streams[handle]

    def chat_render(
        self, model: str, messages: str, tools: str, add_generation_prompt: bool, arguments: str, now: int
    ) -> str:
        lines = [f"{message['role']}: {message['content']}\n" for message in json.loads(messages)]
        return "".join(lines) + "assistant: " * add_generation_prompt

    def chat_parse(self, model: str, text: str, is_over: bool) -> str:
        """A reply that is {"name": ..., "arguments": {...}} is a call."""
        try:
            found = json.loads(text)
            calls = [{"name": found["name"], "arguments": dict(found["arguments"])}]
        except (ValueError, TypeError, KeyError):
            calls = []
        content = "" if calls else text
        return json.dumps({"content": content, "reasoning": "", "tool_calls": calls, "is_complete": True})

    # --- session, runtime

    def session_send(self, text: str) -> None:
        self.sent.append(text)

    def session_receive(self) -> int:
        return self.ticket(self._messages.popleft()) if self._messages else next(self._ids)

    def runtime_version(self) -> str:
        return api().version

    def runtime_instance_id(self) -> str:
        return "test-1"

    def runtime_limits(self) -> str:
        return json.dumps({"limits": {}, "used": {"pages": len(self._pages)}})

    def runtime_usage(self) -> str:
        return '{"tokens_computed": 0, "tokens_found": 0, "pages_swapped": 0}'

    def runtime_monotonic_now(self) -> int:
        return int(self._clock * 1e9)

    def runtime_wall_now(self) -> int:
        return int((1_700_000_000 + self._clock) * 1e9)

    def runtime_sleep(self, ms: int) -> int:
        self._clock += ms / 1e3
        return self.ticket()

    def runtime_random_u64(self) -> int:
        return next(self._ids) * 0x9E3779B97F4A7C15 % 2**64

    def runtime_log(self, level: Any, message: str) -> None:
        self.logs.append(f"{getattr(level, 'name', level).lower()}: {message}")


class _Stream:
    """Text of tokens, up to a stop text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.matcher = StopMatcher(())
        self.stopped_by = ""

    def push(self, tokens: Sequence[int]) -> str:
        if self.stopped_by:
            return ""
        text, met = self.matcher.push(self._decoder.decode(_bytes(tokens)))
        self.stopped_by = met or ""
        return text


def _says(reply: str) -> Callable[[str], str]:
    """What is left of `reply` after a text that may end with the beginning of it."""

    def rest(text: str) -> str:
        said = next(n for n in range(len(reply), -1, -1) if text.endswith(reply[:n]))
        return reply[said:]

    return rest


def _text(tokens: Sequence[int]) -> str:
    return _bytes(tokens).decode(errors="replace")


def _bytes(tokens: Sequence[int]) -> bytes:
    return bytes(token for token in tokens if token != END)


def _interfaces(host: Host) -> SimpleNamespace:
    """The host as `_host.install` takes it, raising what the bindings raise."""
    found = SimpleNamespace()
    for interface in api().interfaces:
        functions = {}
        for function in interface.functions:
            name = function.name.replace("-", "_")
            functions[name] = _bound(host, f"{interface.name}_{name}")
        setattr(found, interface.name, SimpleNamespace(**functions))
    return found


def _bound(host: Host, name: str) -> Callable[..., Any]:
    def missing(*_args: Any) -> None:
        raise HandlerError("unsupported", f"inferlet.testing.Host has no {name}")

    def call(*args: Any) -> Any:
        try:
            return getattr(host, name, missing)(*args)
        except HandlerError as error:
            code = SimpleNamespace(name=error.code.upper().replace("-", "_"))
            raise _raw.Err(SimpleNamespace(code=code, message=str(error))) from None

    return call
