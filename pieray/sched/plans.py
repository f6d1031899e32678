"""Plans as the scheduler holds them: forwards that grow by what they draw, until something ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pieray.arrays import U32
from pieray.errors import InvalidRequest, PierayError
from pieray.messages import Forward, Message, RunEnded, StartPlan
from pieray.models.sampler import choices_of
from pieray.sched.commands import ForwardCommand, Slots, page_slots
from pieray.sched.costs import Kind
from pieray.sched.drafts import NgramDrafter
from pieray.sched.failures import failed
from pieray.sched.table import HOOKED, MAX_STOPS, RUN, SCORED, SPECIAL

if TYPE_CHECKING:
    from pieray.grammar.matcher import Matcher
    from pieray.models.detokenizer import DecodeStream

MAX_DRAFTS = 15
"""With the token before them, a pass of as many tokens as a decode may have."""

MOST_ROW_WORK = 2_000_000
"""Operations of tensor programs for a draw of a row: its step is everybody's, and a command pays for more."""


class PlanCommand(ForwardCommand):
    """One run of a plan.  It stays at the head of its queue: after each step `take` notes what was drawn, and with that
    there is something to run again.

    `line` is the run's tokens from number `base` on: those that are not computed, and the last one drawn; behind it are
    the drafts of the next step.  `num_done` of all are computed; the KV of drafts that were not accepted is simply
    written over.  Past its prefill, a run without drafts and hidden slots is a row of the decode table (`row`): what
    changes with each token is there then, until `leave_row` brings it back.
    """

    __slots__ = (
        "_drafter",
        "_num_drafts",
        "_stop_texts",
        "_tail",
        "base",
        "counts",
        "drafts",
        "draw_kind",
        "finish",
        "is_filtered",
        "is_scored",
        "is_waiting",
        "line",
        "masks",
        "matcher",
        "max_tokens",
        "num_drawn",
        "page_size",
        "row",
        "sampler",
        "stop_tokens",
        "stopped_by",
        "stream",
        "visible",
    )

    def __init__(self, peer_id: str, message: StartPlan, page_size: int) -> None:
        forward = Forward(
            message.ticket,
            message.inferlet,
            message.queue,
            message.priority,
            message.pages,
            message.kv_len,
            message.tokens,
            b"",
            b"",
            [],
            message.adapter,
        )
        super().__init__(peer_id, forward, page_size)
        if message.max_tokens < 1 or not 0 <= message.num_drafts <= MAX_DRAFTS:
            raise InvalidRequest(
                f"a plan draws at least 1 token, with up to {MAX_DRAFTS} drafts a step; given "
                f"{message.max_tokens} and {message.num_drafts}"
            )
        self.page_size = page_size
        self.pages = np.frombuffer(message.pages, "<u4")
        self.visible = _visible_bits(message.visible, message.kv_len)
        self.row = -1  # of the decode table
        self.base = 0
        self.line: list[int] = self.tokens.tolist()
        self.drafts: list[int] = []
        self.masks: list[bytes] = []  # what the grammar allows after the last of `line` and each of `drafts`
        self.max_tokens = message.max_tokens
        self.num_drawn = 0
        self.counts = [0, 0, 0]  # steps, drafted, accepted
        self.sampler = message.sampler
        self.draw_kind = Kind.DRAWS if self.sampler.temperature else Kind.GREEDY
        self.is_filtered = bool(self.sampler.bias_tokens or self.sampler.allowed or self.sampler.has_programs)
        self.is_scored = message.is_scored
        self.finish: str | None = None  # why it ended
        self.stopped_by: int | str = ""
        self.is_waiting = False  # for its grammar to be compiled
        self.matcher: Matcher | None = None
        self.stream: DecodeStream | None = None  # set if there are stop texts
        self.stop_tokens = frozenset(np.frombuffer(message.stop_tokens, "<u4").tolist())
        self._stop_texts = tuple(message.stop_texts)
        self._tail = ""  # of the text drawn: what a stop text may begin in
        self._num_drafts = message.num_drafts
        self._drafter = None
        if message.num_drafts:
            self._drafter = NgramDrafter([*np.frombuffer(message.history, "<u4").tolist(), *self.line])

    # --- what the scheduler asks -----------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether it may run now: it has pages for what is next, and its grammar."""
        return not self.is_waiting and self._room >= self.num_tokens

    @property
    def is_masked(self) -> bool:
        return self.visible is not None

    @property
    def num_due(self) -> int:
        """Tokens to run next."""
        return self.num_tokens - self.num_done

    @property
    def num_known(self) -> int:
        """Tokens of the run: given, and drawn."""
        return self.base + len(self.line)

    @property
    def _room(self) -> int:
        """Tokens that its pages hold behind `kv_len`."""
        return len(self.pages) * self.page_size - self.kv_len

    def extend(self, pages: U32) -> None:
        """More pages behind those that it has."""
        self.pages = np.concatenate((self.pages, pages))

    def failures(self, error: PierayError) -> list[Message]:
        told = failed(self.ticket, error)
        return [RunEnded(self.ticket, "", "", [told.code, told.message])]

    def written_slots(self, page_size: int) -> Slots:
        """Those that a failure leaves in doubt: what was drawn and told of is written."""
        start = self.kv_len + (self.num_known - 1 if self.num_drawn else 0)
        end = self.kv_len + min(self.num_tokens, self._room)
        return page_slots(self.pages.tolist(), start, end, page_size)

    # --- as a row --------------------------------------------------------------------------------

    @property
    def may_be_row(self) -> bool:
        """Whether all that it will run is one token a step, behind which it draws the next one."""
        if self.programs or self.draw_work > MOST_ROW_WORK:
            return False
        return self.num_due == 1 and self.num_drawn > 0 and self._drafter is None and self.visible is None

    def record(self, lane: int) -> tuple[Any, ...]:
        """Its row, in the order of `ROW`."""
        one, kv_len = self.sampler, self.kv_len + self.num_done
        is_special = self.is_filtered or self.matcher is not None
        is_hooked = self.matcher is not None or self.stream is not None or len(self.stop_tokens) > MAX_STOPS
        flags = RUN | SPECIAL * is_special | SCORED * self.is_scored | HOOKED * is_hooked
        choice = choices_of([one], [kv_len])[0]
        return (
            self.ticket,
            0,
            lane,
            self.queue,
            self.priority,
            self.turn,
            self.arrived,
            flags,
            self.line[-1],
            len(self.pages) * self.page_size,
            0 if self.adapter is None else self.adapter.serial,
            self.draw_work,
            choice,
            kv_len,
            kv_len,
            self.counts[0],
            self.max_tokens - self.num_drawn,
        )

    def leave_row(self, record: Any) -> None:
        """It is no row any more: what its columns say."""
        self.row = -1
        self.num_done = self.base = int(record["kv_len"]) - self.kv_len
        self.line = [int(record["token"])]
        self.num_tokens = self.num_known
        self.num_drawn = self.max_tokens - int(record["left"])
        self.counts[0] = int(record["num_steps"])
        self.turn, self.arrived = int(record["turn"]), float(record["arrived"])

    # --- what a step computes --------------------------------------------------------------------

    def chunk(self, start: int, stop: int) -> tuple[U32, U32]:
        """Tokens `[start, stop)` of the run and drafts, and their positions."""
        tokens = [*self.line, *self.drafts][start - self.base : stop - self.base]
        return np.array(tokens, np.uint32), np.arange(self.kv_len + start, self.kv_len + stop, dtype=np.uint32)

    def mask_rows(self, start: int, stop: int) -> bytes | None:
        """The mask of rows `[start, stop)`: the visible part of what came before the run, and all of the run."""
        if self.visible is None:
            return None
        rows = np.ones((stop - start, self.kv_len + stop), np.uint8)
        rows[:, : self.kv_len] = self.visible
        return np.packbits(rows, bitorder="little").tobytes()

    def draws(self, start: int, stop: int) -> list[tuple[int, bytes]]:
        """Of the rows `[start, stop)` those to draw after, from `start`, and what the grammar allows (b"": all)."""
        first = self.num_known - 1
        return [(row - start, self.masks[row - first] if self.masks else b"") for row in range(max(first, start), stop)]

    def take(self, drawn: Sequence[int]) -> list[int]:
        """The step's draws, one for each of `draws`; those that count: while a draw is what was drafted, and one more.

        Afterwards `finish` is set, or there is more to run.  Raises QuotaExceeded for a grammar past its limits.
        """
        self.counts[0] += 1
        if not drawn:
            return []
        kept: list[int] = []
        for place, token in enumerate(drawn):
            kept.append(token)
            self.num_drawn += 1
            self.accept(token)
            self.look_at(token)
            if self.finish is None and self.num_drawn == self.max_tokens:
                self.finish = "length"
            if self.finish is not None or place >= len(self.drafts) or self.drafts[place] != token:
                break
        self.counts[2] += min(len(kept) - 1, len(self.drafts))
        self.base += len(self.line) + len(kept) - 1
        self.line = kept[-1:]
        self.drafts, self.masks = [], []
        self.num_done = self.base
        if self._drafter is not None:
            self._drafter.extend(kept)
        self.num_tokens = self.num_known
        if self.finish is None:
            self.look_ahead()
        return kept

    def accept(self, token: int) -> None:
        """A token is drawn for good: its grammar takes it in.  Raises QuotaExceeded."""
        if self.matcher is not None:
            self.matcher.accept([token])

    def look_at(self, token: int) -> None:
        """The same, behind `accept`: `finish` is set if the token ends the run, whatever number it has."""
        text = self._stop_text(token)
        if token in self.stop_tokens:
            self.finish, self.stopped_by = "stop", token
        elif text is not None:
            self.finish, self.stopped_by = "stop", text
        elif self.matcher is not None and self._is_over(self.matcher, token):
            self.finish = "grammar"

    def _stop_text(self, token: int) -> str | None:
        """The stop text that this token completes, the one that begins first."""
        if self.stream is None:
            return None
        text = self._tail + self.stream.push(token)
        found = [(place, stop) for stop in self._stop_texts if (place := text.find(stop)) >= 0]
        self._keep_tail(text)
        return min(found)[1] if found else None

    def _keep_tail(self, text: str) -> None:
        """Remember as much of the text as may be the beginning of a stop text."""
        self._tail = text[max(0, len(text) - max(map(len, self._stop_texts)) + 1) :]

    @staticmethod
    def _is_over(matcher: Matcher, token: int) -> bool:
        """Whether nothing may follow in the grammar: it was ended by a stop token, or allows none to end it."""
        return token in matcher.grammar.eos_ids or _is_empty(matcher.mask_bytes())

    def replay(self, drawn: Sequence[int]) -> None:
        """What earlier runs have drawn: a stop text may begin in it."""
        if self.stream is not None:
            self._keep_tail("".join([self.stream.push(token) for token in drawn]))

    def look_ahead(self) -> None:
        """Choose the drafts of the next step, and what the grammar allows at each of its draws."""
        self.drafts = []
        if self._drafter is not None:
            left = self.max_tokens - self.num_drawn - 1
            most = min(self._num_drafts, left, self._room - self.num_known)
            self.drafts = self._drafter.draft(most) if most > 0 else []
        if self.matcher is not None:
            self._look_ahead_in(self.matcher)
        self.counts[1] += len(self.drafts)
        self.num_tokens = self.num_known + len(self.drafts)

    def _look_ahead_in(self, matcher: Matcher) -> None:
        self.masks = [matcher.mask_bytes()]
        if _is_empty(self.masks[0]):
            self.finish = "grammar"
        num_allowed = 0
        for token in self.drafts:
            if not matcher.accept([token]):
                break
            num_allowed += 1
            self.masks.append(matcher.mask_bytes())
        matcher.rollback(num_allowed)
        del self.drafts[num_allowed:]


def _is_empty(mask: bytes) -> bool:
    return mask.count(0) == len(mask)


def _visible_bits(visible: bytes, kv_len: int) -> U32 | None:
    if not visible:
        return None
    bits = np.unpackbits(np.frombuffer(visible, np.uint8), bitorder="little")
    if not kv_len <= len(bits) < kv_len + 32:
        raise InvalidRequest(f"a plan on {kv_len} tokens has as many visible bits; given {len(bits)}")
    return bits[:kv_len]  # type: ignore[return-value]
