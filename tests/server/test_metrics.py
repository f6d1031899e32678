"""`/metrics`: vLLM's names where the meaning is the same, counted once a request."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}
MODEL = {"model_name": "pie-tiny"}


@pytest.fixture
def http(door: str, engine: Any) -> Any:
    with httpx.Client(base_url=door, timeout=30) as client:
        yield client


def scraped(http: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_and_tokens_are_counted(http: httpx.Client) -> None:
    def of(name: str, **labels: str) -> float:
        key = name, frozenset({**MODEL, **labels}.items())
        return after.get(key, 0.0) - before.get(key, 0.0)

    before = scraped(http)
    assert http.post("/v1/chat/completions", json=HELLO).status_code == 200
    assert http.post("/v1/chat/completions", json={**HELLO, "stream": True, "max_tokens": 5}).status_code == 200
    assert http.post("/v1/chat/completions", json={"n": 0}).status_code == 400
    after = scraped(http)
    assert of("vllm:prompt_tokens_total") == 26
    assert of("vllm:generation_tokens_total") == 27
    assert of("vllm:request_success_total", finished_reason="stop") == 1
    assert of("vllm:request_success_total", finished_reason="length") == 1
    assert of("vllm:e2e_request_latency_seconds_count") == 2
    assert of("vllm:time_to_first_token_seconds_count") == 1
    assert of("vllm:request_time_per_output_token_seconds_count") == 1
    assert of("vllm:request_prompt_tokens_sum") == 26
    assert after["vllm:num_requests_running", frozenset(MODEL.items())] == 0
    refused = "pieray:http_answers_total", frozenset({("status", "400")})
    assert after[refused] - before.get(refused, 0) == 1
    runs = "pieray:runs_total", frozenset({("program", "openai-generate")})
    assert after[runs] - before.get(runs, 0) == 2


def test_the_engine_is_told_too(http: httpx.Client) -> None:
    found = scraped(http)
    pages = {dict(labels)["state"]: value for (name, labels), value in found.items() if name == "pieray:kv_pages"}
    assert pages["free"] > 0
    assert pages.keys() == {"free", "leased", "cached", "quarantined"}
    assert 0 <= found["vllm:kv_cache_usage_perc", frozenset(MODEL.items())] <= 1
    assert found["vllm:num_requests_waiting", frozenset(MODEL.items())] == 0
    assert found["pieray:steps", frozenset()] > 0
