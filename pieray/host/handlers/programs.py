"""WIT interface `programs`: tensor programs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from pieray.arrays import F32, U32
from pieray.config import Limits
from pieray.errors import InvalidRequest, QuotaExceeded, Unsupported
from pieray.host.device.commands import Queue
from pieray.host.device.model_side import ModelSides
from pieray.host.device.programs import Load, OpenProgram, Read, Unload, counts_of, states_of
from pieray.host.handlers.forward import ForwardHandlers
from pieray.host.handlers.plans import PlanHandlers
from pieray.host.tables import HandleTables
from pieray.host.tickets import Kind, TicketTable
from pieray.tensor.program import Bounds, Program, parse
from pieray.tensor.types import PAGES, STAGES, Sizes

MAX_PROGRAMS = 8
"""That run in one pass."""
DRAWS = ("logits", "draw")
"""Stages of samplers; those of passes are the others."""


class ProgramHandlers:
    """Programs by handle.  What can be checked here is; the batcher checks it anew."""

    def __init__(
        self,
        limits: Limits,
        tables: HandleTables,
        tickets: TicketTable,
        sides: ModelSides,
        passes: ForwardHandlers,
        plans: PlanHandlers,
    ) -> None:
        self._limits = limits
        self._tables = tables
        self._tickets = tickets
        self._sides = sides
        self._outbox = sides.first.outbox
        self._passes = passes
        self._plans = plans
        self._queue = Queue(0)
        self._next = 1
        self._bounds = Bounds(limits.program_ops, limits.program_bytes, limits.program_work)

    def create(self, code: str, states: F32) -> int:
        info = self._sides.first.info
        most = -(-info.max_context // info.page_size)
        sizes = Sizes(info.vocab_size, info.hidden_size, info.num_heads, info.head_dim, info.num_layers, most)
        program = parse(code, sizes, self._bounds)
        if program.stage not in DRAWS and info.way != "native":
            raise Unsupported(f"programs of stage {program.stage} need a native decoder; {info.name} has none")
        values = _split(program, states, sizes)
        num_bytes = len(code) + program.state_bytes + states.nbytes
        with self._tickets.lock:
            used = sum(one.num_bytes for one in self._tables.programs.values())
            if used + num_bytes > self._limits.program_bytes:
                raise QuotaExceeded(
                    f"program_bytes: the limit is {self._limits.program_bytes}; programs that are open have {used}, "
                    f"this one has {num_bytes}"
                )
            self._tables.programs.check_room()
            self._outbox.check_room()
            number, self._next = self._next, self._next + 1
            self._outbox.stage_first(Load(self._tickets.number(), self._queue, number, code, self._bounds, values))
            return self._tables.programs.put(OpenProgram(number, program, num_bytes))

    def for_sampler(self, sampler: int, logits: int, draw: int) -> None:
        chain = self._tables.samplers.get(sampler)
        numbers = [self._of_stage(handle, stage) for handle, stage in zip((logits, draw), DRAWS, strict=True)]
        self._tables.samplers.replace(sampler, dataclasses.replace(chain, processor=numbers[0], program=numbers[1]))

    def for_pass(self, pass_: int, programs: U32) -> None:
        found = self._passes.unsent(pass_)
        if len(programs):
            self._sides.check_programs(found.queue)
        numbers, looks_at_pages = self._of_pass(programs)
        if looks_at_pages and found.mask:
            raise InvalidRequest(
                "programs that look at pages run in passes without a mask; this one has one, or hidden slots"
            )
        found.programs, found.looks_at_pages = numbers, looks_at_pages

    def for_plan(self, plan: int, programs: U32) -> None:
        numbers, looks_at_pages = self._of_pass(programs)
        if len(programs):
            self._sides.check_programs(self._plans.queue_of(plan))
        self._plans.change(plan, programs=tuple(numbers), looks_at_pages=looks_at_pages)

    def states(self, program: int) -> int:
        found = self._tables.programs.get(program)
        num_bytes = found.program.state_bytes
        if any(PAGES in state.type.shape for state in found.program.states):
            num_bytes += 4 * self._sides.first.info.max_context
        with self._tickets.lock:
            self._outbox.check_room()
            ticket = self._outbox.results.open_result(Kind.FLOATS, num_bytes, "the states of this program have").number
            self._outbox.stage(Read(ticket, self._queue, found.number, states_of))
        return ticket

    def counts(self, program: int) -> int:
        found = self._tables.programs.get(program)
        with self._tickets.lock:
            self._outbox.check_room()
            ticket = self._tickets.issue(Kind.TEXT)
            self._outbox.stage(Read(ticket, self._queue, found.number, counts_of))
        return ticket

    def free(self, programs: U32) -> None:
        handles = programs.tolist()
        with self._tickets.lock:
            for handle in handles:
                self._tables.programs.get(handle)
            if len(set(handles)) != len(handles):
                raise InvalidRequest("a program is named twice")
            for handle in handles:
                self._outbox.check_room()
                number = self._tables.programs.pop(handle).number
                self._outbox.stage(Unload(self._tickets.number(), self._queue, number))

    def _of_stage(self, handle: int, stage: str) -> int:
        """The batcher's number of a program of that stage; 0 for 0."""
        if not handle:
            return 0
        found = self._tables.programs.get(handle)
        if found.program.stage != stage:
            raise InvalidRequest(f"a program of stage {stage} is wanted here; given one of stage {found.program.stage}")
        return found.number

    def _of_pass(self, programs: U32) -> tuple[list[int], bool]:
        """The batcher's numbers, and whether one of them looks at pages."""
        if len(programs) > MAX_PROGRAMS:
            raise InvalidRequest(f"at most {MAX_PROGRAMS} programs run in a pass; given {len(programs)}")
        found = [self._tables.programs.get(handle) for handle in programs.tolist()]
        stages = {one.program.stage for one in found}
        if wrong := stages.intersection(DRAWS):
            raise InvalidRequest(
                f"programs of stage {min(wrong)} are a sampler's; those of passes are {_pass_stages()}"
            )
        if stages >= {"pages", "attention"}:
            raise InvalidRequest("a pass has programs of stage pages or attention, not of both")
        return [one.number for one in found], not stages.isdisjoint({"pages", "attention"})


def _pass_stages() -> str:
    return ", ".join(name for name in STAGES if name not in DRAWS)


def _split(program: Program, values: F32, sizes: Sizes) -> list[bytes]:
    """The values of each state, from all in a line; [] for none."""
    if not len(values):
        return []
    counts = [-1 if PAGES in one.type.shape else sizes.count(one.type.shape) for one in program.states]
    known = sum(count for count in counts if count >= 0)
    left = len(values) - known
    if counts.count(-1) > 1 or left < 0 or (left and -1 not in counts) or left > sizes.max_pages:
        raise InvalidRequest(f"the states of this program have {known} values; given {len(values)}")
    if not np.isfinite(values).all():
        raise InvalidRequest(f"values of states are finite; given {'NaN' if np.isnan(values).any() else math.inf}")
    ends = np.cumsum([left if count < 0 else count for count in counts])
    return [part.astype("<f4").tobytes() for part in np.split(values, ends[:-1])]
