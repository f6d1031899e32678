"""What an engine tells of itself as metrics: for `/metrics` of a server, and for Ray's metrics agent.

Nothing is counted for them on a token's way, but for calls of handlers, of which each counts itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

PAGES = ("free", "leased", "cached", "quarantined")
Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric and its samples.  Counters' names have no `_total`; what has an actor's label begins anew with it."""

    name: str
    text: str
    is_counter: bool
    samples: list[tuple[Labels, float]]


def engine_metrics(status: Mapping[str, Any]) -> list[Metric]:
    """From what `Engine.status` tells; of actors that do not answer there is nothing."""
    return [
        *_of_actors(status),
        *_of_groups(_up(status["actors"], "batcher")),
        *_of_pages(_up(status["actors"], "resource-manager")),
        *_of_steps(_up(status["actors"], "batcher")),
        *_of_inferlets(_up(status["actors"], "inferlets")),
    ]


def _of_actors(status: Mapping[str, Any]) -> Iterator[Metric]:
    counts: dict[tuple[str, str], int] = {}
    for row in status["actors"]:
        where = row["role"], row["state"]
        counts[where] = counts.get(where, 0) + 1
    yield _gauge("actors", "Actors, by role and state.", _by(("role", "state"), counts))
    restarts = status["restarts"].items()
    yield _counter("actor_restarts", "Actors replaced, by what died.", [({"kind": k}, n) for k, n in restarts])
    admission = status["admission"]
    for name, text, found in (
        ("launches_waiting", "Launches that wait for a place, by tenant.", admission["waiting"]),
        ("launches_refused", "Launches that were refused a place, by tenant.", admission["refused"]),
    ):
        make = _gauge if name == "launches_waiting" else _counter
        yield make(name, text, [({"tenant": tenant}, count) for tenant, count in found.items()])


def _of_pages(rows: list[Mapping[str, Any]]) -> Iterator[Metric]:
    if not rows:
        return
    states = [({**_group(row), "state": state}, row[state]) for row in rows for state in PAGES]
    yield _gauge("kv_pages", "KV pages, by device group and state.", states)
    for make, name, key, text in (
        (_gauge, "leases_waiting", "waiting", "Requests for pages that wait."),
        (_counter, "leases_waited", "waited", "Requests for pages that had to wait."),
        (_counter, "preemptions", "preempted", "Times that programs gave up pages for others."),
        (_counter, "pages_found", "found", "Pages found by their content, and not computed."),
        (_gauge, "exports", "exports", "Exports of KV pages."),
    ):
        yield make(name, text, [(_group(row), row[key]) for row in rows])


def _of_groups(rows: list[Mapping[str, Any]]) -> Iterator[Metric]:
    samples = [({**_group(row), "model": str(row["model"])}, 1.0) for row in rows]
    if rows:
        yield _gauge("device_groups", "1 for each device group, with the model that it serves.", samples)


def _of_steps(rows: list[Mapping[str, Any]]) -> Iterator[Metric]:
    if not rows:
        return
    for make, name, key, text in (
        (_counter, "steps", "steps", "Steps of the device."),
        (_counter, "step_tokens", "tokens", "Tokens that they have computed."),
        (_counter, "step_passes", "forwards", "Passes in them."),
        (_counter, "device_busy_seconds", "busy_s", "What they took."),
        (_gauge, "commands_queued", "queued", "Commands that wait for a step."),
    ):
        yield make(name, text, [(_group(row), row[key]) for row in rows])
    yield _gauge("swapped_pages", "Pages in host memory.", [(_group(row), row["swap"]["used"]) for row in rows])
    moved = [
        ({**_group(row), "direction": way}, row["swap"][name])
        for row in rows
        for way, name in (("out", "swapped_out"), ("in", "swapped_in"))
    ]
    yield _counter("swaps", "Pages moved to host memory, and back.", moved)


def _group(row: Mapping[str, Any]) -> Labels:
    return {"group": str(row["group"])}


def pages_of_groups(actors: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the ResourceManagers that answer tell, of all device groups together; None: none does."""
    return _together(actors, "resource-manager")


def steps_of_groups(actors: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the Batchers that answer tell, of all device groups together; None: none does."""
    actors = list(actors)
    found = _together(actors, "batcher")
    if found is not None and found["num_groups"] > 1:
        rows = _up(actors, "batcher")
        found["mean_batch"] = sum(row["mean_batch"] * row["steps"] for row in rows) / max(found["steps"], 1)
    return found


def _together(actors: Iterable[Mapping[str, Any]], role: str) -> dict[str, Any] | None:
    rows = _up(actors, role)
    return {**_sum(rows), "num_groups": len(rows)} if rows else None


def _up(actors: Iterable[Mapping[str, Any]], role: str) -> list[Mapping[str, Any]]:
    return [row for row in actors if row["role"] == role and row["state"] == "up"]


def _sum(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers are added, what lies deeper too; of the rest, what the first says."""
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        if all(isinstance(value, (int, float)) for value in values):
            found[name] = sum(values)
        elif all(isinstance(value, Mapping) for value in values):
            found[name] = _sum(values)
        else:
            found[name] = values[0]
    return found


def _of_inferlets(rows: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    live: dict[tuple[str, str], int] = {}
    ended: list[tuple[Labels, float]] = []
    cpu: list[tuple[Labels, float]] = []
    tokens: list[tuple[Labels, float]] = []
    calls: list[tuple[Labels, float]] = []
    for row in rows:
        actor = f"{row['name']}/{row['incarnation']}"
        totals = row["totals"]
        for program, states in totals["live"].items():
            for state, count in states.items():
                live[program, state] = live.get((program, state), 0) + count
        ended += [({"actor": actor, "state": state}, count) for state, count in totals["ended"].items()]
        cpu.append(({"actor": actor}, totals["cpu_time_s"]))
        tokens += [({"actor": actor, "kind": kind}, totals[f"tokens_{kind}"]) for kind in ("computed", "found")]
        calls += [({"actor": actor, "interface": name}, count) for name, count in totals["calls"].items()]
    yield _gauge("inferlets", "Inferlets that run, by program and state.", _by(("program", "state"), live))
    yield _counter("inferlets_ended", "Inferlets that have ended, by how.", ended)
    yield _counter("guest_cpu_seconds", "What guests have computed themselves, calls of handlers included.", cpu)
    yield _counter("inferlet_tokens", "Tokens of inferlets, computed for them or found.", tokens)
    yield _counter("host_calls", "Calls of handlers, by interface.", calls)


def _gauge(name: str, text: str, samples: list[tuple[Labels, float]]) -> Metric:
    return Metric(f"pieray:{name}", text, False, samples)


def _counter(name: str, text: str, samples: list[tuple[Labels, float]]) -> Metric:
    return Metric(f"pieray:{name}", text, True, samples)


def _by(names: tuple[str, str], counts: Mapping[tuple[str, str], int]) -> list[tuple[Labels, float]]:
    return [(dict(zip(names, key, strict=True)), count) for key, count in counts.items()]
