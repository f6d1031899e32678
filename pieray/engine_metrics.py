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
    up = [row for row in status["actors"] if row["state"] == "up"]
    return [
        *_of_actors(status),
        *_of_pages(next((row for row in up if row["role"] == "resource-manager"), None)),
        *_of_steps(next((row for row in up if row["role"] == "batcher"), None)),
        *_of_inferlets([row for row in up if row["role"] == "inferlets"]),
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


def _of_pages(row: Mapping[str, Any] | None) -> Iterator[Metric]:
    if row is None:
        return
    yield _gauge("kv_pages", "KV pages, by state.", [({"state": state}, row[state]) for state in PAGES])
    yield _gauge("leases_waiting", "Requests for pages that wait.", [({}, row["waiting"])])
    yield _counter("leases_waited", "Requests for pages that had to wait.", [({}, row["waited"])])
    yield _counter("preemptions", "Times that programs gave up pages for others.", [({}, row["preempted"])])
    yield _counter("pages_found", "Pages found by their content, and not computed.", [({}, row["found"])])
    yield _gauge("exports", "Exports of KV pages.", [({}, row["exports"])])


def _of_steps(row: Mapping[str, Any] | None) -> Iterator[Metric]:
    if row is None:
        return
    yield _counter("steps", "Steps of the device.", [({}, row["steps"])])
    yield _counter("step_tokens", "Tokens that they have computed.", [({}, row["tokens"])])
    yield _counter("step_passes", "Passes in them.", [({}, row["forwards"])])
    yield _counter("device_busy_seconds", "What they took.", [({}, row["busy_s"])])
    yield _gauge("commands_queued", "Commands that wait for a step.", [({}, row["queued"])])
    swap = row["swap"]
    yield _gauge("swapped_pages", "Pages in host memory.", [({}, swap["used"])])
    moved = [({"direction": way}, swap[name]) for way, name in (("out", "swapped_out"), ("in", "swapped_in"))]
    yield _counter("swaps", "Pages moved to host memory, and back.", moved)


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
