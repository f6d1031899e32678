"""`/metrics`: vLLM's names where the meaning is the same, counted once a request."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}
MODEL = {"model_name": "pie-tiny", "engine": "0"}


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
    assert of("vllm:inter_token_latency_seconds_count") == 4
    assert of("vllm:request_queue_time_seconds_count") == 2
    assert of("vllm:request_inference_time_seconds_count") == 2
    assert of("vllm:request_prefill_time_seconds_count") == of("vllm:request_decode_time_seconds_count") == 1
    assert of("vllm:request_params_n_sum") == 2
    assert of("vllm:request_params_max_tokens_sum") == of("vllm:request_max_num_generation_tokens_sum") == 5
    parts = sum(of(f"vllm:request_{part}_time_seconds_sum") for part in ("queue", "inference"))
    assert parts == pytest.approx(of("vllm:e2e_request_latency_seconds_sum"))
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
    assert found["pieray:steps_total", frozenset({("group", "0")})] > 0
    sizes = frozenset({"engine": "0", "block_size": "16", "num_gpu_blocks": str(int(sum(pages.values())))}.items())
    assert found["vllm:cache_config_info", sizes] == 1


def of_inferlets(http: httpx.Client, name: str, **labels: str) -> float:
    """The sum over all actors."""
    wanted = set(labels.items())
    return sum(value for (known, found), value in scraped(http).items() if known == name and wanted <= found)


def test_inferlets_are_counted_by_program_and_state(http: httpx.Client, engine: Any) -> None:
    ended = {state: of_inferlets(http, "pieray:inferlets_ended_total", state=state) for state in ("done", "killed")}
    running = [engine.launch("chat") for _ in range(2)]
    assert of_inferlets(http, "pieray:inferlets", program="chat", state="running") == 2
    for process in running:
        process.kill()
    calls, tokens = of_inferlets(http, "pieray:host_calls_total"), of_inferlets(http, "pieray:inferlet_tokens_total")
    assert engine.launch("text-completion", {"prompt": "12+7="}).result()["text"] == "19"
    deadline = time.monotonic() + 10
    while of_inferlets(http, "pieray:inferlets_ended_total", state="done") == ended["done"]:
        assert time.monotonic() < deadline
    assert of_inferlets(http, "pieray:inferlets_ended_total", state="killed") == ended["killed"] + 2
    assert of_inferlets(http, "pieray:inferlets", program="chat") == 0
    assert of_inferlets(http, "pieray:host_calls_total") > calls + 5
    assert of_inferlets(http, "pieray:host_calls_total", interface="plans") > 0
    assert of_inferlets(http, "pieray:inferlet_tokens_total") > tokens
    assert of_inferlets(http, "pieray:guest_cpu_seconds_total") > 0


def test_a_client_that_leaves_is_an_abort(http: httpx.Client) -> None:
    def aborted() -> float:
        return scraped(http)["vllm:request_success_total", frozenset({**MODEL, "finished_reason": "abort"}.items())]

    before = aborted()
    long: Any = {**HELLO, "ignore_eos": True, "max_tokens": 900, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=long) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 10
    while aborted() == before:
        assert time.monotonic() < deadline
    assert aborted() == before + 1
