"""BatcherCore: the plain heart of a Batcher actor: messages in, engine steps, messages out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pieray.arrays import I64
from pieray.errors import DeviceLost, Evicted, PierayError, ProtocolError, Unsupported
from pieray.messages import (
    CancelInferlet,
    Completed,
    CopyTokens,
    DecodePasses,
    DropSwapped,
    EmbedImage,
    EmbedTokens,
    ExtendPlan,
    Forward,
    LoadAdapter,
    LoadProgram,
    Message,
    OpenInferlet,
    ReadPages,
    ReadProgram,
    Sample,
    StartPlan,
    StopPlan,
    SwapIn,
    SwapOut,
    UnloadAdapter,
    UnloadProgram,
    Verify,
    WritePages,
)
from pieray.model_settings import ModelSettings
from pieray.models.batch import NO_ROWS
from pieray.models.draws import Drawn
from pieray.sched.chunks import Chunk
from pieray.sched.cohort import CohortWait
from pieray.sched.command_factory import CommandFactory, Enqueued, tickets_of
from pieray.sched.commands import Command, ForwardCommand, MoveCommand
from pieray.sched.convert import asked, wire_value
from pieray.sched.costs import CostModel
from pieray.sched.device_steps import DeviceSteps, Runner, independent_groups
from pieray.sched.failures import dependency_failed, failed, malformed
from pieray.sched.images import ImageQueue
from pieray.sched.lanes import LaneKey
from pieray.sched.loaded_adapters import LoadedAdapters
from pieray.sched.loaded_programs import LoadedPrograms
from pieray.sched.lookups import EmbedLookups
from pieray.sched.page_moves import PageMove
from pieray.sched.passes import PassTable, passes_tickets
from pieray.sched.plans import PlanCommand
from pieray.sched.running_plans import Over, RunningPlans
from pieray.sched.scheduler import Scheduler
from pieray.sched.step_plan import StepPlan
from pieray.sched.step_totals import StepTotals
from pieray.sched.step_trace import StepTrace
from pieray.sched.swap_slots import SwapSlots
from pieray.sched.table import RowGroup
from pieray.sched.verify import VerifyCommand

if TYPE_CHECKING:
    from pieray.models.outputs import StepResult
    from pieray.models.tokenizer import TokenizerSpec

log = logging.getLogger(__name__)

NO_LANES = np.zeros(0, np.int64)
NO_SCORES = np.zeros(0, np.float32)
Answers: TypeAlias = list[tuple[str, Message]]  # (peer_id, message)
MOVES = (CopyTokens, SwapOut, SwapIn, ReadPages, WritePages)


class BatcherCore:
    """Not thread-safe: one thread submits, steps and drops.  `clock` times the steps, in seconds, monotonic.

    Every ticket gets exactly one answer, unless its inferlet or peer is dropped before.  A command that fails
    fails alone, but for those that read what it was to write.  Nothing that a peer sends makes `submit` or `step`
    raise.  When the device dies, all commands fail with DeviceLost and `lost` says why: the core is of no more use.

    With `costs`, steps are short and shared fairly (see `shares.py`); call `sent` when the answers of a step are sent.
    The runner has `num_swap_slots` for swapped pages, and moves at most `max_swap_pages` in a step.
    """

    def __init__(
        self,
        runner: Runner,
        settings: ModelSettings,
        clock: Callable[[], float] = time.monotonic,
        tokenizer: TokenizerSpec | None = None,
        costs: CostModel | None = None,
        num_swap_slots: int = 0,
        max_swap_pages: int = 256,
        weight_of: Callable[[str], float] = lambda _: 1.0,
    ) -> None:
        """`weight_of` gives a tenant's weight in shares of the device's time."""
        self._runner = runner
        self._device = DeviceSteps(runner)
        self._clock = clock
        self._page_size = settings.page_size
        self._scheduler = Scheduler(
            settings.page_size,
            settings.max_batch_tokens,
            settings.max_batch_requests,
            costs=costs,
            max_swap_pages=max_swap_pages,
            weight_of=weight_of,
        )
        self._cohort = CohortWait(self._scheduler.lanes, settings.cohort_wait_s)
        self._lookups = EmbedLookups()
        self.images = ImageQueue(runner, settings.image_pixels)
        self._swap = SwapSlots(num_swap_slots)
        self._totals = StepTotals(costs)
        self.trace = StepTrace()
        self.lost: DeviceLost | None = None
        self.plans = RunningPlans(self._scheduler, self._fail, tokenizer)
        self.adapters = LoadedAdapters(runner, settings.adapter_bytes)
        self._programs = LoadedPrograms(runner)
        self._factory = CommandFactory(runner, settings.page_size, self.plans, self._swap)
        self._passes = PassTable(self._scheduler, self.adapters.find)

    # --- in --------------------------------------------------------------------------------------

    def submit(self, peer_id: str, messages: Sequence[Message], now: float) -> Answers:
        """Take a peer's messages, in order; returns what can be answered at once.

        `now` is best the time at which the messages came in.
        """
        answers: Answers = []
        for message in messages:
            if isinstance(message, DecodePasses):
                self._take_passes(peer_id, message, now, answers)
            elif isinstance(message, (Forward, Verify, StartPlan, *MOVES)):
                self._enqueue(peer_id, message, now, answers)
            elif isinstance(message, (ExtendPlan, StopPlan)):
                self.plans.change(peer_id, message, answers)
            elif isinstance(message, (EmbedTokens, EmbedImage)):
                self._embed(peer_id, message)
            elif isinstance(message, (LoadAdapter, UnloadAdapter)):
                answers += self.adapters.submit(peer_id, message)
            elif isinstance(message, (LoadProgram, UnloadProgram, ReadProgram)):
                answers += self._programs.submit(peer_id, message)
            elif isinstance(message, DropSwapped):
                self._drop_swapped(peer_id, message)
            elif isinstance(message, OpenInferlet):
                self._open(peer_id, message)
            elif isinstance(message, CancelInferlet):
                self._drop(peer_id, message.inferlet)
                answers.append((peer_id, Completed(message.ticket, None)))
            else:
                error = ProtocolError(f"a batcher takes no {type(message).__name__}")
                if (ticket := getattr(message, "ticket", None)) is not None:
                    answers.append((peer_id, failed(ticket, error)))
                log.warning("%s: %s", peer_id, error)
        return answers

    def _embed(self, peer_id: str, message: EmbedTokens | EmbedImage) -> None:
        if isinstance(message, EmbedImage):
            self.images.submit(peer_id, message)
        else:
            self._lookups.add(peer_id, message)

    def _open(self, peer_id: str, message: OpenInferlet) -> None:
        key = peer_id, message.inferlet
        self._scheduler.introduce(key, message.tenant)
        if message.traced_as:
            self.trace.watch(key, self._scheduler.open(key), message.traced_as)

    def _take_passes(self, peer_id: str, message: DecodePasses, now: float, answers: Answers) -> None:
        try:
            lanes, odd = self._passes.add(peer_id, message, now)
        except BaseException as error:  # noqa: BLE001 - columns that do not fit together: none of it can be told apart
            answers += [(peer_id, failed(ticket, malformed(error))) for ticket in passes_tickets(message)]
            return
        self._cohort.arrived(lanes, now)
        for forward in odd:
            self._enqueue(peer_id, forward, now, answers)

    def _enqueue(self, peer_id: str, message: Enqueued, now: float, answers: Answers) -> None:
        try:
            key = (peer_id, message.inferlet)
            self._cohort.arrived(self._scheduler.open(key), now)
            if self._scheduler.has_passes(key):
                self._spill(key, now)
            command = self._factory.command(peer_id, message)
        except BaseException as error:  # noqa: BLE001 - not well-formed, or a panic of a tokenizer: it fails alone
            self._fail_message(peer_id, message, error, answers)
            return
        if not self._scheduler.submit(command, now):
            self._answer_failed([command], dependency_failed(), answers)
            return
        if isinstance(message, StartPlan) and isinstance(command, PlanCommand):
            self.plans.begin(command, message, answers)
        if (
            isinstance(command, ForwardCommand)
            and isinstance(message, (Forward, Verify, StartPlan))
            and message.adapter
        ):
            self._attach_adapter(command, message.adapter, answers)
        if isinstance(command, ForwardCommand) and isinstance(message, (Forward, Verify, StartPlan)):
            self._attach_programs(command, message, answers)

    def _spill(self, key: LaneKey, now: float) -> None:
        """Passes of the inferlet that wait as rows become commands: what comes behind may have to wait for them."""
        for forward, adapter in self._passes.give_up(key):
            command = ForwardCommand(key[0], forward, self._page_size)
            command.adapter = adapter
            self._scheduler.submit(command, now)

    def _attach_adapter(self, command: ForwardCommand, number: int, answers: Answers) -> None:
        try:
            command.adapter = self.adapters.find(command.lane, number)
        except Evicted as error:
            self._fail(command, error, answers)

    def _attach_programs(
        self, command: ForwardCommand, message: Forward | Verify | StartPlan, answers: Answers
    ) -> None:
        """The tensor programs that a command names, for as long as it runs."""
        if isinstance(message, Forward):
            samplers = [output.sampler for output in message.outputs if isinstance(output, Sample)]
        else:
            samplers = [message.sampler]
        samplers = [one for one in samplers if one.has_programs]
        numbers = () if isinstance(message, Verify) else message.programs
        if not samplers and not numbers:
            return
        try:
            command.draw_programs = self._programs.of_draws(command.lane, samplers)
            has_drafts = isinstance(message, Verify) or (isinstance(message, StartPlan) and message.num_drafts > 0)
            if has_drafts and any(one.states for one in command.draw_programs.values()):
                raise Unsupported("drafts are verified with samplers whose programs have no states")
            command.draw_work = sum(one.program.work for one in command.draw_programs.values())
            command.programs = [self._programs.find(command.lane, number) for number in numbers]
            command.program_work = sum(one.program.work for one in command.programs)
        except PierayError as error:
            self._fail(command, error, answers)

    def _drop_swapped(self, peer_id: str, message: DropSwapped) -> None:
        try:
            self._swap.drop((peer_id, message.inferlet), np.frombuffer(message.slots, "<u4").tolist())
        except BaseException as error:  # noqa: BLE001 - not well-formed; nobody waits for an answer
            log.warning("%s: %s", peer_id, malformed(error))

    def _drop(self, peer_id: str, inferlet: int | None = None) -> None:
        self.plans.forget(self._scheduler.cancel(peer_id, inferlet))
        self._lookups.cancel(peer_id, inferlet)
        self.images.drop(peer_id, inferlet)
        self._swap.close(peer_id, inferlet)
        self.adapters.drop(peer_id, inferlet)
        self._programs.drop(peer_id, inferlet)
        self.trace.forget(peer_id, inferlet)

    def seen(self, key: LaneKey, tenant: str, seconds: float) -> None:
        """An image of the inferlet has taken so long, beside the steps: it counts as device time of its own, or, if it
        has ended, of its tenant."""
        self._scheduler.charge(key, tenant, seconds)

    def drop_peer(self, peer_id: str) -> None:
        """The peer is dead: drop all that it has queued.  No step touches its pages any more."""
        self._drop(peer_id)

    # --- steps -----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._lookups)

    @property
    def step_s(self) -> float:
        """What a step takes, of late."""
        return self._cohort.step_s

    def is_busy(self, key: LaneKey) -> bool:
        """Whether the inferlet has unfinished commands."""
        return self._scheduler.is_busy(key)

    def wait_s(self, now: float) -> float:
        """Seconds to wait for more commands before `step`, unless one comes first; 0: step now."""
        if self._scheduler.is_full or self._lookups:
            return 0.0
        return self._cohort.wait_s(now)

    def step(self, now: float) -> Answers:
        """One engine step: copies and swaps, then one ragged batch of rows and forwards.  Nothing happens without
        work."""
        answers: Answers = []
        try:
            self._step(now, answers)
        except DeviceLost as error:
            self.lose(error, answers)
        return answers

    def lose(self, error: DeviceLost, answers: Answers) -> None:
        """The device is dead: everything that is queued fails."""
        self.lost = error
        answers += self._lookups.fail_all(error)
        answers += self.images.fail_all(error)
        answers += self._passes.fail_all(error)
        for peer_id in self._scheduler.peers():
            commands = self._scheduler.cancel(peer_id)
            self.plans.forget(commands)
            self._answer_failed(commands, error, answers)

    def _step(self, now: float, answers: Answers) -> None:
        began = self._clock()
        plan = self._scheduler.next_step(now)
        self._lookups.answer(self._runner, answers)
        if not plan.copies and not plan.num_requests:
            return
        self._copy(plan.copies, answers)
        passes = self._forward(plan, answers)
        self._end_step(plan, passes, began)

    def _copy(self, commands: Sequence[MoveCommand], answers: Answers) -> None:
        for group in independent_groups(commands):
            if isinstance(group, PageMove):
                self._move_pages(group, answers)
                continue
            error = self._device.copy([copy for command in group for copy in command.step_copies()])
            for command in group:
                alone = self._device.copy(command.step_copies()) if error is not None and len(group) > 1 else error
                self._moved(command, alone, None, answers)

    def _move_pages(self, command: PageMove, answers: Answers) -> None:
        if not command.is_over:  # else it would have moved what one before it has failed to write
            error = self._device.move_pages(command)
            value = command.complete() if error is None and command.is_scheduled else None
            self._moved(command, error, value, answers)

    def _moved(self, command: MoveCommand, error: PierayError | None, value: Any, answers: Answers) -> None:
        """The command's part of the step has run."""
        if error is not None:
            self._fail(command, error, answers)
        elif not command.is_over and command.is_scheduled:
            answers.append((command.peer_id, Completed(command.ticket, value)))
            self._scheduler.finish(command)

    def _forward(self, plan: StepPlan, answers: Answers) -> I64:
        """Compute and answer; a forward whose copy has failed is over already.  Returns the inferlets whose passes were
        rows."""
        chunks, items, outputs = [], [], []
        for chunk in plan.forwards:
            if chunk.command.is_over:
                continue
            try:
                item, wanted = asked(chunk, self._page_size)
                items.append(item)
                outputs.append(wanted)
                chunks.append(chunk)
            except BaseException as error:  # noqa: BLE001 - not well-formed, or a panic of a grammar: it fails alone
                self._fail(chunk.command, malformed(error), answers)
        group = plan.group
        drawn, results = self._device.compute(NO_ROWS if group is None else group.columns(), items, outputs)
        passes = NO_LANES if group is None else self._answer_rows(group, drawn, answers)
        for chunk, result in zip(chunks, results, strict=True):
            self._answer_chunk(chunk, result, answers)
        return passes

    def _answer_rows(self, group: RowGroup, drawn: Drawn, answers: Answers) -> I64:
        """Answer runs and passes that were rows; the inferlets of the passes."""
        table, rows = self._scheduler.table, group.rows
        errors = {int(rows[place]): error for place, error in drawn.errors.items()} if drawn.errors else {}
        runs, tokens, scores = group, drawn.tokens, NO_SCORES
        if len(group.scored):
            scores = np.zeros(len(rows), np.float32)
            scores[group.scored] = drawn.scores
        if group.num_runs == len(rows):
            self.plans.end_rows(self.plans.rows_stepped(runs, tokens, scores, errors, answers), answers)
            return NO_LANES
        over: list[Over] = []
        passes = rows[~group.is_run]
        if group.num_runs:
            runs, tokens = group.part(group.is_run), tokens[group.is_run]
            over = self.plans.rows_stepped(
                runs, tokens, scores[group.is_run] if len(scores) else scores, errors, answers
            )
        table.rows["token"][passes] = drawn.tokens[~group.is_run]
        lanes = self._passes.stepped(passes, errors, answers)
        self.plans.end_rows(over, answers)
        return lanes

    def _answer_chunk(self, chunk: Chunk, result: StepResult, answers: Answers) -> None:
        command = chunk.command
        if command.is_over:  # it read what one before it has failed to write
            return
        if isinstance(result, PierayError):
            self._fail(command, result, answers)
        elif isinstance(command, PlanCommand):
            self.plans.stepped(command, result, answers)
        elif isinstance(command, VerifyCommand):
            self._verify(command, chunk, result, answers)
        else:
            self._answer_outputs(chunk, result, answers)

    def _answer_outputs(self, chunk: Chunk, values: Sequence[Any], answers: Answers) -> None:
        """Answer what the values complete, and, behind the last chunk, the pass."""
        command, peer_id = chunk.command, chunk.command.peer_id
        for output, found in zip(chunk.outputs, values, strict=True):
            value = command.joined(output.ticket, found)
            if isinstance(value, PierayError):
                answers.append((peer_id, failed(output.ticket, value)))
            elif value is not None:
                answers.append((peer_id, Completed(output.ticket, wire_value(value))))
        command.num_answered += len(chunk.outputs)
        if chunk.is_last:
            answers.append((peer_id, Completed(command.ticket, None)))
            self._scheduler.finish(command)

    def _verify(self, command: VerifyCommand, chunk: Chunk, values: Sequence[Any], answers: Answers) -> None:
        """Note what was drawn; behind the last chunk, bring the accepted drafts into a row and answer."""
        error = command.take(chunk.outputs, values)
        if error is None and chunk.is_last:
            sampled, copies = command.outcome(self._page_size)
            error = self._device.copy(copies) if copies else None
            if error is None:
                answers.append((command.peer_id, Completed(command.ticket, sampled.tobytes())))
                self._scheduler.finish(command)
        if error is not None:
            self._fail(command, error, answers)

    def _end_step(self, plan: StepPlan, passes: I64, began: float) -> None:
        ended = self._clock()
        self._cohort.stepped(began, ended)
        if len(passes):
            self._cohort.answered(self._scheduler.idle_lanes(passes), ended)
        for command in [*plan.copies, *(chunk.command for chunk in plan.forwards)]:
            if not command.is_over and not self._scheduler.is_busy(command.lane):
                self._cohort.answered(self._scheduler.open(command.lane), ended)
        self._totals.stepped(plan, began, ended)
        if self.trace.is_on:
            self.trace.stepped(plan, began, ended)

    def sent(self) -> None:
        """The answers of the last step are on their way: what it has cost is known."""
        self._totals.sent(self._clock())

    def stats(self) -> dict[str, Any]:
        """Totals since the start; `mean_batch` is forwards per step.  May be called from any thread."""
        return {**self._totals.stats(), "queued": self._scheduler.num_queued, "swap": self._swap.status()}

    # --- failures --------------------------------------------------------------------------------

    def _fail(self, command: Command, error: PierayError, answers: Answers) -> None:
        """The command fails, and with it those that read what it was to write."""
        if command.is_over:
            return
        failed_with_it = self._scheduler.fail(command)
        self._answer_failed([command], error, answers)
        self._answer_failed(failed_with_it, dependency_failed(), answers)
        self.plans.forget([command, *failed_with_it])

    def _answer_failed(self, commands: Iterable[Command], error: PierayError, answers: Answers) -> None:
        for command in commands:
            self._totals.num_failed += 1
            if isinstance(command, PageMove):
                command.undo()
            answers += [(command.peer_id, message) for message in command.failures(error)]

    def _fail_message(self, peer_id: str, message: Enqueued, error: BaseException, answers: Answers) -> None:
        self._totals.num_failed += 1
        answers += [(peer_id, failed(ticket, malformed(error))) for ticket in tickets_of(message)]
