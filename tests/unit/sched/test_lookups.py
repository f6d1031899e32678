"""EmbedLookups: nobody waits for a flood of another inferlet's."""

import numpy as np

from pieray.errors import DeviceLost
from pieray.messages import Completed, EmbedTokens, Failed
from pieray.sched.lookups import TOKENS_PER_STEP, EmbedLookups


class Runner:
    def embed(self, tokens):
        return np.zeros((len(tokens), 2), np.float32)


def request(ticket: int, inferlet: int, num_tokens: int) -> EmbedTokens:
    return EmbedTokens(ticket, inferlet, np.zeros(num_tokens, "<u4").tobytes())


def answered(lookups: EmbedLookups) -> list[int]:
    answers = []
    lookups.answer(Runner(), answers)
    assert all(isinstance(message, Completed) for _, message in answers)
    return [message.ticket for _, message in answers]


def test_inferlets_take_turns_and_each_has_its_answers_in_order():
    lookups = EmbedLookups()
    for ticket in range(10):
        lookups.add("p", request(ticket, 1, TOKENS_PER_STEP // 2))
    lookups.add("p", request(100, 2, 1))
    lookups.add("q", request(101, 1, 1))
    assert answered(lookups) == [0, 100, 101, 1]
    assert answered(lookups) == [2, 3]


def test_those_of_the_ended_are_dropped_and_those_of_a_dead_device_fail():
    lookups = EmbedLookups()
    for peer, inferlet in (("p", 1), ("p", 2), ("q", 1)):
        lookups.add(peer, request(inferlet, inferlet, 1))
    lookups.cancel("p", 1)
    lookups.cancel("q")
    assert answered(lookups) == [2]
    lookups.add("p", request(5, 1, 1))
    ((peer, message),) = lookups.fail_all(DeviceLost("gone"))
    assert (peer, message) == ("p", Failed(5, "device-lost", "gone"))
    assert not lookups
