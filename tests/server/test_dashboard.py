"""docs/grafana.json shows what a server tells: each metric and label that it asks for is in a scrape of a live one."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = json.loads((Path(__file__).resolve().parents[2] / "docs" / "grafana.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel.get("targets", ())]
HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}
OF_VLLM = [
    "vllm:cache_config_info",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prompt_tokens_total",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_inference_time_seconds_sum",
    "vllm:request_max_num_generation_tokens_sum",
    "vllm:request_params_max_tokens_bucket",
    "vllm:request_params_n_bucket",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_success_total",
    "vllm:request_time_per_output_token_seconds_bucket",
    "vllm:time_to_first_token_seconds_bucket",
]
"""What the dashboards in vLLM's examples ask for of a model with text alone."""


@pytest.fixture(scope="module")
def scraped(door: str) -> dict[str, set[str]]:
    """Names of the metrics of a server that has answered, with the labels of each."""
    with httpx.Client(base_url=door, timeout=30) as http:
        for more in ({}, {"stream": True, "max_tokens": 5}):
            assert http.post("/v1/chat/completions", json={**HELLO, **more}).status_code == 200
        run = http.post("/v1/inferlets/chat/runs", json={"wait": False}).json()["id"]
        text = http.get("/metrics").text
        assert http.delete(f"/v1/runs/{run}").status_code == 200
    found: dict[str, set[str]] = defaultdict(set)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] |= set(sample.labels)
    return found


def names(query: str) -> list[str]:
    return re.findall(r"\b(?:vllm|pieray):\w+", query)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_what_there_is(scraped: dict[str, set[str]], query: str) -> None:
    asked = names(query)
    assert asked
    assert [name for name in asked if name not in scraped] == []
    labels = set(re.findall(r"(\w+)=~?\"", query))
    for listed in re.findall(r"by \(([^)]*)\)", query):
        labels |= {one.strip() for one in listed.split(",")}
    for label in labels:
        assert all(label in scraped[name] for name in asked), label
    assert query.count("(") == query.count(")")
    for name in asked:  # a total is of use as a rate alone
        assert not name.endswith(("_total", "_bucket", "_sum", "_count")) or "rate(" in query or "increase(" in query


def test_what_legends_name_is_grouped_by() -> None:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in target["expr"], target


def test_vllms_dashboards_find_their_metrics(scraped: dict[str, set[str]]) -> None:
    assert [name for name in OF_VLLM if name not in scraped] == []
    of_model = [name for name in OF_VLLM if name != "vllm:cache_config_info"]
    assert [name for name in of_model if not {"model_name", "engine"} <= scraped[name]] == []


def test_it_is_a_dashboard() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells
        assert max(x for x, _ in cells) < 24
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(QUERIES))) - {"__rate_interval"}
    assert used <= variables
