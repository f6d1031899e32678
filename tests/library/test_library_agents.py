"""Agents on held-out questions of the embedded model's tasks, through real tools, and methods that answer twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library import Reference, questions, run_all, run_one, total
from programs import program

import pieray

INFERLETS = Path(__file__).resolve().parents[2] / "inferlets"


def held(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with one and with two hops, half each: question, ages that the tool knows, answer."""
    items = [item for task in ("react", "react2") for _, _, item in questions(task, n, seed)]
    asked = (item.segments[0].text.removeprefix("<|user|>").partition(" Use tools.")[0] for item in items)
    return [
        {"question": question, "ages": dict(item.ages), "answer": item.answer}
        for question, item in zip(asked, items, strict=True)
    ]


@pytest.mark.parametrize("agent", ["agent-react", "agent-codeact", "async-tools"])
def test_an_agent_answers_held_out_questions_with_real_tools(engine: Any, agent: str) -> None:
    items = held(5)
    more = {"tool_time_s": 0.05} if agent == "async-tools" else {}
    inputs = [{"question": one["question"], "ages": one["ages"], **more} for one in items]
    found = run_all(engine, agent, inputs)
    right = sum(one["answer"] == item["answer"] for one, item in zip(found, items, strict=True))
    assert right >= len(items) - 1, [(one["answer"], item["answer"]) for one, item in zip(found, items, strict=True)]


def test_tools_that_need_nothing_of_each_other_run_at_the_same_time(engine: Any) -> None:
    items, took = held(3)[3:], 0.5
    inputs = [{"question": one["question"], "ages": one["ages"], "tool_time_s": took} for one in items]
    for one, item in zip(run_all(engine, "async-tools", inputs), items, strict=True):
        assert one["answer"] == item["answer"]
        assert one["num_calls"] == 3
        assert one["num_waits"] == 2, "the two look-ups together, and the calculator"
        assert 2 * took <= one["seconds"] < 3 * took, one["seconds"]


def test_code_that_loops_or_fails_ends_its_sandbox_alone(engine: Any) -> None:
    source = (INFERLETS / "agent-codeact" / "main.py").read_text()
    source += '\nasync def main(codes):\n    return [await execute(code, {"Kemi": 9}, 0.5) for code in codes]\n'
    codes = ["calc(lookup(Kemi)+80)", "9**9**9**9", "1/0", "open(Kemi)", "lookup(Nobody)"]
    sandboxed = pieray.ProgramSource("codeact", "codeact.py", source=source, capabilities={"children": True})
    observed = run_one(engine, sandboxed, codes=codes)
    assert observed[0] == "89"
    assert all(text.startswith("error: ") for text in observed[1:]), observed
    assert "cpu_time_s" in observed[1]
    assert "ZeroDivisionError" in observed[2]


def test_a_swarm_answers_through_agents_that_own_the_tools(engine: Any) -> None:
    items = held(3)
    ages = {name: age for one in items for name, age in one["ages"].items()}
    found = run_one(engine, "agent-swarm", questions=[one["question"] for one in items], ages=ages)
    assert found["answers"] == {one["question"]: one["answer"] for one in items}
    assert found["served"] == {"calc": 6, "lookup": 6}


@pytest.mark.parametrize(
    ("method", "first"), [("reflexion", "trials"), ("self-refine", "drafts"), ("chain-of-verification", "draft")]
)
def test_a_second_look_makes_answers_right(engine: Any, method: str, first: str) -> None:
    asked = [question for question, _, _ in questions("add3_direct", 24)]
    found = run_all(engine, method, [{"question": question} for question in asked])
    drafts = [one[first] if isinstance(one[first], str) else one[first][0] for one in found]
    before = sum(draft == total(question) for draft, question in zip(drafts, asked, strict=True))
    after = sum(one["answer"] == total(question) for one, question in zip(found, asked, strict=True))
    assert after >= before + 3, f"{before} right at first, {after} in the end, of {len(asked)}"
    assert after >= 21, (before, after)
    plain = run_all(engine, "text-completion", [{"prompt": question, "chat": True} for question in asked])
    assert drafts == [one["text"].strip() for one in plain], "the first answer is the model's own"


def test_reflexion_stops_when_the_evaluator_is_content(engine: Any) -> None:
    found = run_one(engine, "reflexion", question="12+7=?")
    assert (found["is_right"], found["trials"], found["memory"]) == (True, ["19"], [])


WORKER = """
async def main(attempt, fails, loops=False):
    while loops and attempt < fails: pass
    if attempt < fails:
        raise ValueError(f"attempt {attempt}")
    return attempt
"""


def test_a_supervisor_launches_failed_children_again_each_for_itself(engine: Any) -> None:
    jobs = [{"fails": 0}, {"fails": 2}, {"fails": 9}, {"fails": 1, "loops": True}]
    found = run_one(engine, "supervisor", jobs=jobs, source=WORKER, max_restarts=3, limits={"cpu_time_s": 0.5})
    assert found["results"] == [0, 2, None, 1]
    assert found["restarts"] == [0, 2, 4, 1]
    assert found["failures"][1] == ["ValueError: attempt 0", "ValueError: attempt 1"]
    assert "cpu_time_s" in found["failures"][3][0]


def test_rollouts_have_what_a_trainer_needs(engine: Any, reference: Reference) -> None:
    tasks = [["What is 12 plus 7?", "19"], ["Compute 6 times 8.", "49"]]  # the second answer is wrong on purpose
    groups = run_one(engine, "rl-rollouts", tasks=tasks, n=4, temperature=1.0)
    assert [group["question"] for group in groups] == [task[0] for task in tasks]
    for group in groups:
        rewards = [one["reward"] for one in group["rollouts"]]
        for one in group["rollouts"]:
            tokens, mask = one["tokens"], np.array(one["mask"])
            assert len(tokens) == len(mask) == len(one["logprobs"])
            rows = reference.log_probs(group["prompt"] + tokens)[len(group["prompt"]) - 1 : -1]
            expected = rows[np.arange(len(tokens)), tokens] * mask
            np.testing.assert_allclose(one["logprobs"], expected, atol=2e-3)
            told = reference.decode([token for token, own in zip(tokens, mask, strict=True) if not own])
            assert told.strip() in ("19", "48", "error")
        deviation = np.std(rewards)
        expected = (np.array(rewards) - np.mean(rewards)) / deviation if deviation else np.zeros(4)
        np.testing.assert_allclose(group["advantages"], expected, atol=1e-6)
    assert sum(one["reward"] for one in groups[0]["rollouts"]) >= 3
    assert sum(one["reward"] for one in groups[1]["rollouts"]) == 0


CHAT = program(
    """
from inferlet import Context

async def main(messages):
    async with Context() as ctx:
        return [await ctx.user(message).collect_text(64) for message in messages]
""",
    "talk",
)

DROP = program("from inferlet import Context\n\nasync def main(name):\n    await Context.delete(name)\n", "drop")


def test_a_session_goes_on_in_later_runs_on_its_kv_or_its_words(engine: Any) -> None:
    messages = ["12+7=? Think step by step.", "Repeat: veki blue red", "25+45=? Think step by step."]
    expected = run_one(engine, CHAT, messages=messages)
    runs = []
    for number, message in enumerate(messages):
        if number == 2:
            run_one(engine, DROP, name="persistent-session/library")
        runs.append(run_one(engine, "persistent-session", thread="library", message=message, ttl=60))
    run_one(engine, DROP, name="persistent-session/library")
    assert [one["reply"] for one in runs] == expected
    assert [one["is_warm"] for one in runs] == [False, True, False]
    assert [one["num_turns"] for one in runs] == [1, 2, 3]
    forget = program(
        "from inferlet import store\n\nasync def main():\n    await store.delete('persistent-session/library')\n"
    )
    engine.launch(forget, capabilities={"store": True}).result(timeout=60)
