"""Who answers, who is suspect, who is lost: seconds of silence are counted, not read from a clock."""

from __future__ import annotations

from typing import Any

from pieray.actors.health import TICK_S, Health
from pieray.actors.members import INFERLETS, Answer, Member
from pieray.errors import ActorGone, EngineError, NoAnswer


class Ward:
    """Members whose answers a test sets: facts, an error, or None for silence."""

    def __init__(self) -> None:
        self.member = Member(INFERLETS, "pieray.inferlets.0", None)
        self.answer: Any = {"clock": 5.0, "busy_s": 0.0, "num_returned": 0, "pid": 7, "node_id": "n"}
        self.num_asked = 0
        self.health = Health(self._begin, suspect_s=3.0, replace_s=15.0, stuck_s=300.0)

    def _begin(self, _member: Member) -> Answer:
        self.num_asked += 1

        def wait(_timeout_s: float) -> Any:
            if self.answer is None:
                raise NoAnswer("")
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return wait

    def tick(self, elapsed_s: float = TICK_S) -> list[str]:
        self.health.ask([self.member])
        return [why for _, why in self.health.hear([self.member], elapsed_s)]


def test_silence_makes_a_suspect_then_a_loss_and_one_question_is_under_way() -> None:
    ward = Ward()
    assert ward.tick() == []
    assert ward.member.facts == {"pid": 7, "node_id": "n"}
    ward.answer = None
    states = []
    for _ in range(14):
        assert ward.tick() == []
        states.append(ward.member.is_suspect)
    assert states == [False] * 2 + [True] * 12
    assert ward.tick() == ["has not answered for 15 s: it is frozen or out of reach"]
    assert ward.num_asked == 2


def test_an_answer_ends_all_suspicion() -> None:
    ward = Ward()
    ward.tick()
    facts, ward.answer = ward.answer, None
    for _ in range(14):
        ward.tick()
    ward.answer = facts
    assert ward.tick() == []
    assert (ward.member.is_suspect, ward.member.silent_s) == (False, 0.0)


def test_a_controller_that_was_frozen_itself_accuses_nobody() -> None:
    ward = Ward()
    ward.tick()
    ward.answer = None
    assert ward.tick(elapsed_s=3600.0) == []
    assert not ward.member.is_suspect


def test_one_that_is_still_starting_is_not_missed() -> None:
    ward = Ward()
    ward.answer = None
    assert [ward.tick() for _ in range(100)] == [[]] * 100
    ward.member.endpoint = ("open",)
    assert [ward.tick() for _ in range(15)][-1] != []


def test_death_and_a_turn_without_end_are_losses() -> None:
    ward = Ward()
    ward.answer = {**ward.answer, "busy_s": 299.0}
    assert ward.tick() == []
    ward.answer = {**ward.answer, "busy_s": 301.0}
    assert ward.tick() == ["has been at one turn of its work for 301 s, turn_timeout_s is 300"]
    ward.answer = ActorGone("dead")
    assert ward.tick() == ["died"]


def test_an_error_in_place_of_an_answer_is_a_sign_of_life() -> None:
    ward = Ward()
    ward.tick()
    ward.answer = EngineError("a bug")
    for _ in range(20):
        assert ward.tick() == []
    assert not ward.member.is_suspect
