"""The engine's metrics for Ray's metrics agent, which tells them to Prometheus beside Ray's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

from pieray.engine_metrics import Metric, engine_metrics

log = logging.getLogger(__name__)


class RayMetrics:
    """Gauges and counters of Ray, which are told what an engine's status says.  For one thread.

    Names are those of `/metrics` with `_` for `:`, behind Ray's prefix: `ray_pieray_kv_pages`.
    """

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge] = {}
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}
        """Of counters, what Ray has been told so far: it takes what is new.  Of gauges, what it has last."""

    def tell(self, status: Mapping[str, Any]) -> None:
        gone = {key for key, value in self._told.items() if value and isinstance(self._made[key[0]], Gauge)}
        for metric in engine_metrics(status):
            for labels, value in metric.samples:
                self._tell(metric, labels, float(value))
                gone.discard((metric.name, tuple(labels.values())))
        for name, values in gone:  # of a program, say, that runs no more: Ray would tell its last for ever
            self._told[name, values] = 0.0
            self._made[name].set(0.0, tags=dict(zip(self._made[name].info["tag_keys"], values, strict=True)))

    def _tell(self, metric: Metric, labels: dict[str, str], value: float) -> None:
        made = self._made.get(metric.name)
        if made is None:
            kind = Counter if metric.is_counter else Gauge
            made = kind(metric.name.replace(":", "_"), description=metric.text, tag_keys=tuple(labels))
            self._made[metric.name] = made
        key = metric.name, tuple(labels.values())
        if isinstance(made, Gauge):
            self._told[key] = value
            made.set(value, tags=labels)
            return
        grown = value - self._told.get(key, 0.0)
        self._told[key] = value
        if grown < 0:  # what counts has begun anew
            grown = value
        if grown > 0:
            made.inc(grown, tags=labels)


def tell_ray(every_s: float, status: Callable[[], Mapping[str, Any]]) -> None:
    """Tell Ray's agent what `status` says, so often, on a thread of its own, for as long as the process lives."""
    metrics, never = RayMetrics(), threading.Event()

    def loop() -> None:
        while not never.wait(every_s):
            try:
                metrics.tell(status())
            except Exception:  # the engine goes on without
                log.exception("Ray's metrics agent is not told")

    threading.Thread(target=loop, name="pieray-ray-metrics", daemon=True).start()
