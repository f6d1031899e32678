"""The decode table: sequences that run one token a step and draw the next one, a row of columns for each.

A row is a run of a plan past its prefill, from step to step, or a pass of one token with one sample, for one step.  A
step over rows is a fixed number of operations on arrays: Python touches one when it begins, when it ends, and where it
has something of its own (a grammar, a stop text).  Columns are dense: the last row takes the place of one that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pieray.arrays import I64, U32, Bools
from pieray.kernels.sample_cpu import CHOICE
from pieray.messages import Sampler
from pieray.models.batch import DecodeRows
from pieray.urgency import launch_priority

if TYPE_CHECKING:
    from pieray.models.lora import LoraAdapter
    from pieray.sched.plans import PlanCommand

Records = npt.NDArray[Any]

NO_TOKEN = 0xFFFFFFFF
MAX_STOPS = 16
"""Stop tokens that are columns; a run with more of them has them looked at one by one."""
RUN, SPECIAL, SCORED, HOOKED = 1, 2, 4, 8
"""Flags: a run of a plan (else a pass); a draw from other than the plain logits; log-probabilities are wanted; each
token is looked at in Python."""
ROW = np.dtype(
    [
        ("ticket", "<u8"),
        ("sample_ticket", "<u8"),
        ("lane", "<i8"),
        ("queue", "<u4"),
        ("priority", "<i4"),
        ("turn", "<i8"),
        ("arrived", "<f8"),
        ("flags", "<u4"),
        ("token", "<u4"),
        ("room", "<i8"),  # slots of its pages
        ("adapter", "<i8"),
        ("work", "<i8"),  # operations of tensor programs for a draw, at most
        ("choice", CHOICE),  # behind it, and its counter, is what each step moves, see STEP
        ("kv_len", "<i8"),  # tokens with KV: `token` is the one behind them
        ("position", "<i8"),
        ("num_steps", "<i8"),
        ("left", "<i8"),  # tokens to draw
    ]
)
STEP: I64 = np.array([1, 1, 1, 1, -1])
"""What a step adds to the counter of the choice, kv_len, position, num_steps and left, the last columns of ROW."""
NEVER = 1 << 40


class Own(NamedTuple):
    """What of a row is no number."""

    sampler: Sampler
    adapter: LoraAdapter | None
    plan: PlanCommand | None  # of a run


class DecodeTable:
    """Rows `[0, len)`: `rows` [n] of ROW, `pages` [n, W], `stops` [n, S], `own`.  Pages behind a row's own are 0, stops
    NO_TOKEN."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._size = 0
        self._rows: Records = np.zeros(32, ROW)
        self._pages: U32 = np.zeros((32, 8), np.uint32)
        self._stops: U32 = np.full((32, 0), NO_TOKEN, np.uint32)
        self._ready: I64 = np.zeros(0, np.int64)
        self.num_changes = 0  # times that rows have come or gone
        self._num_calm = 0  # steps for which these are the rows that have a slot, if none comes or goes
        self._group: RowGroup | None = None  # of those
        self.own: list[Own] = []

    def __len__(self) -> int:
        return self._size

    @property
    def rows(self) -> Records:
        if self._group is not None:
            self._group.settle()
        return self._rows[: self._size]

    @property
    def pages(self) -> U32:
        return self._pages[: self._size]

    @property
    def stops(self) -> U32:
        return self._stops[: self._size]

    # --- in and out ------------------------------------------------------------------------------

    def append(self, records: Records, pages: U32, own: Sequence[Own], stops: U32 | None = None) -> I64:
        """Add rows, with pages [n, w] and stop tokens [n, s]; their numbers."""
        first, last = self._size, self._size + len(records)
        self._changed()
        self._widen(last, pages.shape[1], 0 if stops is None else stops.shape[1])
        self._size = last
        self._rows[first:last] = records
        self._pages[first:last] = 0
        self._pages[first:last, : pages.shape[1]] = pages
        self._stops[first:last] = NO_TOKEN
        if stops is not None:
            self._stops[first:last, : stops.shape[1]] = stops
        self.own += own
        return np.arange(first, last)

    def extend(self, row: int, pages: U32) -> None:
        """More pages behind a row's own."""
        room = int(self._rows["room"][row])
        num_before = room // self.page_size
        if int(self._rows["kv_len"][row]) >= room:
            self._num_calm = 0
        self._widen(self._size, num_before + len(pages), 0)
        self._pages[row, num_before : num_before + len(pages)] = pages
        self._rows["room"][row] += len(pages) * self.page_size

    def remove(self, rows: I64) -> None:
        """Take rows out; runs that move to other places are told."""
        self._changed()
        size = self._size - len(rows)
        holes = np.sort(rows[rows < size])
        if len(holes):
            is_kept = np.ones(self._size, bool)
            is_kept[rows] = False
            moved = size + np.flatnonzero(is_kept[size:])
            for column in (self._rows, self._pages, self._stops):
                column[holes] = column[moved]
            for hole, place in zip(holes.tolist(), moved.tolist(), strict=True):
                self.own[hole] = own = self.own[place]
                if own.plan is not None:
                    own.plan.row = hole
        del self.own[size:]
        self._size = size

    def _widen(self, size: int, num_pages: int, num_stops: int) -> None:
        capacity, width = self._pages.shape
        if size > capacity or num_pages > width:
            self._dissolve()
            pages = np.zeros(
                (max(size, 2 * capacity if size > capacity else capacity), max(width, num_pages * 3 // 2)), np.uint32
            )
            pages[: self._size, :width] = self._pages[: self._size]
            self._pages = pages
        capacity, num_before = self._stops.shape
        if size > capacity or num_stops > num_before:
            stops = np.full((len(self._pages), max(num_before, num_stops)), NO_TOKEN, np.uint32)
            stops[: self._size, :num_before] = self._stops[: self._size]
            self._stops = stops
        if size > len(self._rows):
            rows: Records = np.zeros(len(self._pages), ROW)
            rows[: self._size] = self._rows[: self._size]
            self._rows = rows

    def _changed(self) -> None:
        """Rows come or go."""
        self._num_calm = 0
        self.num_changes += 1
        self._dissolve()

    def _dissolve(self) -> None:
        if self._group is not None:
            self._group.settle()
            self._group = None

    # --- a step ----------------------------------------------------------------------------------

    def ready(self) -> I64:
        """Rows that have a slot for their next token; the same array while they are the same rows."""
        if self._num_calm <= 0:
            room = self.rows["room"] - self.rows["kv_len"]
            rows = np.flatnonzero(room > 0)
            if self._group is None or not np.array_equal(rows, self._ready):
                self._dissolve()
                self._ready = rows
            self._num_calm = int(room[rows].min(initial=NEVER))
        return self._ready

    def group(self, rows: I64) -> RowGroup:
        """These rows, for a step."""
        if self._group is not None and rows is self._ready:
            return self._group
        group = RowGroup(self, rows)
        if rows is self._ready:
            self._group = group
        return group

    def of_lanes(self, lanes: I64) -> I64:
        """Rows of these inferlets."""
        return np.flatnonzero(np.isin(self.rows["lane"], lanes))

    def advance(self, group: RowGroup, tokens: I64) -> Bools | None:
        """The rows have drawn these tokens; which of them end by their columns: at a stop token, or with the last that
        they were to draw.  None: none of them."""
        if group is not self._group:
            self._dissolve()
        group.token[group.where] = tokens
        group.moving[group.where] += STEP
        self._num_calm -= 1
        group.num_steps += 1
        ends: Bools | None = None
        if group.num_steps >= group.num_left:
            ends = self._rows["left"][group.where] == 0
        if group.stops is not None:
            found = (group.stops == tokens[:, None]).any(1)
            ends = found if ends is None else ends | found
        return ends


class RowGroup:
    """Rows that step together, in the order in which the runner takes them: those of an adapter side by side.

    What holds of them until one comes or goes is found out once, not in each step: while nothing happens, the table
    gives the same group.
    """

    def __init__(self, table: DecodeTable, rows: I64) -> None:
        is_all = len(rows) == len(table) and bool((rows == np.arange(len(rows))).all())
        serials = table.rows["adapter"][rows]
        if serials.any():
            order = np.argsort(serials, kind="stable")
            rows, is_all = rows[order], False
        self.table = table
        self.rows = rows
        self.where: slice | I64 = slice(0, len(rows)) if is_all else rows
        """The same, without a copy where they are all of the table."""
        self.num_steps = 0
        """Taken with it."""
        self.records: Records = table.rows[self.where]
        """Their columns, as they are or, of a part of the table, as they were."""
        records = self.records
        self.lanes: I64 = records["lane"].copy()
        flags = records["flags"]
        self.is_run: Bools = flags & RUN > 0
        self.num_runs = int(np.count_nonzero(self.is_run))
        self.scored: I64 = np.flatnonzero(flags & SCORED)
        self.special: list[int] = np.flatnonzero(flags & SPECIAL).tolist()
        self.hooked: list[int] = np.flatnonzero(flags & HOOKED).tolist()
        self.program_work, self.most_work = int(records["work"].sum()), int(records["work"].max())
        """Operations of tensor programs that their draws go through, and that of one of them."""
        self.num_drawn = int(np.count_nonzero(records["choice"]["temperature"] > 0))
        kv_lens, turns, levels = records["kv_len"], records["turn"], launch_priority(records["priority"])
        self.is_of_one_priority = bool((levels == levels[:1]).all())
        """Whether their launches all have the same."""
        self._slots = int(kv_lens.sum()), int(kv_lens.max()), int(kv_lens.min())
        self.num_left = int(records["left"].min())
        """Steps behind which the first of them has drawn all that it was to draw."""
        stops = table.stops[self.where]
        self.stops: U32 | None = stops if (stops != NO_TOKEN).any() else None
        whole = table._rows
        self.token: Records = whole["token"]
        self.moving: I64 = np.ndarray(
            (len(whole), len(STEP)), np.int64, whole, ROW.itemsize - STEP.nbytes, (ROW.itemsize, STEP.itemsize)
        )
        first = int(turns.min())
        self._first_turn = first if int(turns.max()) - first == len(rows) - 1 else -1
        self._next_turn = -1  # of the first of them, which the table is not told of yet
        self._arrived = 0.0  # nor of this
        self.most_of_tenant: float | None = None
        """See `Shares.are_even`."""
        self.tellings: Any = None
        """See `RunningPlans`."""
        self._columns: DecodeRows | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_slots(self) -> int:
        """That they attend to in this step, in all."""
        return self._slots[0] + (self.num_steps + 1) * len(self.rows)

    @property
    def reach(self) -> tuple[int, int]:
        """Slots that the longest and the shortest of them attend to."""
        return self._slots[1] + self.num_steps + 1, self._slots[2] + self.num_steps + 1

    def take_turns(self, first: int, now: float) -> None:
        """Each takes its turn anew, from number `first` on, in the order in which they had them."""
        if self._first_turn < 0:
            turns = self.table._rows["turn"]
            turns[self.rows[np.argsort(turns[self.rows])]] = np.arange(first, first + len(self.rows))
            self._first_turn = first
        self._next_turn, self._arrived = first, now
        if self is not self.table._group:
            self.settle()

    def settle(self) -> None:
        """Tell the table what it was not told of in each step: turns and arrivals."""
        if self._next_turn >= 0:
            table = self.table._rows
            table["turn"][self.where] += self._next_turn - self._first_turn
            table["arrived"][self.where] = self._arrived
            self._first_turn, self._next_turn = self._next_turn, -1

    def part(self, is_in: Bools) -> RowGroup:
        """Some of them."""
        return RowGroup(self.table, self.rows[is_in])

    def columns(self) -> DecodeRows:
        """What the runner is given: views of the table while these are all of its rows."""
        found = self._columns
        if found is None:
            if self.num_steps and not isinstance(self.where, slice):
                self.records = self.table._rows[self.where]  # those before were of an earlier step
            found = self._made()
            if isinstance(self.where, slice):
                self._columns = found
        for place in self.special:
            plan = self.table.own[int(self.rows[place])].plan
            if plan is not None and plan.matcher is not None:
                found.masks[place] = plan.matcher.mask_bytes()
        return found

    def _made(self) -> DecodeRows:
        records = self.records
        own = {place: self.table.own[int(self.rows[place])] for place in self.special}
        samplers = {
            place: sampler
            for place, one in own.items()
            if (sampler := one.sampler).bias_tokens or sampler.allowed or sampler.has_programs
        }
        draws = {
            place: one.plan.draw_programs
            for place, one in own.items()
            if one.plan is not None and one.plan.draw_programs
        }
        return DecodeRows(
            records["token"],
            records["position"],
            records["kv_len"],
            self.table.pages[self.where],
            records["choice"],
            samplers,
            scored=self.scored,
            adapters=self._adapters(),
            draws=draws,
        )

    def _adapters(self) -> list[tuple[LoraAdapter, int, int]]:
        serials = self.records["adapter"]
        if not serials.any():
            return []
        starts = np.flatnonzero(np.diff(serials, prepend=-1)).tolist()
        return [
            (adapter, first, last)
            for first, last in zip(starts, [*starts[1:], len(self.rows)], strict=True)
            if (adapter := self.table.own[int(self.rows[first])].adapter) is not None
        ]


def stop_column(stops: frozenset[int]) -> U32:
    """A row's stop tokens [1, s]; none of too many."""
    return np.array([sorted(stops) if len(stops) <= MAX_STOPS else []], np.uint32)
