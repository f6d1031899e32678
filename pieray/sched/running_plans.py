"""The plans that run in a batcher: begun, changed and stopped by messages, answered after each step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pieray.arrays import F32, I64, U32, Bools
from pieray.concurrency.fair_pool import FairPool
from pieray.errors import InvalidRequest, PierayError, Unsupported
from pieray.messages import ExtendPlan, Message, PlanTokens, RunEnded, StartPlan, StopPlan
from pieray.models.detokenizer import PRIME_TOKENS
from pieray.sched.commands import Command
from pieray.sched.failures import known
from pieray.sched.plans import PlanCommand
from pieray.sched.table import RowGroup

if TYPE_CHECKING:
    from llguidance import LLExecutor

    from pieray.grammar.compiler import GrammarCompiler
    from pieray.grammar.matcher import Matcher
    from pieray.models.tokenizer import Tokenizer, TokenizerSpec
    from pieray.sched.scheduler import Scheduler

log = logging.getLogger(__name__)

COMPILERS = 2
"""Grammars of plans compiled at one time, off the step thread; of one tenant, one less."""
MAX_COMPILING = 8192
"""Plans of one tenant that wait for their grammars."""
COMPILE_WAIT_S = 120.0
"""For a thread to come free."""
CHEAP_TOKENS = 64
"""Taken in by a matcher on the step thread."""

Answers: TypeAlias = list[tuple[str, Message]]
Later: TypeAlias = Callable[[], Answers]
Over: TypeAlias = tuple[PlanCommand, PierayError | None]
Telling: TypeAlias = tuple[str, "slice | I64", bytes, bytes, U32, bool]
"""A peer, the places of its rows, their tickets, a 1 for each, what they count, whether they are scored."""


class RunningPlans:
    """Used by the step thread alone.  `call_later` takes what the step thread is to call when a grammar is compiled,
    from another thread; until somebody sets it, grammars compile at once."""

    def __init__(
        self, scheduler: Scheduler, fail: Callable[[Command, PierayError, Answers], None], spec: TokenizerSpec | None
    ) -> None:
        self.call_later: Callable[[Later], None] | None = None
        self.vocab_size = 0
        self._scheduler = scheduler
        self._fail = fail
        self._spec = spec
        self._tokenizer: Tokenizer | None = None
        self._compiler: GrammarCompiler | None = None
        self._executor: LLExecutor | None = None
        self._pool = FairPool("compiling grammars of plans", COMPILERS, max_waiting=MAX_COMPILING)
        self._plans: dict[tuple[str, int], PlanCommand] = {}  # by peer and ticket

    @property
    def num_running(self) -> int:
        return len(self._plans)

    # --- messages --------------------------------------------------------------------------------

    def command(self, peer_id: str, message: StartPlan, page_size: int) -> PlanCommand:
        """The run that a message asks for.  Raises InvalidRequest, Unsupported, or what a malformed one raises."""
        plan = PlanCommand(peer_id, message, page_size)
        if message.stop_texts:
            plan.stream = self._ready_tokenizer().stream()
            if not message.drawn:
                plan.stream.prime(np.frombuffer(message.tokens, "<u4")[-PRIME_TOKENS:].tolist())
            plan.replay(np.frombuffer(message.drawn, "<u4").tolist())
        if message.grammar:
            plan.is_waiting = True
        else:
            plan.look_ahead()
        return plan

    def begin(self, plan: PlanCommand, message: StartPlan, answers: Answers) -> None:
        """The scheduler has taken the run."""
        self._plans[plan.peer_id, plan.ticket] = plan
        if not message.grammar:
            return
        call_later, grammar = self.call_later, message.grammar
        if call_later is None or self._is_cheap(grammar):
            answers += self._compiled(plan, self._compile(grammar))
            return

        def work() -> None:
            if plan.is_over or plan.finish is not None:  # stopped before its turn: a guest may begin thousands
                return
            found = self._compile(grammar)
            call_later(lambda: self._compiled(plan, found))

        def give_up(error: PierayError) -> None:
            call_later(lambda: self._compiled(plan, error))

        try:
            compiling = self._pool.submit(
                work, tenant=str(grammar[3]), owner=f"{plan.peer_id}/{message.inferlet}", wait_s=COMPILE_WAIT_S
            )
        except PierayError as error:  # too many wait
            answers += self._compiled(plan, error)
            return
        compiling.add_done_callback(lambda done: give_up(failed) if (failed := _error_of(done)) is not None else None)

    def change(self, peer_id: str, message: ExtendPlan | StopPlan, answers: Answers) -> None:
        """More pages for a run, or its end; nothing if it is over, of which its inferlet will have heard."""
        plan = self._plans.get((peer_id, message.ticket))
        if plan is None:
            return
        if isinstance(message, StopPlan):
            if plan.row >= 0:
                self._scheduler.leave_rows([plan.row])
            plan.finish = ""
            self._settle(plan, plan.num_due, answers)
        else:
            self._scheduler.extend(plan, np.frombuffer(message.pages, "<u4"))

    def forget(self, commands: Iterable[Command]) -> None:
        """They have failed, or their inferlet is gone."""
        for command in commands:
            self._plans.pop((command.peer_id, command.ticket), None)

    # --- steps -----------------------------------------------------------------------------------

    def stepped(self, plan: PlanCommand, values: Sequence[Any], answers: Answers) -> None:
        """A step has run a part of the plan, which is no row; `values` are its draws."""
        num_due = plan.num_due
        kept: Sequence[int] = ()
        error = next((value for value in values if isinstance(value, PierayError)), None)
        if error is None:
            try:
                kept = plan.take([int(value[0][0]) if isinstance(value, tuple) else value for value in values])
            except BaseException as failure:  # noqa: BLE001 - also a panic of a matcher or tokenizer: it fails alone
                error = known(failure)
        if error is not None:
            self._scheduler.recount(plan, num_due)
            self._fail(plan, error, answers)
            return
        if kept:
            scores = [value[1][0] for value in values[: len(kept)]] if plan.is_scored else []
            logprobs = np.array(scores, "<f4").tobytes()
            answers.append((plan.peer_id, PlanTokens.of([plan.ticket], [kept], logprobs, [plan.counts])))
        self._settle(plan, num_due, answers)

    def rows_stepped(
        self, rows: RowGroup, tokens: I64, scores: F32, errors: dict[int, PierayError], answers: Answers
    ) -> list[Over]:
        """These rows have drawn tokens, with these scores if any is scored; those with an error have not.  Tell what
        was drawn; the runs that are over."""
        table, numbers = self._scheduler.table, rows.rows
        ends = table.advance(rows, tokens)
        failed = {place: errors[row] for place, row in enumerate(numbers.tolist()) if row in errors} if errors else {}
        if rows.hooked:
            plans = {place: self._plan_of(int(numbers[place])) for place in rows.hooked if place not in failed}
            self._look_at(plans, tokens, failed)
            over = [place for place, plan in plans.items() if plan.finish is not None]
            if over:
                ends = _with(ends, over, len(rows))
        if failed:
            ends = _with(ends, list(failed), len(rows))
            table.rows["kv_len"][numbers[list(failed)]] -= 1  # of what is not told of nobody knows that it is written
            is_told = np.ones(len(rows), bool)
            is_told[list(failed)] = False
            if is_told.any():
                self._tell(rows.part(is_told), tokens[is_told], scores[is_told] if len(scores) else scores, answers)
        else:
            self._tell(rows, tokens, scores, answers)
        if ends is None:
            return []
        return [(self._plan_of(int(numbers[place])), failed.get(place)) for place in np.flatnonzero(ends).tolist()]

    def end_rows(self, over: Sequence[Over], answers: Answers) -> None:
        """Runs that were rows end, or fail."""
        self._scheduler.leave_rows([plan.row for plan, _ in over])
        for plan, error in over:
            if error is not None:
                self._fail(plan, error, answers)
                continue
            if plan.finish is None:
                (token,) = plan.line
                plan.finish, plan.stopped_by = ("stop", token) if token in plan.stop_tokens else ("length", "")
            self._settle(plan, plan.num_due, answers)

    def _plan_of(self, row: int) -> PlanCommand:
        plan = self._scheduler.table.own[row].plan
        assert plan is not None, "rows of runs have their plans"
        return plan

    def _look_at(self, plans: dict[int, PlanCommand], tokens: I64, failed: dict[int, PierayError]) -> None:
        """Tokens into grammars, what they allow next, of all in one call, and tokens into texts.  Whatever is thrown, a
        panic of a matcher or tokenizer too, fails its run alone."""
        self._each(plans, PlanCommand.accept, tokens, failed)
        matchers = [plan.matcher for place, plan in plans.items() if plan.matcher is not None and place not in failed]
        if matchers:
            self._fill_masks(matchers)
        self._each(plans, PlanCommand.look_at, tokens, failed)

    def _each(
        self,
        plans: dict[int, PlanCommand],
        look: Callable[[PlanCommand, int], None],
        tokens: I64,
        failed: dict[int, PierayError],
    ) -> None:
        for place, plan in plans.items():
            if place not in failed:
                try:
                    look(plan, int(tokens[place]))
                except BaseException as failure:  # noqa: BLE001 - see above
                    failed[place] = known(failure)

    def _tell(self, rows: RowGroup, tokens: I64, scores: F32, answers: Answers) -> None:
        """One message to each peer for all that its runs have drawn, one more for those that are scored."""
        if rows.tellings is None:
            rows.tellings = self._tellings(rows)
        drawn = tokens.astype("<u4")
        for peer_id, where, tickets, ones, counts, is_scored in rows.tellings:
            counts[:, 0] += 1
            logprobs = scores[where].tobytes() if is_scored else b""
            answers.append((peer_id, PlanTokens(tickets, ones, drawn[where].tobytes(), logprobs, counts.tobytes())))

    def _tellings(self, rows: RowGroup) -> list[Telling]:
        """Whom to tell of which rows."""
        found = []
        tickets, num_steps = rows.records["ticket"], self._scheduler.table.rows["num_steps"][rows.where]
        is_scored = np.zeros(len(rows), bool)
        is_scored[rows.scored] = True
        for wanted, is_one in ((~is_scored, False), (is_scored, True)):
            places = np.flatnonzero(wanted)
            for peer_id, mine in self._scheduler.by_peer(rows.lanes[places]):
                one = places[mine]
                where = slice(None) if len(one) == len(rows) else one
                counts = np.zeros((len(one), 3), "<u4")
                counts[:, 0] = num_steps[one] - 1
                found.append((peer_id, where, tickets[one].tobytes(), b"\1" * len(one), counts, is_one))
        return found

    def _settle(self, plan: PlanCommand, num_due: int, answers: Answers) -> None:
        self._scheduler.drawn(plan, num_due)
        if plan.finish is not None:
            del self._plans[plan.peer_id, plan.ticket]
            answers.append((plan.peer_id, RunEnded(plan.ticket, plan.finish, plan.stopped_by, [])))

    # --- grammars --------------------------------------------------------------------------------

    def _is_cheap(self, grammar: Sequence[Any]) -> bool:
        """Whether the step thread itself may make the matcher: its grammar is there, and it has taken little in."""
        kind, text, consumed, tenant = grammar
        if self._compiler is None or len(consumed) > CHEAP_TOKENS * 4:
            return False
        return self._compiler.find(kind, text, tenant) is not None

    def _compile(self, grammar: Sequence[Any]) -> Matcher | PierayError:
        """A matcher that has taken the tokens given in; from any thread."""
        try:
            kind, text, consumed, tenant = grammar
            compiled = self._ready_compiler().compile(kind, text, tenant)
            return compiled.matcher(np.frombuffer(consumed, "<u4").tolist())
        except PierayError as error:
            return error
        except BaseException as error:  # also a panic of native code: else the plan would wait for ever
            log.exception("a grammar could not be compiled")
            return InvalidRequest(f"the grammar of this plan cannot be compiled: {error}")

    def _compiled(self, plan: PlanCommand, found: Matcher | PierayError) -> Answers:
        """The grammar is there: the plan may run."""
        answers: Answers = []
        if plan.is_over or plan.finish is not None:
            return answers
        plan.is_waiting = False
        num_due = plan.num_due
        if isinstance(found, PierayError):
            self._fail(plan, found, answers)
            return answers
        plan.matcher = found
        try:
            plan.look_ahead()
        except BaseException as error:  # noqa: BLE001 - as above
            self._fail(plan, known(error), answers)
        else:
            self._settle(plan, num_due, answers)
        return answers

    def _fill_masks(self, matchers: Sequence[Matcher]) -> None:
        from llguidance import LLExecutor

        from pieray.grammar.matcher import fill_masks

        if self._executor is None:
            self._executor = LLExecutor()
        fill_masks(matchers, self._executor)

    def _ready_compiler(self) -> GrammarCompiler:
        from pieray.grammar.compiler import GrammarCompiler

        if self._compiler is None:
            if self._spec is None:
                raise Unsupported("this batcher has no tokenizer, which grammars need")
            self._compiler = GrammarCompiler(self._spec, self.vocab_size)
        return self._compiler

    def _ready_tokenizer(self) -> Tokenizer:
        from pieray.models.tokenizer import Tokenizer

        if self._tokenizer is None:
            if self._spec is None:
                raise Unsupported("this batcher has no tokenizer, which stop texts need")
            self._tokenizer = Tokenizer(self._spec)
        return self._tokenizer

    def close(self) -> None:
        """Stop compiling; idempotent."""
        self._pool.close()


def _with(ends: Bools | None, places: list[int], size: int) -> Bools:
    """And these."""
    found = np.zeros(size, bool) if ends is None else ends
    found[places] = True
    return found


def _error_of(compiling: Future[None]) -> PierayError | None:
    """Why no thread has come to it, if none has."""
    error = None if compiling.cancelled() else compiling.exception()
    return error if isinstance(error, PierayError) else None
