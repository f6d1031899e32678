"""Prometheus metrics of the door: vLLM's names and buckets where the meaning is the same, and `pieray:` ones.

Counted once a request; nothing here is paid for a token.  What the engine tells is in `pieray.engine_metrics`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pieray.engine_metrics import engine_metrics, pages_of_groups

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
REASON, REASONS = "finished_reason", ("stop", "length", "abort")
"""vLLM's; a choice that ends with calls of tools has stopped."""
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
TOKENS = tuple(digit * 10**power for power in range(5) for digit in (1, 2, 5))


class Metrics:
    """What `/metrics` tells.  For one event loop."""

    def __init__(self, model: str) -> None:
        """`model`: the name of the default one; others are counted under theirs."""
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model, "engine": "0"}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, self._labels, registry=self._registry).labels(**self._labels)

        def counter(name: str, text: str) -> Counter:
            made = Counter(name, text, self._labels, registry=self._registry)
            made.labels(**self._labels)  # it is 0 before the first request
            return made

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(name, text, self._labels, buckets=buckets, registry=self._registry)
            made.labels(**self._labels)
            return made

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
        self._queue_s = histogram("vllm:request_queue_time_seconds", "Until the request was launched.", WHOLE_S)
        self._inference_s = histogram("vllm:request_inference_time_seconds", "From then to its end.", WHOLE_S)
        self._prefill_s = histogram("vllm:request_prefill_time_seconds", "Of streams, to the first piece.", WHOLE_S)
        self._decode_s = histogram("vllm:request_decode_time_seconds", "Of streams, from there to the end.", WHOLE_S)
        self._prompt_sizes = histogram("vllm:request_prompt_tokens", "Tokens of a request's prompts.", TOKENS)
        self._answer_sizes = histogram("vllm:request_generation_tokens", "Tokens of a request's choices.", TOKENS)
        self._longest = histogram(
            "vllm:request_max_num_generation_tokens", "Most tokens of one choice asked for.", TOKENS
        )
        self._most_tokens = histogram("vllm:request_params_max_tokens", "max_tokens, where it is given.", TOKENS)
        self._choices = histogram("vllm:request_params_n", "n: choices that were asked for.", CHOICES)
        self._intervals = _Weighted(
            "vllm:inter_token_latency_seconds", "Of streams, between tokens.", TOKEN_S, self._labels
        )
        self._registry.register(self._intervals)
        self._ended = Counter(
            "vllm:request_success", "Choices, by how they ended.", [*self._labels, REASON], registry=self._registry
        )
        for reason in REASONS:
            self._ended.labels(**self._labels, **{REASON: reason})
        self._launched = Counter("pieray:runs", "Inferlets launched over HTTP.", ["program"], registry=self._registry)
        self._answers = Counter("pieray:http_answers", "Answers, by status.", ["status"], registry=self._registry)
        self._engine = _EngineCollector(self._labels)
        self._registry.register(self._engine)

    def launched(self, program: str) -> None:
        self._launched.labels(program=program).inc()

    def answered(self, status: int) -> None:
        self._answers.labels(status=str(status)).inc()

    def ended(self, clock: Clock, result: Mapping[str, Any]) -> None:
        """A request to a served model has its answer."""
        usage, now, labels = result["usage"], time.perf_counter(), {**self._labels, "model_name": clock.model}

        def count(counter: Counter, value: float) -> None:
            counter.labels(**labels).inc(value)

        def observe(histogram: Histogram, value: float) -> None:
            histogram.labels(**labels).observe(value)

        prompt, generated = usage["prompt_tokens"], usage["completion_tokens"]
        count(self._prompt_tokens, prompt)
        count(self._generated_tokens, generated)
        count(self._queries, prompt)
        count(self._hits, usage.get("cached_tokens", 0))
        observe(self._prompt_sizes, prompt)
        observe(self._answer_sizes, generated)
        observe(self._whole_s, now - clock.began)
        launched = clock.launched or clock.began
        observe(self._queue_s, launched - clock.began)
        observe(self._inference_s, now - launched)
        observe(self._choices, clock.asked.get("n") or 1)
        if (most := clock.asked.get("max_tokens")) is not None:
            observe(self._most_tokens, most)
            observe(self._longest, most)
        if clock.first:
            observe(self._first_s, clock.first - clock.began)
            observe(self._prefill_s, clock.first - launched)
            observe(self._decode_s, now - clock.first)
            interval = (now - clock.first) / max(generated - 1, 1)
            observe(self._token_s, interval)
            self._intervals.observe(labels, interval, max(generated - 1, 0))
        for choice in result["choices"]:
            self._end(clock, "length" if choice["finish_reason"] == "length" else "stop")
        clock.has_ended = True

    def left(self, clock: Clock) -> None:
        """Nobody waits for a request to a served model any more; without an answer it was aborted."""
        if not clock.has_ended:
            clock.has_ended = True
            self._end(clock, "abort")

    def _end(self, clock: Clock, reason: str) -> None:
        self._ended.labels(**{**self._labels, "model_name": clock.model, REASON: reason}).inc()

    def exposition(self, status: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> bytes:
        """The page, with what `Engine.status` and `Engine.models` tell of the engine."""
        self._waiting.set(sum(status["admission"]["waiting"].values()))
        if (pages := pages_of_groups(status["actors"])) is not None:
            self._cache_usage.set(1 - (pages["free"] + pages["cached"]) / max(pages["total"], 1))
        self._engine.status, self._engine.models = status, models
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """What the engine told last."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.status: Mapping[str, Any] | None = None
        self.models: Sequence[Mapping[str, Any]] = ()
        self._labels = dict(labels)

    def collect(self) -> Iterator[Metric]:
        yield _family(
            "vllm:cache_config_info", "KV pages.", [(_sizes(one), 1.0) for one in self.models], is_counter=False
        )
        for found in engine_metrics(self.status) if self.status is not None else ():
            yield _family(found.name, found.text, found.samples, is_counter=found.is_counter)
            if found.name == "pieray:preemptions":
                samples = [(self._labels, sum(value for _, value in found.samples))]
                yield _family("vllm:num_preemptions", found.text, samples, is_counter=True)


def _sizes(facts: Mapping[str, Any]) -> dict[str, str]:
    return {
        "engine": "0",
        "block_size": str(facts["page_size"]),
        "num_gpu_blocks": str(facts["num_pages"] * facts["replicas"]),
    }


def _family(name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]], *, is_counter: bool) -> Metric:
    found = [(dict(labels), float(value)) for labels, value in samples]
    names = list(found[0][0]) if found else []
    family = (CounterMetricFamily if is_counter else GaugeMetricFamily)(name, text, labels=names)
    for labels, value in found:
        family.add_metric(list(labels.values()), value)
    return family


class _Weighted(Collector):
    """A histogram that is told how often a value was: prometheus_client's takes one observation at a time."""

    def __init__(self, name: str, text: str, buckets: tuple[float, ...], labels: Mapping[str, str]) -> None:
        """`labels`: their names; and values for which it is there from the start."""
        self._name, self._text, self._names = name, text, list(labels)
        self._bounds = buckets
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        self.observe(labels, 0.0, 0)

    def observe(self, labels: Mapping[str, str], value: float, times: int) -> None:
        key = tuple(labels.values())
        self._counts.setdefault(key, [0] * (len(self._bounds) + 1))[bisect_left(self._bounds, value)] += times
        self._sums[key] = self._sums.get(key, 0.0) + value * times

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._names)
        for key, counts in self._counts.items():
            total, buckets = 0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric(key, buckets, self._sums[key])
        yield family


class Clock:
    """Of one request: when it began, was launched and, of a stream, when its first piece went out; 0.0: not yet."""

    __slots__ = ("asked", "began", "first", "has_ended", "launched", "model")

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.launched = 0.0
        self.first = 0.0
        self.has_ended = False
        self.model = ""
        """The name that it was asked of."""
        self.asked: Mapping[str, Any] = {}
        """Arguments of the inferlet that serves it."""
