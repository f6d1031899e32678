"""OpenTelemetry: a span for each request, and below it what the run that it has launched did, sent over OTLP.

Nothing is imported, wrapped or noted where no collector is named.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import pieray
from pieray.client.engine import Engine
from pieray.concurrency.off_loop import off_loop
from pieray.errors import PierayError
from pieray.server.guard import RUN, TRACE

log = logging.getLogger(__name__)

QUEUE = 1 << 16
"""Spans that wait to be sent; those beyond it are dropped."""
MOST_OF_A_KIND = 2000
"""Calls, and steps, of one inferlet that are told: the first ones."""
FOLLOW_S = 600.0
"""A run that has not ended so long after its request is told as it stands."""
LEAST_WAIT_S, MOST_WAIT_S = 0.05, 30.0
"""Between two looks whether a run has ended."""
CLOSE_S = 5.0
LAST_S = 2.0
FACTS = ("tenant", "user", "state", "tokens_computed", "tokens_found", "cpu_time_s", "num_dropped")


class Telemetry:
    """Traces requests, as many as `share` says, and those that are part of a trace that is sampled."""

    def __init__(self, url: str, share: float = 1.0) -> None:
        """`url`: of an OTLP collector, such as http://localhost:4318; traces go to its /v1/traces."""
        resource = Resource.create({"service.name": "pieray", "service.version": pieray.__version__})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(share)))
        exporter = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=CLOSE_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE))
        self._tracer = self._provider.get_tracer("pieray")
        self._propagator = TraceContextTextMapPropagator()
        self._following: set[asyncio.Task[None]] = set()

    def around(self, app: ASGIApp, engine: Engine) -> ASGIApp:
        """The application, each request of which is a span."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            given = self._propagator.extract(dict(Headers(scope=scope)))
            method, path = scope["method"], scope["path"][:200]
            facts = {"http.request.method": method, "url.path": path}
            span = self._tracer.start_span(f"{method} {path}", given, SpanKind.SERVER, facts)
            if not span.is_recording():
                await app(scope, receive, send)
                return
            scope[TRACE] = self._traceparent(span)
            run = ""
            is_first = True

            async def sending(message: Message) -> None:
                nonlocal run, is_first
                if message["type"] == "http.response.start":
                    run = Headers(raw=message["headers"]).get(RUN, "")
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                elif is_first:
                    is_first = False
                    span.add_event("first piece")
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                if run:
                    span.set_attribute("pieray.run", run)
                    self._follow(engine, run, otel.set_span_in_context(span))
                span.end()

        return traced

    def _traceparent(self, span: Span) -> str:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, otel.set_span_in_context(span))
        return carrier["traceparent"]

    def _follow(self, engine: Engine, run: str, parent: Context) -> None:
        task = asyncio.ensure_future(self._tell_run(engine, run, parent))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _tell_run(self, engine: Engine, run: str, parent: Context) -> None:
        """What a run has done, once it has ended."""
        deadline, wait_s = time.monotonic() + FOLLOW_S, LEAST_WAIT_S
        try:
            while True:
                traces = await off_loop(engine.trace, run)
                if all(one["ended_at"] is not None for one in traces) or time.monotonic() > deadline:
                    break
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, MOST_WAIT_S)
            await off_loop(self._tell, traces, parent)
        except PierayError as error:
            log.warning("run %s is not told to the collector: %s", run, error.message, extra={"run": run})

    def _tell(self, traces: Sequence[Mapping[str, Any]], parent: Context) -> None:
        contexts: dict[str, Context] = {}
        for trace in traces:
            above = contexts.get(trace["parent"], parent)
            contexts[trace["instance_id"]] = self._tell_inferlet(trace, above)

    def _tell_inferlet(self, trace: Mapping[str, Any], parent: Context) -> Context:
        """Its span, with those of its calls and steps below it; the context for its children."""
        facts = {f"pieray.{name}": trace[name] for name in FACTS}
        facts |= {"pieray.run": trace["instance_id"], "pieray.program": trace["name"]}
        ended = trace["ended_at"] or time.time()
        began = _ns(trace["launched_at"])
        span = self._tracer.start_span(f"run {trace['name']}", parent, attributes=facts, start_time=began)
        context = otel.set_span_in_context(span)
        self._part("launch", context, trace["launched_at"], trace["ran_at"] or ended, {})
        for call in trace["calls"][:MOST_OF_A_KIND]:
            self._part(call["name"], context, call["began"], call["ended"], {}, error=call["error"])
        for step in trace["steps"][:MOST_OF_A_KIND]:
            told = {f"pieray.{name}": step[name] for name in ("passes", "tokens", "copies")}
            self._part("step", context, step["began"], step["ended"], told)
        if trace["error"]:
            span.set_status(Status(StatusCode.ERROR, trace["error"]))
        span.end(_ns(ended))
        return context

    def _part(
        self, name: str, parent: Context, began: float, ended: float, facts: Mapping[str, Any], error: str = ""
    ) -> None:
        span = self._tracer.start_span(name, parent, attributes=dict(facts), start_time=_ns(began))
        if error:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_ns(max(ended, began)))

    async def close(self) -> None:
        """Send what there is; runs that have not ended within LAST_S are not told."""
        if self._following:
            await asyncio.wait(self._following, timeout=LAST_S)
        for task in self._following:
            task.cancel()
        await off_loop(self._provider.shutdown)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
