"""From a message that asks for something in a step to the command that a batcher holds."""

from __future__ import annotations

from typing import TypeAlias

from pieray.messages import CopyTokens, Forward, Message, ReadPages, StartPlan, SwapIn, SwapOut, Verify, WritePages
from pieray.sched.commands import Command, CopyCommand, ForwardCommand, Move
from pieray.sched.device_steps import Runner
from pieray.sched.page_moves import ReadPagesCommand, WritePagesCommand
from pieray.sched.running_plans import RunningPlans
from pieray.sched.swap import SwapInCommand, SwapOutCommand
from pieray.sched.swap_slots import SwapSlots
from pieray.sched.verify import VerifyCommand

Enqueued: TypeAlias = Forward | CopyTokens | SwapOut | SwapIn | ReadPages | WritePages | Verify | StartPlan


class CommandFactory:
    """Knows what commands of each kind are made with."""

    def __init__(self, runner: Runner, page_size: int, plans: RunningPlans, swap: SwapSlots) -> None:
        self._runner = runner
        self._page_size = page_size
        self._plans = plans
        self._swap = swap

    def command(self, peer_id: str, message: Enqueued) -> Command:
        """The command that a message asks for.  Raises InvalidRequest, Unsupported, or what a malformed one raises."""
        if isinstance(message, Forward):
            return ForwardCommand(peer_id, message, self._page_size)
        if isinstance(message, StartPlan):
            return self._plans.command(peer_id, message, self._page_size)
        if isinstance(message, Verify):
            command = VerifyCommand(peer_id, message, self._page_size)
            if command.is_tree:
                self._runner.require_trees()
            return command
        return self._move(peer_id, message)

    def _move(self, peer_id: str, message: Move) -> Command:
        if isinstance(message, SwapOut):
            return SwapOutCommand(peer_id, message, self._swap)
        if isinstance(message, SwapIn):
            return SwapInCommand(peer_id, message, self._swap)
        if isinstance(message, ReadPages):
            return ReadPagesCommand(peer_id, message)
        if isinstance(message, WritePages):
            return WritePagesCommand(peer_id, message)
        return CopyCommand(peer_id, message, self._page_size)


def tickets_of(message: Enqueued) -> list[int]:
    """All that are to be answered of a message that may not be well-formed."""
    tickets = [message.ticket]
    if isinstance(message, Forward) and isinstance(message.outputs, list):
        tickets += [output.ticket for output in message.outputs if isinstance(output, Message)]
    return tickets
