"""A real model: what rows say that are chosen for several steps is what they say alone."""

from __future__ import annotations

import numpy as np
import pytest

from pieray.assets import model_folder
from pieray.messages import GREEDY, OpenInferlet, PlanTokens, Sampler, StartPlan
from pieray.model_settings import ModelSettings
from pieray.models.runner import ModelRunner
from pieray.sched.core import BatcherCore
from pieray.sched.costs import CostModel
from pieray.sched.kept_rows import KeptRows
from pieray.urgency import command_priority

DRAWN = Sampler(temperature=1.0, top_p=0.9, seed=3)


def plan(inferlet: int, queue: int, priority: int) -> StartPlan:
    """Of 50 tokens, with pages and a prompt of its own."""
    place = 40 * (inferlet - 1) + queue
    pages = np.arange(8 * place, 8 * place + 8, dtype="<u4").tobytes()
    tokens = (5 + np.arange(10 + place % 7) * (place + 1) % 600).astype("<u4").tobytes()
    head = inferlet << 32 | queue, inferlet, queue, priority, pages, 0, tokens, 50
    return StartPlan(*head, DRAWN if place % 2 else GREEDY, b"", [], [], 0, 0, b"", b"", False, b"")


def texts(runner: ModelRunner, plans: list[StartPlan], tenants: dict[int, str]) -> dict[int, list[int]]:
    costs = CostModel(runner.config.vocab_size, runner.config.hidden_size)
    now = [0.0]

    def clock() -> float:
        now[0] += 2e-4
        return now[0]

    core = BatcherCore(runner, ModelSettings(), clock, costs=costs)
    core.submit("p", [OpenInferlet(inferlet, tenant) for inferlet, tenant in tenants.items()], clock())
    found: dict[int, list[int]] = {one.ticket: [] for one in plans}
    core.submit("p", plans, clock())
    while core.has_work:
        for _, message in core.step(clock()):
            if isinstance(message, PlanTokens):
                for row in message.rows():
                    found[row.ticket] += np.frombuffer(row.tokens, "<u4").tolist()
        core.sent()
    return found


def test_texts_are_those_of_each_alone_beside_a_crowd_a_higher_priority_and_another_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = ModelRunner.load(model_folder("pie-tiny"), device="cpu", dtype="float32", num_pages=1600)
    crowd = [plan(1, queue, 0) for queue in range(1, 21)]
    plans = [*crowd, plan(2, 1, command_priority(5, 0)), plan(3, 1, 0), plan(4, 1, 0)]
    taken: list[bool] = []
    take = KeptRows.take
    monkeypatch.setattr(KeptRows, "take", lambda *given: taken.append((found := take(*given)) is not None) or found)
    together = texts(runner, plans, {1: "one", 2: "one", 3: "one", 4: "other"})
    assert sum(taken) > 20
    for one in plans[::3] + plans[-3:]:
        assert together[one.ticket] == texts(runner, [one], {one.inferlet: "one"})[one.ticket]
        assert len(together[one.ticket]) == 50
