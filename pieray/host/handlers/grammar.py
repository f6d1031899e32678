"""WIT interface `grammar`: which tokens may come next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pieray.arrays import U32
from pieray.errors import InvalidRequest, PierayError, QuotaExceeded
from pieray.host.handlers.slow_work import SlowWork
from pieray.host.identity import Identity
from pieray.host.models import ModelDirectory
from pieray.host.open_handles import OpenHandles
from pieray.host.text.grammars import GrammarService
from pieray.host.ticket_work import TicketWork
from pieray.host.tickets import Kind
from pieray.texts import byte_size, check_size
from pieray.wasm.parks import Answer

if TYPE_CHECKING:
    from pieray.grammar import Grammar, Matcher

MAX_ACCEPTED = 4096
"""Tokens in one call of `accept`."""
SLOW_STEP_S = 0.001
"""CPU time of a matcher's step, from which on the steps of its grammar are done apart."""

T = TypeVar("T")


class GrammarHandlers:
    """Matchers are answered here; grammars are compiled by `GrammarService`.

    The instance's lock guards the table: compiled grammars come in on a thread of the service.
    """

    def __init__(
        self,
        identity: Identity,
        models: ModelDirectory,
        matchers: OpenHandles[Matcher],
        service: GrammarService,
        slow: SlowWork,
        work: TicketWork,
    ) -> None:
        self._identity = identity
        self._models = models
        self._matchers = matchers
        self._service = service
        self._slow = slow
        self._work = work
        self._lock = work.tickets.lock
        self._num_compiling = 0

    def compile(self, model: str, kind: str, text: str) -> int:
        served = self._models.get(model)
        check_size("grammar_bytes", self._identity.limits.grammar_bytes, byte_size(text))
        with self._lock:
            self._check_room()
            self._num_compiling += 1
            ticket = self._work.begin(Kind.TOKENS)
        take_back = self._service.compile(
            served,
            kind,
            text,
            self._identity.limits.grammar_time_s,
            lambda found: self._compiled(ticket, "" if served is self._models.get("") else served.info.name, found),
            tenant=self._identity.tenant,
            owner=self._identity.instance_id,
        )
        self._work.on_cancel(ticket, lambda: self._cancel(take_back))
        return ticket

    def _cancel(self, take_back: Callable[[], bool]) -> None:
        if take_back():
            with self._lock:
                self._num_compiling -= 1

    def _compiled(self, ticket: int, model: str, found: Grammar | PierayError) -> None:
        """The service is done, on whatever thread."""
        with self._lock:
            self._num_compiling -= 1
            if isinstance(found, PierayError):
                self._work.complete(ticket, found)
                return
            try:
                matcher = found.matcher()
                matcher.model = model
            except BaseException as error:  # noqa: BLE001 - a panic of llguidance too: the guest waits for its ticket
                self._work.complete(ticket, PierayError(f"the grammar gives no matcher: {error!r}"))
                return
            handle = self._matchers.put(matcher)
            if not self._work.complete(ticket, handle.to_bytes(4, "little")):
                self._matchers.pop(handle)

    def _check_room(self) -> None:
        limit, used = self._identity.limits.plans, len(self._matchers) + self._num_compiling
        if used >= limit:
            raise QuotaExceeded(f"plans: the limit is {limit} matchers open; one more was asked for")

    def fork(self, matcher: int) -> int:
        found = self._matcher(matcher)
        with self._lock:
            self._check_room()
            return self._matchers.put(found.fork())

    def accept(self, matcher: int, tokens: U32) -> int | Future[Answer]:
        found = self._matcher(matcher)
        most = self._models.get(found.model).info.max_context
        if len(tokens) > MAX_ACCEPTED:
            raise InvalidRequest(f"accept takes at most {MAX_ACCEPTED} tokens in one call; given {len(tokens)}")
        if len(found.consumed) + len(tokens) > most:
            raise InvalidRequest(
                f"a text is at most {most} tokens long, the model's context; this one has "
                f"{len(found.consumed)}, given {len(tokens)} more"
            )
        return self._step(found, lambda: found.accept(tokens.tolist()))

    def rollback(self, matcher: int, count: int) -> Future[Answer] | None:
        found = self._matcher(matcher)
        return self._step(found, lambda: found.rollback(count))

    def mask(self, matcher: int) -> U32 | Future[Answer]:
        found = self._matcher(matcher)
        return self._step(found, lambda: _words(found.mask_bytes()))

    def forced(self, matcher: int) -> Sequence[int] | Future[Answer]:
        found = self._matcher(matcher)
        return self._step(found, found.forced)

    def _step(self, matcher: Matcher, step: Callable[[], T]) -> T | Future[Answer]:
        """Do it now; or, once a step of this grammar has taken long, on a thread that is not that of all guests."""
        if matcher.grammar.is_slow:
            return self._slow.do(step)
        began = time.thread_time()
        result = step()
        if time.thread_time() - began > SLOW_STEP_S:
            matcher.grammar.is_slow = True
        return result

    def is_complete(self, matcher: int) -> bool:
        return self._matcher(matcher).is_complete

    def free(self, matcher: int) -> None:
        with self._lock:
            self._matchers.pop(matcher)

    def _matcher(self, handle: int) -> Matcher:
        """Raises BadHandle."""
        return self._matchers.get(handle)


def _words(mask: bytes) -> U32:
    return np.frombuffer(mask.ljust(-(-len(mask) // 4) * 4, b"\0"), "<u4")
