"""Traces in Chrome's format, as chrome://tracing and ui.perfetto.dev show them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

INFERLETS, STEPS = 1, 2
"""Chrome's processes: a lane for each inferlet, and one for the steps of the device."""


def chrome_trace(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of what `Engine.trace` gives: {"traceEvents": [...]}, times in microseconds since 1970."""
    events = [
        _named("process_name", INFERLETS, 0, "inferlets"),
        _named("process_name", STEPS, 0, "steps of the device"),
    ]
    for lane, trace in enumerate(traces, 1):
        events.append(_named("thread_name", INFERLETS, lane, f"{trace['name']} {trace['instance_id']}"))
        events += _inferlet(trace, lane)
    events += _steps(traces)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _inferlet(trace: Mapping[str, Any], lane: int) -> Iterator[dict[str, Any]]:
    launched, ran, ended = trace["launched_at"], trace["ran_at"], _end_of(trace)
    facts = {
        name: trace[name] for name in ("state", "error", "parent", "tenant", "user", "tokens_computed", "tokens_found")
    }
    begin = ran or ended
    yield _span("launch", "launch", launched, begin, lane, {"started_at": trace["started_at"]})
    if ran:
        yield _span(trace["name"], "run", ran, ended, lane, {**facts, "num_dropped": trace["num_dropped"]})
    for call in trace["calls"]:
        kind = "wait" if call["name"] in ("tickets.wait", "plans.read") else "call"
        told = {"error": call["error"]} if call["error"] else {}
        yield _span(call["name"], kind, call["began"], call["ended"], lane, told)
    for one in trace["answers"]:
        told = {"commands": one["commands"], "tokens": one["tokens"]}
        yield {
            "ph": "i",
            "s": "t",
            "name": "answer",
            "cat": "answer",
            "ts": _us(one["at"]),
            "pid": INFERLETS,
            "tid": lane,
            "args": told,
        }


def _end_of(trace: Mapping[str, Any]) -> float:
    """Unix time of its end, or of the last thing that is known of one that runs."""
    if trace["ended_at"] is not None:
        return float(trace["ended_at"])
    return float(max([trace["ran_at"] or trace["started_at"], *(call["ended"] for call in trace["calls"])]))


def _steps(traces: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each step once, with the inferlets of the traces that were in it."""
    known: dict[float, tuple[Mapping[str, Any], list[str]]] = {}
    for trace in traces:
        for step in trace["steps"]:
            known.setdefault(step["began"], (step, []))[1].append(trace["instance_id"])
    for began, (step, names) in sorted(known.items()):
        facts = {name: step[name] for name in ("passes", "tokens", "copies")}
        yield {**_span("step", "step", began, step["ended"], 1, {**facts, "inferlets": names}), "pid": STEPS}


def _span(name: str, kind: str, began: float, ended: float, lane: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    took = max(_us(ended) - _us(began), 0)
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "ts": _us(began),
        "dur": took,
        "pid": INFERLETS,
        "tid": lane,
        "args": dict(facts),
    }


def _named(what: str, process: int, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": process, "tid": lane, "args": {"name": name}}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
