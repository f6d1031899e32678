"""OpenTelemetry: what a collector is sent of requests and of the runs that they launch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from doors import hosted
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from pieray.server.guard import Guard
from pieray.server.telemetry import Telemetry

HELLO = {"messages": [{"role": "user", "content": "12+7=? Think step by step."}], "temperature": 0}
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WAIT_S = 20.0


class Collector:
    """Takes traces over OTLP, as collectors do."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                collector.spans += [
                    span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans
                ]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def until(self, name: str) -> Span:
        deadline = time.monotonic() + WAIT_S
        while not (found := [span for span in self.spans if span.name == name]):
            assert time.monotonic() < deadline, f"no span {name!r}: {[span.name for span in self.spans][:50]}"
            time.sleep(0.05)
        return found[0]

    def below(self, parent: Span) -> list[Span]:
        return [span for span in self.spans if span.parent_span_id == parent.span_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@contextmanager
def served(engine: Any, telemetry: Telemetry) -> Iterator[httpx.Client]:
    with hosted(engine, Guard(), telemetry) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield http


def test_a_request_is_one_trace_from_http_to_steps(engine: Any, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    with served(engine, Telemetry(collector.url, share=0.0)) as http:
        answer = http.post("/v1/chat/completions", json=HELLO, headers=headers)
        assert answer.status_code == 200
        assert http.get("/version").status_code == 200
    request, run = collector.until("POST /v1/chat/completions"), collector.until("run openai-generate")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}
    assert request.parent_span_id.hex() == PARENT_ID
    assert run.parent_span_id == request.span_id
    facts = {one.key: one.value for one in request.attributes}
    assert facts["http.response.status_code"].int_value == 200
    assert facts["pieray.run"].string_value == answer.headers["x-pieray-run"]
    below = collector.below(run)
    names = [span.name for span in below]
    assert names[0] == "launch"
    assert "plans.start" in names
    assert names.count("step") >= answer.json()["usage"]["completion_tokens"]
    for span in below:
        assert run.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= run.end_time_unix_nano + 50_000_000
    assert "GET /version" not in [span.name for span in collector.spans]


def test_runs_and_their_failures_are_told(engine: Any, collector: Collector) -> None:
    with served(engine, Telemetry(collector.url)) as http:
        answer = http.post("/v1/inferlets/text-completion/runs", json={"input": {"prompt": "a" * 5000}})
        assert answer.status_code == 400
    run = collector.until("run text-completion")
    assert run.status.code == 2
    assert "context" in run.status.message


def test_a_collector_that_is_gone_disturbs_nobody(engine: Any) -> None:
    with served(engine, Telemetry("http://127.0.0.1:9")) as http:
        assert http.post("/v1/chat/completions", json=HELLO).status_code == 200
