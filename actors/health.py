"""Who is alive: every actor is asked for a sign of life each second, and says how long its work loops have been at it.

A process that does not answer at all is told from one that takes long: the question is answered by a thread of its own,
in each actor, while a step computes.  Silence is counted in the asker's own ticks, so that a Controller that was frozen
itself accuses nobody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from pieray.actors.members import Answer, Member
from pieray.errors import ActorGone, EngineError, NoAnswer, PierayError

log = logging.getLogger(__name__)

TICK_S = 1.0


class Health:
    """Looks after members; one thread calls `ask`, and about TICK_S later `hear`.

    Silent for `suspect_s`, a member is suspect: it is set aside until it answers.  After `replace_s` it is lost, and so
    is one whose work loop has been at one turn for `stuck_s`.
    """

    def __init__(
        self, begin: Callable[[Member], Answer], *, suspect_s: float, replace_s: float, stuck_s: float
    ) -> None:
        self._begin = begin
        self._suspect_s = suspect_s
        self._replace_s = replace_s
        self._stuck_s = stuck_s

    def ask(self, members: Iterable[Member]) -> None:
        """Ask those that have answered the last question."""
        for member in members:
            if member.pulse is None:
                member.asked_at = time.monotonic()
                try:
                    member.pulse = self._begin(member)
                except PierayError as error:
                    log.info("%s cannot be asked: %s", member.name, error)

    def hear(self, members: Iterable[Member], elapsed_s: float) -> list[tuple[Member, str]]:
        """Take what they answer, `elapsed_s` after `ask`; those that are lost, and why."""
        lost: list[tuple[Member, str]] = []
        for member in members:
            why = self._heard(member, min(elapsed_s, 2 * TICK_S))
            if why:
                lost.append((member, why))
        return lost

    def _heard(self, member: Member, elapsed_s: float) -> str:
        """Why the member is lost, or ""."""
        try:
            facts = member.pulse(0.0) if member.pulse is not None else None
        except ActorGone:
            return "died"
        except NoAnswer:
            facts = None
        except EngineError as error:  # it answers, though not what it should
            log.warning("%s fails to say how it is: %s", member.name, error)
            member.pulse = None
            return ""
        if facts is None:
            return self._silent(member, elapsed_s)
        member.pulse = None
        return self.answered(member, facts)

    def _silent(self, member: Member, elapsed_s: float) -> str:
        if not member.is_heard and not member.endpoint:
            return ""
        member.silent_s += elapsed_s
        if member.silent_s >= self._replace_s:
            return f"has not answered for {member.silent_s:.0f} s: it is frozen or out of reach"
        if member.silent_s >= self._suspect_s and not member.is_suspect:
            member.is_suspect = True
            log.warning("%s has not answered for %.1f s: it is set aside", member.describe(), member.silent_s)
        return ""

    def answered(self, member: Member, facts: dict[str, Any]) -> str:
        """It has said how it is; why it is lost all the same, or ""."""
        if member.is_suspect:
            log.warning("%s answers again, after %.1f s", member.describe(), member.silent_s)
        member.silent_s, member.is_suspect, member.is_heard = 0.0, False, True
        member.clock.update(facts["clock"])
        member.facts = {name: facts[name] for name in ("pid", "node_id")}
        member.returned(facts.get("num_returned", 0))
        member.launched.extend(facts.get("launched", ()))
        if tallies := facts.get("tallies"):
            member.tallies.append((member.asked_at, tallies))
        busy_s = facts["busy_s"]
        if busy_s >= self._stuck_s:
            return f"has been at one turn of its work for {busy_s:.0f} s, turn_timeout_s is {self._stuck_s:.0f}"
        return ""
