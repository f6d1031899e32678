"""Traces: what a traced inferlet and its children call, wait for, and take part in; nothing of any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from programs import ECHO, GENERATE, program

from pieray.client.chrome_trace import INFERLETS, STEPS, chrome_trace
from pieray.client.connecting import connect_door
from pieray.errors import InvalidRequest, NotFound

TOKEN_BY_TOKEN = program(
    """
from inferlet import Context

async def main(prompt, count=4):
    async with Context() as ctx:
        ctx.append(prompt)
        for _ in range(count):
            await ctx.generate(1)
        return count
""",
    "token-by-token",
)
PARENT = replace(
    program(
        """
from inferlet import children

async def main():
    return await children.launch("text-completion", prompt="12+7=")
""",
        "parent",
    ),
    capabilities={"children": True},
)
LAST = 30.0


def ended(engine: Any, *launch: Any, **options: Any) -> str:
    process = engine.launch(*launch, **options)
    process.result(LAST)
    return str(process.id)


def test_a_traced_run_tells_calls_waits_answers_and_steps(engine: Any) -> None:
    (found,) = engine.trace(ended(engine, TOKEN_BY_TOKEN, {"prompt": "12+7="}, trace=True))
    assert found["state"] == "done"
    names = [call["name"] for call in found["calls"]]
    assert names.count("forward.forward") >= 4
    assert names.count("tickets.wait") >= 4
    times = [found["launched_at"], found["started_at"], found["ran_at"], *(call["began"] for call in found["calls"])]
    assert times[:3] == sorted(times[:3])
    for call in found["calls"]:
        assert found["ran_at"] - 0.05 <= call["began"] <= call["ended"] <= found["ended_at"] + 0.05
        assert call["error"] == ""
    assert len(found["steps"]) >= 4
    assert sum(step["tokens"] for step in found["steps"]) >= found["tokens_computed"] > 0
    assert all(found["ran_at"] < step["ended"] < found["ended_at"] + 0.05 for step in found["steps"])
    assert sum(one["commands"] for one in found["answers"]) >= 8
    assert found["num_dropped"] == 0


def test_a_plan_has_its_steps_and_tokens_and_few_calls(engine: Any) -> None:
    (found,) = engine.trace(ended(engine, GENERATE, {"prompt": "12+7=", "max_tokens": 40}, trace=True))
    assert len(found["steps"]) >= 40
    assert sum(one["tokens"] for one in found["answers"]) == 40


def test_children_are_of_the_trace_of_their_parent(engine: Any) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    parent, child = engine.trace(ended(engine, PARENT, trace=given))
    assert (parent["name"], child["name"]) == ("parent", "text-completion")
    assert child["parent"] == parent["instance_id"]
    assert {parent["traceparent"], child["traceparent"]} == {given}
    assert "children.launch" in [call["name"] for call in parent["calls"]]


def test_a_call_that_fails_has_its_code(engine: Any) -> None:
    source = "from inferlet import http\nasync def main(): await http.get('https://example.org')\n"
    process = engine.launch(program(source), trace=True)
    with pytest.raises(Exception, match="http"):
        process.result(LAST)
    (found,) = engine.trace(process.id)
    assert "denied" in [call["error"] for call in found["calls"]]
    assert found["state"] == "failed"


def test_what_is_not_traced_has_none(engine: Any) -> None:
    with pytest.raises(NotFound, match="is not traced"):
        engine.trace(ended(engine, "text-completion", {"prompt": "12+7="}))
    with pytest.raises(NotFound, match="no inferlet"):
        engine.trace("nothing")
    with pytest.raises(InvalidRequest, match="traceparent is 00-TRACE-SPAN-01"):
        engine.launch(ECHO, trace="00-x")


def test_it_runs_while_it_is_asked(engine: Any) -> None:
    process = engine.launch(ECHO, trace=True)
    process.send("one")
    assert next(iter(process)).text == "ONE"
    with connect_door(*engine.door()) as other:
        (found,) = other.trace(process.id)
    assert (found["state"], found["ended_at"]) == ("running", None)
    assert "session.receive" in [call["name"] for call in found["calls"]]
    process.kill()


def test_as_a_chrome_trace(engine: Any) -> None:
    traces = engine.trace(ended(engine, PARENT, trace=True))
    events = chrome_trace(traces)["traceEvents"]
    lanes = {event["args"]["name"].split()[0]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert lanes == {"parent": 1, "text-completion": 2}
    runs = {event["tid"]: event for event in events if event.get("cat") == "run"}
    for event in events:
        if event["ph"] == "X" and event["pid"] == INFERLETS and event["cat"] in ("call", "wait"):
            run = runs[event["tid"]]
            assert run["ts"] <= event["ts"] + 50_000
            assert event["ts"] + event["dur"] <= run["ts"] + run["dur"] + 50_000
    steps = [event for event in events if event["pid"] == STEPS and event["ph"] == "X"]
    assert steps
    assert {name for step in steps for name in step["args"]["inferlets"]} == {traces[1]["instance_id"]}
