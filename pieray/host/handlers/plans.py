"""WIT interface `plans`: decode plans."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pieray.arrays import U32
from pieray.config import Limits
from pieray.errors import InvalidRequest
from pieray.host.device.drawn import Columns, NextTicket, StreamTicket
from pieray.host.device.model_side import ModelSide, ModelSides
from pieray.host.device.plan import ENDED, READY, Plan
from pieray.host.models import ModelInfo
from pieray.host.open_handles import OpenHandles
from pieray.host.tables import HandleTables
from pieray.host.tickets import Kind, TicketTable
from pieray.wasm.parks import Later

MAX_STOP_TOKENS = 1024
MAX_STOP_TEXTS = 64
MAX_STOP_CHARACTERS = 16384
"""Of all stop texts together: each is looked for at each token, on a thread that others wait for."""
MAX_DRAFTS = 15
NOTHING: Columns = [], [], []


class PlanHandlers:
    """Plans.  What can be checked here is, so that a bad plan fails at once, not in the batch."""

    def __init__(self, limits: Limits, tables: HandleTables, tickets: TicketTable, sides: ModelSides) -> None:
        self._tables = tables
        self._tickets = tickets
        self._sides = sides
        self._lock = tickets.lock
        self._plans: OpenHandles[Plan] = OpenHandles("plan", "plans", limits.plans)

    def create(self, queue: int, pages: U32, kv_len: int, tokens: U32, max_tokens: int, sampler: int) -> int:
        found = self._tables.queues.get(queue)
        side = self._sides.of_queue(found)
        info, size = side.info, side.pages.page_size
        _check_tokens("tokens", tokens, info)
        if len(tokens) == 0 or max_tokens == 0:
            raise InvalidRequest(f"a plan runs and draws at least 1 token; given {len(tokens)} and {max_tokens}")
        end = kv_len + len(tokens) + max_tokens - 1
        if end > info.max_context:
            raise InvalidRequest(
                f"a plan fits in the model's context of {info.max_context}; kv-len {kv_len} + "
                f"{len(tokens)} tokens + max-tokens {max_tokens} - 1 is {end}"
            )
        if end > len(pages) * size:
            raise InvalidRequest(
                f"a plan's pages have room for kv-len + tokens + max-tokens - 1, {end} tokens; "
                f"{len(pages)} pages of {size} were given"
            )
        chain = self._sides.fitted(self._tables.sampler(sampler), found)
        with self._lock:
            side.pages.frame_ids(pages)
            used = pages[: -(-end // size)].copy()
            return self._plans.put(Plan(side.plans, found, used, kv_len, tokens, max_tokens, chain))

    # --- what it draws with ----------------------------------------------------------------------

    def set_sampler(self, plan: int, sampler: int) -> None:
        chain = self._tables.sampler(sampler)
        self._change(plan, sampler=self._sides.fitted(chain, self._plans.get(plan).queue))

    def set_stop(self, plan: int, tokens: U32, texts: list[str]) -> None:
        if len(tokens) > MAX_STOP_TOKENS:
            raise InvalidRequest(f"a plan has at most {MAX_STOP_TOKENS} stop tokens; given {len(tokens)}")
        _check_stops(len(texts), sum(map(len, texts)))
        if "" in texts:
            raise InvalidRequest("a stop text has at least 1 character; one was empty")
        special = self._side(plan).model.tokenizer.special_ids() if texts else {}
        all_tokens = np.append(tokens, [special[text] for text in texts if text in special]).astype("<u4")
        left = tuple(text for text in texts if text not in special)
        self._change(plan, stop_tokens=all_tokens.tobytes(), stop_texts=left)

    def set_grammar(self, plan: int, matcher: int) -> None:
        found = self._tables.matchers.get(matcher) if matcher else None
        grammar: tuple[Any, ...] = ()
        if found is not None:
            if found.model != (mine := self._plans.get(plan).queue.model):
                names = (name or "the default model" for name in (found.model, mine))
                raise InvalidRequest("matcher {} is of {}, and the plan of {}".format(matcher, *names))
            grammar = found.grammar.kind, found.grammar.text, np.array(found.consumed, "<u4").tobytes()
        num_drawn = self._plans.get(plan).drawn.count
        self._change(plan, grammar=grammar, num_taken=num_drawn)

    def set_adapter(self, plan: int, adapter: int) -> None:
        number = self._tables.adapter(adapter)
        self._sides.check_adapter(number, self._plans.get(plan).queue)
        self._change(plan, adapter=number)

    def set_drafter(self, plan: int, num_drafts: int, history: U32) -> None:
        if num_drafts > MAX_DRAFTS:
            raise InvalidRequest(f"a plan drafts at most {MAX_DRAFTS} tokens a step; given {num_drafts}")
        info = self._side(plan).info
        _check_tokens("history", history, info)
        limit = info.max_context
        if len(history) > limit:
            raise InvalidRequest(f"a history has at most {limit} tokens, the model's context; given {len(history)}")
        self._change(plan, num_drafts=num_drafts, history=history.astype("<u4").tobytes())

    def score(self, plan: int) -> None:
        with self._lock:
            found = self._plans.get(plan)
            if found.state != READY:
                raise InvalidRequest(f"score: ask for it before start; this plan is {found.state}")
            found.settings.is_scored = True

    def _change(self, plan: int, **values: Any) -> None:
        with self._lock:
            found = self._plans.get(plan)
            found.check_editable()
            for name, value in values.items():
                setattr(found.settings, name, value)

    # --- running ---------------------------------------------------------------------------------

    def start(self, plan: int) -> None:
        with self._lock:
            found = self._plans.get(plan)
            self._tables.queues.get(found.queue.handle)
            found.start()

    def resume(self, plan: int) -> None:
        with self._lock:
            found = self._plans.get(plan)
            self._tables.queues.get(found.queue.handle)
            found.resume()

    def next(self, plan: int) -> int:
        return self._next_drawn(plan, Kind.TOKENS)

    def next_scored(self, plan: int) -> int:
        if not self._plans.get(plan).settings.is_scored:
            raise InvalidRequest("next-scored: call score before start")
        return self._next_drawn(plan, Kind.DISTRIBUTION)

    def _next_drawn(self, plan: int, kind: Kind) -> int:
        with self._lock:
            drawn = self._started("next", plan).drawn
            ticket = NextTicket(kind, drawn)
            number = self._tickets.add(ticket)
            drawn.next(ticket)
        return number

    def read(self, plan: int, stream: int, most: int, timeout_ms: int) -> Columns | Later:
        drawn = self._started("read", plan).drawn
        texts = self._tables.streams.get(stream) if stream else None

        def look() -> Columns | None:
            with self._lock:
                return drawn.read(texts, most)

        if timeout_ms:
            with self._lock:
                self._sides.flush()
        if (found := look()) is not None or not timeout_ms:
            return found or NOTHING
        deadline = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1e3
        return Later(look, lambda: NOTHING, deadline)

    def watch(self, plan: int) -> int:
        with self._lock:
            return self._started("watch", plan).drawn.watch()

    def stream_text(self, plan: int, stream: int) -> int:
        texts = self._tables.streams.get(stream)
        _check_stops(texts.num_stops, texts.num_stop_characters)
        with self._lock:
            drawn = self._started("stream", plan).drawn
            ticket = StreamTicket(drawn, texts)
            number = self._tickets.add(ticket)
            try:
                drawn.stream(ticket)
            except BaseException:
                self._tickets.drop((number,))
                raise
        return number

    def _started(self, what: str, plan: int) -> Plan:
        found = self._plans.get(plan)
        if found.state == READY:
            raise InvalidRequest(f"{what}: the plan is not started")
        return found

    def pause(self, plan: int) -> int:
        with self._lock:
            return self._plans.get(plan).pause()

    def cancel(self, plan: int) -> int:
        with self._lock:
            return self._plans.get(plan).cancel()

    def truncate(self, plan: int, num_tokens: int) -> None:
        with self._lock:
            self._plans.get(plan).truncate(num_tokens)

    def state(self, plan: int) -> str:
        with self._lock:
            return self._plans.get(plan).describe()

    def close(self, plan: int) -> None:
        with self._lock:
            found = self._plans.pop(plan)
            if found.state != ENDED:
                found.end()
            found.drawn.close()

    def _side(self, plan: int) -> ModelSide:
        return self._sides.of_queue(self._plans.get(plan).queue)


def _check_tokens(name: str, tokens: U32, info: ModelInfo) -> None:
    if len(tokens) and int(tokens.max()) >= info.vocab_size:
        raise InvalidRequest(f"{name}: token ids are below {info.vocab_size}; given {int(tokens.max())}")


def _check_stops(num_texts: int, num_characters: int) -> None:
    if num_texts > MAX_STOP_TEXTS or num_characters > MAX_STOP_CHARACTERS:
        raise InvalidRequest(
            f"a plan has at most {MAX_STOP_TEXTS} texts to stop at, of together "
            f"{MAX_STOP_CHARACTERS} characters; given {num_texts} and {num_characters}"
        )
