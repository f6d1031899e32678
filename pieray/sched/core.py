"""BatcherCore: the plain heart of a Batcher actor: messages in, engine steps, messages out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pieray.config import ModelSettings
from pieray.errors import Cancelled, DeviceLost, Evicted, InvalidRequest, PierayError, ProtocolError
from pieray.messages import (
    CancelInferlet,
    Completed,
    CopyTokens,
    DecodePasses,
    EmbedTokens,
    ExtendPlan,
    Forward,
    LoadAdapter,
    Message,
    OpenInferlet,
    Output,
    Sample,
    StartPlan,
    StopPlan,
    UnloadAdapter,
    Verify,
)
from pieray.sched.adapters import AdapterDesk
from pieray.sched.chunks import Chunk
from pieray.sched.cohort import CohortWait
from pieray.sched.commands import Command, CopyCommand, ForwardCommand, LaneKey, failed
from pieray.sched.costs import CostModel, Kind, Work
from pieray.sched.lookups import EmbedLookups, known
from pieray.sched.plandesk import PlanDesk
from pieray.sched.plans import PlanCommand
from pieray.sched.scheduler import Scheduler, StepPlan
from pieray.sched.verify import VerifyCommand

if TYPE_CHECKING:
    from pieray.adapters import AdapterFile
    from pieray.models.batch import ForwardItem
    from pieray.models.lora import LoraAdapter
    from pieray.models.runner import StepResult
    from pieray.models.tokenizer import TokenizerSpec

log = logging.getLogger(__name__)

Answers: TypeAlias = list[tuple[str, Message]]  # (peer_id, message)
Enqueued: TypeAlias = Forward | CopyTokens | Verify | StartPlan


class Runner(Protocol):
    """What the core needs of `pieray.models.runner.ModelRunner`.

    All raise DeviceLost when the device is dead, and only then: nothing can be computed in this process any more.
    """

    def step(self, items: Sequence[ForwardItem], outputs: Sequence[Sequence[Output]]) -> list[StepResult]: ...

    def copy_tokens(self, ranges: Sequence[tuple[int, int, int, int, int]]) -> None: ...

    def require_trees(self) -> None: ...

    def embed(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]: ...
    def read_adapter(self, file: AdapterFile, max_bytes: int) -> LoraAdapter: ...


class BatcherCore:
    """Not thread-safe: one thread submits, steps and drops.  `clock` times the steps, in seconds, monotonic.

    Every ticket gets exactly one answer, unless its inferlet or peer is dropped before.  A command that fails
    fails alone, but for those that read what it was to write.  Nothing that a peer sends makes `submit` or `step`
    raise.  When the device dies, all commands fail with DeviceLost and `lost` says why: the core is of no more use.

    With `costs`, steps are short and shared fairly (see `shares.py`); call `sent` when the answers of a step are sent.
    """

    def __init__(self, runner: Runner, settings: ModelSettings, clock: Callable[[], float] = time.monotonic,
                 tokenizer: TokenizerSpec | None = None, costs: CostModel | None = None) -> None:  # fmt: skip
        from pieray.sched import convert  # torch: imported here, in the process that computes

        self._convert = convert
        self._runner = runner
        self._clock = clock
        self._page_size = settings.page_size
        self._costs = costs
        self._scheduler = Scheduler(
            settings.page_size, settings.max_batch_tokens, settings.max_batch_requests, costs=costs
        )
        self._learning: tuple[Work, float] | None = None  # of the last step: what it was made of, when it began
        self._cohort: CohortWait[LaneKey] = CohortWait(settings.cohort_wait_s)
        self._running: dict[LaneKey, None] = {}  # inferlets of the running step
        self._lookups = EmbedLookups()
        self._acks: list[tuple[LaneKey, int]] = []  # cancels that wait for the running step: ticket
        self._counts = dict.fromkeys(("steps", "forwards", "copies", "tokens", "failed"), 0)
        self._busy_s = 0.0
        self.lost: DeviceLost | None = None
        self.plans = PlanDesk(self._scheduler, self._fail, convert.drawn, tokenizer)
        self.adapters = AdapterDesk(runner, settings.adapter_bytes)

    # --- in --------------------------------------------------------------------------------------

    def submit(self, peer_id: str, messages: Sequence[Message], now: float) -> Answers:
        """Take a peer's messages, in order; returns what can be answered at once.

        `now` is best the time at which the messages came in.
        """
        answers: Answers = []
        for message in messages:
            if isinstance(message, (Forward, CopyTokens, Verify, StartPlan)):
                self._enqueue(peer_id, message, now, answers)
            elif isinstance(message, DecodePasses):
                for forward in _forwards(message):
                    self._enqueue(peer_id, forward, now, answers)
            elif isinstance(message, (ExtendPlan, StopPlan)):
                self.plans.change(peer_id, message, answers)
            elif isinstance(message, EmbedTokens):
                self._lookups.add(peer_id, message)
            elif isinstance(message, (LoadAdapter, UnloadAdapter)):
                answers += self.adapters.submit(peer_id, message)
            elif isinstance(message, OpenInferlet):
                self._scheduler.introduce((peer_id, message.inferlet), message.tenant)
            elif isinstance(message, CancelInferlet):
                self._cancel(peer_id, message, answers)
            else:
                error = ProtocolError(f"a batcher takes no {type(message).__name__}")
                if (ticket := getattr(message, "ticket", None)) is not None:
                    answers.append((peer_id, failed(ticket, error)))
                log.warning("%s: %s", peer_id, error)
        return answers

    def _enqueue(self, peer_id: str, message: Enqueued, now: float, answers: Answers) -> None:
        command: Command
        try:
            self._cohort.arrived((peer_id, message.inferlet), now)
            if isinstance(message, Forward):
                command = ForwardCommand(peer_id, message, self._page_size)
            elif isinstance(message, StartPlan):
                command = self.plans.command(peer_id, message, self._page_size)
            elif isinstance(message, Verify):
                command = VerifyCommand(peer_id, message, self._page_size)
                if command.is_tree:
                    self._runner.require_trees()
            else:
                command = CopyCommand(peer_id, message, self._page_size)
        except BaseException as error:  # noqa: BLE001 - not well-formed, or a panic of a tokenizer: it fails alone
            self._fail_message(peer_id, message, error, answers)
            return
        if not self._scheduler.submit(command, now):
            self._answer_failed([command], _dependency_failed(), answers)
            return
        if isinstance(message, StartPlan) and isinstance(command, PlanCommand):
            self.plans.begin(command, message, answers)
        if isinstance(command, ForwardCommand) and not isinstance(message, CopyTokens) and message.adapter:
            self._attach_adapter(command, message.adapter, answers)

    def _attach_adapter(self, command: ForwardCommand, number: int, answers: Answers) -> None:
        try:
            command.adapter = self.adapters.find(command.lane, number)
        except Evicted as error:
            self._fail(command, error, answers)

    def _cancel(self, peer_id: str, message: CancelInferlet, answers: Answers) -> None:
        key = (peer_id, message.inferlet)
        self.plans.forget(self._scheduler.cancel(*key))
        self._lookups.cancel(*key)
        self._cohort.ended(key)
        self.adapters.drop(*key)
        if key in self._running:
            self._acks.append((key, message.ticket))
        else:
            answers.append((peer_id, Completed(message.ticket, None)))

    def drop_peer(self, peer_id: str) -> bool:
        """The peer is dead: drop all that it has queued.  True when the running step touches none of its pages, so
        that they may be fenced; until then, call again after each step."""
        self.plans.forget(self._scheduler.cancel(peer_id))
        self._lookups.cancel(peer_id)
        self.adapters.drop(peer_id)
        self._cohort.ended_all(lambda key: key[0] == peer_id)
        return not any(key[0] == peer_id for key in self._running)

    # --- steps -----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._lookups)

    def wait_s(self, now: float) -> float:
        """Seconds to wait for more commands before `step`, unless one comes first; 0: step now."""
        if self._scheduler.is_full or self._lookups:
            return 0.0
        return self._cohort.wait_s(now)

    def step(self, now: float) -> Answers:
        """One engine step: copies, then one ragged batch of forwards.  Nothing happens without work."""
        answers: Answers = []
        try:
            self._step(now, answers)
        except DeviceLost as error:
            self.lose(error, answers)
        return answers

    def lose(self, error: DeviceLost, answers: Answers) -> None:
        """The device is dead: everything that is queued or runs fails."""
        self.lost = error
        answers += self._lookups.fail_all(error)
        commands = self._scheduler.cancel_all()
        self.plans.forget(commands)
        self._answer_failed(commands, error, answers)
        self._answer_cancels(answers)

    def _step(self, now: float, answers: Answers) -> None:
        began = self._clock()
        plan = self._scheduler.next_step(now)
        self._lookups.answer(self._runner, answers)
        if not plan.copies and not plan.forwards:
            return
        self._running = dict.fromkeys([c.lane for c in plan.copies] + [chunk.command.lane for chunk in plan.forwards])
        self._copy(plan.copies, answers)
        self._forward(plan, answers)
        ended = self._clock()
        self._end_step(plan, began, ended, answers)

    def _copy(self, commands: Sequence[CopyCommand], answers: Answers) -> None:
        for group in independent_groups(commands):
            error = self._copied([copy for command in group for copy in command.copies])
            for command in group:
                alone = self._copied(command.copies) if error is not None and len(group) > 1 else error
                if alone is not None:
                    self._fail(command, alone, answers)
                elif not command.is_over:
                    answers.append((command.peer_id, Completed(command.ticket, None)))
                    self._scheduler.finish(command)

    def _copied(self, copies: Sequence[Any]) -> PierayError | None:
        try:
            self._runner.copy_tokens(copies)
        except DeviceLost:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever is thrown, the loop goes on
            return known(error)
        return None

    def _forward(self, plan: StepPlan, answers: Answers) -> None:
        """Compute and answer; a forward whose copy has failed is over already."""
        chunks, items, requests = [], [], []
        for chunk in plan.forwards:
            if chunk.command.is_over:
                continue
            try:
                item, asked = self._asked(chunk)
                items.append(item)
                requests.append(asked)
                chunks.append(chunk)
            except BaseException as error:  # noqa: BLE001 - not well-formed, or a panic of a grammar: it fails alone
                self._fail(chunk.command, _malformed(error), answers)
        for chunk, result in zip(chunks, self._computed(items, requests), strict=True):
            command = chunk.command
            if command.is_over:  # dropped while the step ran, or read what one before it has failed to write
                continue
            if isinstance(result, PierayError):
                self._fail(command, result, answers)
                continue
            if isinstance(command, PlanCommand):
                self.plans.stepped(command, result, answers)
                continue
            if isinstance(command, VerifyCommand):
                self._verify(command, chunk, result, answers)
                continue
            self._answer_outputs(chunk, result, answers)

    def _answer_outputs(self, chunk: Chunk, values: Sequence[Any], answers: Answers) -> None:
        """Answer what the values complete, and, behind the last chunk, the pass."""
        command, peer_id = chunk.command, chunk.command.peer_id
        for output, found in zip(chunk.outputs, values, strict=True):
            value = command.joined(output.ticket, found)
            if isinstance(value, PierayError):
                answers.append((peer_id, failed(output.ticket, value)))
            elif value is not None:
                answers.append((peer_id, Completed(output.ticket, self._convert.wire_value(value))))
        command.num_answered += len(chunk.outputs)
        if chunk.is_last:
            answers.append((peer_id, Completed(command.ticket, None)))
            self._scheduler.finish(command)

    def _asked(self, chunk: Chunk) -> tuple[ForwardItem, Sequence[Output]]:
        """What the runner is asked for a chunk."""
        command, start, num_tokens, outputs, _ = chunk
        convert = self._convert
        if isinstance(command, PlanCommand):
            return convert.plan_item(command, start, num_tokens), convert.plan_outputs(command, start, num_tokens)
        return convert.forward_item(command, start, num_tokens, self._page_size), outputs

    def _verify(self, command: VerifyCommand, chunk: Chunk, values: Sequence[Any], answers: Answers) -> None:
        """Note what was drawn; behind the last chunk, bring the accepted drafts into a row and answer."""
        error = command.take(chunk.outputs, values)
        if error is None and chunk.is_last:
            sampled, copies = command.outcome(self._page_size)
            error = self._copied(copies) if copies else None
            if error is None:
                answers.append((command.peer_id, Completed(command.ticket, sampled.tobytes())))
                self._scheduler.finish(command)
        if error is not None:
            self._fail(command, error, answers)

    def _computed(self, items: list[ForwardItem], requests: list[Sequence[Output]]) -> Sequence[StepResult]:
        if not items:
            return []
        try:
            return self._runner.step(items, requests)
        except DeviceLost:
            raise
        except BaseException as error:  # whatever is thrown, the loop goes on
            log.exception("a step of %d forwards failed", len(items))
            if len(items) == 1:
                return [known(error)]
        return [self._computed([i], [r])[0] for i, r in zip(items, requests, strict=True)]  # find the culprit

    def _end_step(self, plan: StepPlan, began: float, ended: float, answers: Answers) -> None:
        self._running = {}
        self._cohort.stepped(began, ended)
        for command in [*plan.copies, *(chunk.command for chunk in plan.forwards)]:
            if not command.is_over and not self._scheduler.is_busy(command.lane):
                self._cohort.answered(command.lane, ended)
        self._answer_cancels(answers)
        counts = self._counts
        counts["steps"] += 1
        counts["forwards"] += len(plan.forwards)
        counts["copies"] += len(plan.copies)
        counts["tokens"] += plan.num_tokens
        self._busy_s += ended - began
        self._learning = plan.work, began

    def sent(self) -> None:
        """The answers of the last step are on their way: what it has cost is known."""
        if self._costs is not None and self._learning is not None:
            work, began = self._learning
            work[Kind.STEP] = 1.0
            self._costs.learn(work, self._clock() - began)
            self._learning = None

    def _answer_cancels(self, answers: Answers) -> None:
        answers += [(key[0], Completed(ticket, None)) for key, ticket in self._acks]
        self._acks.clear()

    def stats(self) -> dict[str, Any]:
        """Totals since the start; `mean_batch` is forwards per step.  May be called from any thread."""
        counts = dict(self._counts)
        mean_batch = counts["forwards"] / counts["steps"] if counts["steps"] else 0.0
        return {**counts, "queued": self._scheduler.num_queued, "busy_s": self._busy_s, "mean_batch": mean_batch}

    # --- failures --------------------------------------------------------------------------------

    def _fail(self, command: Command, error: PierayError, answers: Answers) -> None:
        """The command fails, and with it those that read what it was to write."""
        if command.is_over:
            return
        doomed = self._scheduler.fail(command)
        self._answer_failed([command], error, answers)
        self._answer_failed(doomed, _dependency_failed(), answers)
        self.plans.forget([command, *doomed])

    def _answer_failed(self, commands: Iterable[Command], error: PierayError, answers: Answers) -> None:
        for command in commands:
            self._counts["failed"] += 1
            answers += [(command.peer_id, message) for message in command.failures(error)]

    def _fail_message(
        self, peer_id: str, message: Enqueued, error: BaseException, answers: Answers
    ) -> None:
        malformed = _malformed(error)
        tickets = [message.ticket]
        if isinstance(message, Forward) and isinstance(message.outputs, list):
            tickets += [output.ticket for output in message.outputs if isinstance(output, Message)]
        self._counts["failed"] += 1
        answers += [(peer_id, failed(ticket, malformed)) for ticket in tickets]


def _forwards(passes: DecodePasses) -> Iterator[Forward]:
    """The passes one by one."""
    ends = np.cumsum(np.frombuffer(passes.num_pages, "<u4")) * 4
    columns = (
        np.frombuffer(column, kind).tolist()
        for column, kind in (
            (passes.tickets, "<u8"), (passes.sample_tickets, "<u8"), (passes.queues, "<u4"), (passes.priorities, "<i4"),
            (passes.kv_lens, "<u4"), (passes.adapters, "<u4"), (passes.sampler_of, "<u4"),
        )
    )  # fmt: skip
    start = 0
    for row, (ticket, sample, queue, priority, kv_len, adapter, sampler) in enumerate(zip(*columns, strict=True)):
        end = int(ends[row])
        token, position = (column[4 * row : 4 * row + 4] for column in (passes.tokens, passes.positions))
        yield Forward(
            ticket, ticket >> 32, queue, priority, passes.pages[start:end], kv_len, token, position, b"",
            [Sample(0, passes.samplers[sampler], sample)], adapter,
        )  # fmt: skip
        start = end


def independent_groups(commands: Sequence[CopyCommand]) -> list[list[CopyCommand]]:
    """Runs of copies, in order, in which none touches what another of its run writes: each run is one device call."""
    groups: list[list[CopyCommand]] = []
    written: set[int] = set()
    for command in commands:
        if not groups or not written.isdisjoint(command.used_pages()):
            groups.append([])
            written = set()
        groups[-1].append(command)
        written.update(command.written_pages())
    return groups


def _dependency_failed() -> PierayError:
    return Cancelled("a command that was to write what this one reads has failed")


def _malformed(error: BaseException) -> PierayError:
    """The error of a command that is not even well-formed, or at which native code panics."""
    if isinstance(error, (ValueError, TypeError, LookupError)):
        return InvalidRequest(f"malformed command: {error}")
    return known(error)
