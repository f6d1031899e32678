"""Prometheus metrics of the door: vLLM's names and buckets where the meaning is the same, and `pieray:` ones.

Counted once a request; nothing here is paid for a token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

FIRST_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)
TOKEN_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
WHOLE_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
TOKENS = tuple(digit * 10**power for power in range(5) for digit in (1, 2, 5))


class Metrics:
    """What `/metrics` tells.  For one event loop."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        labels = {"model_name": model}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, labels, registry=self._registry).labels(**labels)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, labels, registry=self._registry).labels(**labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=self._registry).labels(**labels)

        self.running = gauge("vllm:num_requests_running", "Requests that are being answered.")
        self._waiting = gauge("vllm:num_requests_waiting", "Launches that wait for a place.")
        self._cache_usage = gauge("vllm:kv_cache_usage_perc", "Part of the KV pages that programs hold; 1: all.")
        self._prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._generated_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self._queries = counter("vllm:prefix_cache_queries", "Tokens of prompts that were looked for.")
        self._hits = counter("vllm:prefix_cache_hits", "Those of them that had been computed before.")
        self._first_s = histogram("vllm:time_to_first_token_seconds", "Of streams, to their first piece.", FIRST_S)
        self._token_s = histogram(
            "vllm:request_time_per_output_token_seconds", "Of streams, per token after the first.", TOKEN_S
        )
        self._whole_s = histogram("vllm:e2e_request_latency_seconds", "Of requests that were answered.", WHOLE_S)
        self._prompt_sizes = histogram("vllm:request_prompt_tokens", "Tokens of a request's prompts.", TOKENS)
        self._answer_sizes = histogram("vllm:request_generation_tokens", "Tokens of a request's choices.", TOKENS)
        self._ended = Counter(
            "vllm:request_success",
            "Choices, by how they ended.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self._launched = Counter("pieray:runs", "Inferlets launched over HTTP.", ["program"], registry=self._registry)
        self._answers = Counter("pieray:http_answers", "Answers, by status.", ["status"], registry=self._registry)
        self._pages = Gauge("pieray:kv_pages", "KV pages, by state.", ["state"], registry=self._registry)
        self._live = Gauge("pieray:inferlets_live", "Inferlets that run on the engine.", registry=self._registry)
        self._restarts = Gauge(
            "pieray:actor_restarts", "Actors replaced since the engine is up.", registry=self._registry
        )
        self._steps = Gauge("pieray:steps", "Steps of the batcher since it is up.", registry=self._registry)
        self._model = model

    def launched(self, program: str) -> None:
        self._launched.labels(program=program).inc()

    def answered(self, status: int) -> None:
        self._answers.labels(status=str(status)).inc()

    def ended(self, clock: Clock, result: Mapping[str, Any]) -> None:
        """A request of the served model has its answer."""
        usage, now = result["usage"], time.perf_counter()
        prompt, generated = usage["prompt_tokens"], usage["completion_tokens"]
        self._prompt_tokens.inc(prompt)
        self._generated_tokens.inc(generated)
        self._queries.inc(prompt)
        self._hits.inc(usage.get("cached_tokens", 0))
        self._prompt_sizes.observe(prompt)
        self._answer_sizes.observe(generated)
        self._whole_s.observe(now - clock.began)
        if clock.first:
            self._first_s.observe(clock.first - clock.began)
            self._token_s.observe((now - clock.first) / max(generated - 1, 1))
        for choice in result["choices"]:
            self._ended.labels(model_name=self._model, finished_reason=choice["finish_reason"]).inc()

    def exposition(self, status: Mapping[str, Any]) -> bytes:
        """The page, with what `Engine.status` tells of the engine."""
        self._waiting.set(sum(status["admission"]["waiting"].values()))
        self._restarts.set(status["num_restarts"])
        live = 0
        for actor in status["actors"]:
            if actor["state"] != "up":
                continue
            if actor["role"] == "resource-manager":
                for state in ("free", "leased", "cached", "quarantined"):
                    self._pages.labels(state=state).set(actor[state])
                self._cache_usage.set(1 - (actor["free"] + actor["cached"]) / max(actor["total"], 1))
            elif actor["role"] == "batcher":
                self._steps.set(actor["steps"])
            live += actor.get("num_live", 0)
        self._live.set(live)
        return generate_latest(self._registry)


class Clock:
    """Of one request: when it began and, of a stream, when its first piece went out."""

    __slots__ = ("began", "first")

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.first = 0.0
