"""The engine's metrics as Ray's metrics agent tells them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import pieray

WAIT_S = 60.0


@pytest.fixture(scope="module")
def told(ray_cluster: None) -> Iterator[Any]:
    with pieray.start(namespace="tests-ray-metrics", ray_metrics_s=0.5) as engine:
        yield engine


def page() -> dict[str, list[tuple[dict[str, str], float]]]:
    import ray

    (node,) = ray.nodes()
    answer = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=30)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name.startswith("ray_pieray_"):
                found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def until(name: str, holds: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds(samples := page().get(name, [])):
        assert time.monotonic() < deadline, f"{name}: {samples}"
        time.sleep(0.5)


def test_rays_agent_tells_the_engines_metrics(told: Any) -> None:
    total = told.models()[0]["num_pages"]
    pages = {"free", "leased", "cached", "quarantined"}
    until("ray_pieray_kv_pages", lambda found: {labels["state"] for labels, _ in found} == pages)
    until("ray_pieray_kv_pages", lambda found: sum(value for _, value in found) == total)
    process = told.launch("chat")
    until("ray_pieray_inferlets", lambda found: [v for labels, v in found if labels["program"] == "chat"] == [1.0])
    process.kill()
    until("ray_pieray_inferlets", lambda found: [v for labels, v in found if labels["program"] == "chat"] == [0.0])
    steps = told.launch("text-completion", {"prompt": "12+7="}).result() and steps_of(told)
    until("ray_pieray_steps_total", lambda found: [value for _, value in found] == [steps])
    told.launch("text-completion", {"prompt": "12+7="}).result()
    until("ray_pieray_steps_total", lambda found: [value for _, value in found] == [steps_of(told)])


def steps_of(engine: Any) -> float:
    (batcher,) = (row for row in engine.status()["actors"] if row["role"] == "batcher")
    return float(batcher["steps"])
