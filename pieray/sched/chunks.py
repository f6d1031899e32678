"""What of one forward goes into one step: tokens, and outputs of their rows, within so many tokens and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pieray.messages import Output, Sample
from pieray.sched.commands import ForwardCommand
from pieray.sched.costs import CostModel, Kind, Work, add_draw
from pieray.sched.plans import PlanCommand
from pieray.sched.table import RowGroup


class Chunk(NamedTuple):
    """Tokens `[start, start + num_tokens)` of a command, and those of its outputs that are answered with them.

    The outputs of one row may take several steps: its token, the last of each of these chunks, runs in all of them.
    """

    command: ForwardCommand
    start: int
    num_tokens: int
    outputs: Sequence[Output]
    is_last: bool


def whole(command: ForwardCommand, num_tokens: int) -> Chunk:
    """The next tokens, at most `num_tokens`, with all outputs of their rows; it counts as scheduled."""
    stop = min(command.num_done + num_tokens, command.num_tokens)
    last = command.num_asked
    while last < len(command.outputs) and command.outputs[last].row < stop:
        last += 1
    return _scheduled(command, stop, last, stop)


def cut(command: ForwardCommand, num_tokens: int, seconds: float, costs: CostModel) -> Chunk:
    """The next tokens and outputs that take at most `seconds`, at least one of either; they count as scheduled."""
    if command.program_work:
        num_tokens = min(num_tokens, max(int(min(seconds / program_seconds(command, 1, costs), num_tokens)), 1))
    if isinstance(command, PlanCommand):
        within = costs.tokens_within(seconds, command.kv_len + command.num_done, is_masked=command.is_masked)
        return whole(command, min(num_tokens, max(within, 1)))
    outputs = command.outputs
    start, most = command.num_done, min(command.num_done + num_tokens, command.num_tokens)
    stop, asked, left = start, command.num_asked, seconds - costs.seconds[Kind.ITEMS]
    while stop < most:
        row = outputs[asked].row if asked < len(outputs) else most  # the next that is asked for something
        goal = min(row + 1, most)
        within = costs.tokens_within(max(left, 0.0), command.kv_len + stop, is_masked=command.is_masked)
        step = min(goal - stop, max(within, 0 if stop > start else 1))
        left -= costs.tokens(step, command.kv_len + stop, is_masked=command.is_masked)
        stop += step
        if stop < goal or row >= most:  # no time is left, or no outputs
            break
        first = asked
        while asked < len(outputs) and outputs[asked].row == row:
            left -= output_seconds(command, outputs[asked], costs)
            if left < 0.0 and (asked > first or stop > start + 1):
                break
            asked += 1
        if asked == first:  # none of the row's outputs: its token can wait with them
            return _scheduled(command, stop - 1, asked, stop - 1)
        if asked < len(outputs) and outputs[asked].row == row:  # the others want this token again
            return _scheduled(command, stop, asked, stop - 1)
    return _scheduled(command, stop, asked, stop)


def _scheduled(command: ForwardCommand, stop: int, asked: int, num_done: int) -> Chunk:
    start, first = command.num_done, command.num_asked
    command.num_done, command.num_asked = num_done, asked
    outputs = command.all_outputs if asked - first == len(command.outputs) else command.outputs[first:asked]
    return Chunk(command, start, stop - start, outputs, num_done == command.num_tokens)


def add_chunk(work: Work, chunk: Chunk, costs: CostModel) -> float:
    """Count what a chunk is; the seconds that it will take."""
    command, start, num_tokens, outputs, _ = chunk
    context = command.kv_len + start
    square = num_tokens * (context + num_tokens)
    work[Kind.COMMANDS] = 1.0
    work[Kind.ITEMS] += 1
    work[Kind.TOKENS] += num_tokens
    work[Kind.ATTENTION] += square
    seconds = costs.seconds[Kind.ITEMS] + costs.tokens(num_tokens, context, is_masked=command.is_masked)
    if command.is_masked:
        work[Kind.MASK_BITS] += square
    if command.programs or command.draw_programs:
        operations = _program_operations(command, num_tokens, outputs)
        work[Kind.PROGRAMS] += operations
        seconds += operations * costs.seconds[Kind.PROGRAMS]
    if isinstance(command, PlanCommand):
        num_draws = start + num_tokens - max(command.num_known - 1, start)
        if num_draws > 0:
            add_draw(work, command.sampler, num_draws, is_masked=bool(command.masks))
            seconds += num_draws * costs.seconds[command.draw_kind]
            if command.masks:
                seconds += num_draws * costs.seconds[Kind.FILTERED]
        return seconds
    for output in outputs:
        costs.add_output(work, output)
        seconds += costs.output(output)
    return seconds


def _program_operations(command: ForwardCommand, num_tokens: int, outputs: Sequence[Output]) -> float:
    """Millions that tensor programs compute for a chunk, at most."""
    if isinstance(command, PlanCommand):
        return (num_tokens * command.program_work + command.draw_work) / 1e6
    return num_tokens * command.program_work / 1e6 + sum(_draw_operations(command, output) for output in outputs)


def _draw_operations(command: ForwardCommand, output: Output) -> float:
    """Millions that tensor programs compute for an output of a pass, at most."""
    if not command.draw_programs or not isinstance(output, Sample):
        return 0.0
    named = output.sampler.processor, output.sampler.program
    return sum(command.draw_programs[number].program.work for number in named if number) / 1e6


def program_seconds(command: ForwardCommand, num_tokens: int, costs: CostModel) -> float:
    """What the tensor programs inside of a pass take for so many tokens."""
    return num_tokens * command.program_work / 1e6 * costs.seconds[Kind.PROGRAMS]


def output_seconds(command: ForwardCommand, output: Output, costs: CostModel) -> float:
    """What an output of a pass takes, with the tensor programs that it is drawn through."""
    return costs.output(output) + _draw_operations(command, output) * costs.seconds[Kind.PROGRAMS]


def add_rows(work: Work, rows: RowGroup) -> None:
    """Count rows of the decode table."""
    count = len(rows)
    work[Kind.ITEMS] += count
    work[Kind.TOKENS] += count
    work[Kind.ATTENTION] += rows.num_slots
    work[Kind.DRAWS] += rows.num_drawn
    work[Kind.GREEDY] += count - rows.num_drawn
    work[Kind.FILTERED] += len(rows.special)
    work[Kind.PROGRAMS] += rows.program_work / 1e6


def decode_seconds(command: ForwardCommand, costs: CostModel) -> float:
    """What all that is left of a command takes, if it is a decode: about that, its outputs as they come first."""
    num_tokens = command.num_tokens - command.num_done
    seconds = costs.decode(num_tokens, command.kv_len + command.num_done, num_draws=0)
    seconds += program_seconds(command, num_tokens, costs)
    if isinstance(command, PlanCommand):
        seconds += command.draw_work / 1e6 * costs.seconds[Kind.PROGRAMS]
        return seconds + (1 + len(command.drafts)) * costs.seconds[command.draw_kind]
    return seconds + command.seconds_of_outputs(lambda output: output_seconds(command, output, costs))
