"""One call through the whole house, told to a collector: whose trace it joins, what it says, and what it never says."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from safelight.config import TracingSettings
from safelight.errors import ConfigError
from safelight.tracing import open_tracing, read_traceparent

from .conftest import Server, wait_for

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE_ID}-b7ad6b7169203331-01"
PROMPT = "a MARKEDprompt on mars"
SECRETIVE = "MARKEDpath"


class Collector(ThreadingHTTPServer):
    """Takes spans at /v1/traces and, as a webhook endpoint would, everything else."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Taking)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.server.bodies.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.shutdown()
    collector.server_close()


def above(span: Span, spans: list[Span]) -> list[str]:
    """The names of the spans around this one, the nearest first."""
    parents = {each.span_id: each for each in spans}
    names = []
    while (parent := parents.get(span.parent_span_id)) is not None:
        names.append(parent.name)
        span = parent
    return names


def test_a_call_is_one_trace_from_the_door_to_the_delivery(collector: Collector, tmp_path: Path) -> None:
    environment = {
        "SAFELIGHT_TRACING__ENDPOINT": f"{collector.url}/v1/traces",
        "SAFELIGHT_WEBHOOKS__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    server = Server(tmp_path / "data", environment=environment)
    try:
        body = {"prompt": PROMPT, "width": 64, "height": 64, "num_inference_steps": 3}
        body |= {"webhook_endpoint": f"{collector.url}/{SECRETIVE}"}
        with server.client() as client:
            run_id = client.post("/pinhole/predict", json=body, headers={"traceparent": CALLER}).json()["run_id"]
        wait_for(lambda: {"deliver", "run"} <= {span.name for span in collector.spans}, 60)
        key = server.key
    finally:
        server.stop()
    ours = [span for span in collector.spans if span.trace_id.hex() == TRACE_ID]
    by_name = {span.name: span for span in ours}
    door = by_name["POST /{deployment}/predict"]
    assert door.parent_span_id.hex() == "b7ad6b7169203331"
    around = {name: above(span, ours) for name, span in by_name.items()}
    assert around["store queueing.create"] == around["run"] == around["deliver"] == [door.name]
    assert around["engine"] == around["store claims.finish"] == ["run", door.name]
    assert door.start_time_unix_nano < by_name["run"].start_time_unix_nano < by_name["deliver"].end_time_unix_nano
    told = {each.key: each.value for each in by_name["run"].attributes}
    assert told["safelight.run_id"].string_value == run_id
    assert told["safelight.status"].string_value == "succeeded"
    assert all(not span.name.startswith("store") for span in collector.spans if not span.parent_span_id), "no polling"
    everything = b"".join(collector.bodies)
    for secret in (PROMPT, "MARKED", key, key.removeprefix("sl_live_")[:20], str(tmp_path)):
        assert secret.encode() not in everything


def test_a_collector_that_is_away_delays_nothing_and_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    tracing = open_tracing(TracingSettings(endpoint="http://127.0.0.1:9/v1/traces"), process="test")
    began = time.monotonic()
    with tracing.span("outer"), tracing.span("inner"):
        assert read_traceparent(tracing.traceparent()) is not None
    assert time.monotonic() - began < 0.5
    tracing.close()
    assert time.monotonic() - began < 4
    for _ in range(3):
        logging.getLogger("opentelemetry.exporter").error("the collector is away")
    (line,) = caplog.records
    assert (line.message, line.exc_info) == ("spans could not be sent", None)


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    source = (
        "import sys, safelight.api.app, safelight.worker, safelight.webhooks.deliverer\n"
        "from safelight.config import TracingSettings\n"
        "from safelight.tracing import OFF, open_tracing\n"
        "assert open_tracing(TracingSettings(), process='test') is OFF\n"
        "with OFF.span('x'), OFF.inner_span('y'): assert OFF.traceparent() is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_missing_packages_are_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("safelight.tracing.find_spec", find_nothing)
    with pytest.raises(ConfigError, match=r"pip install 'safelight\[tracing\]'"):
        open_tracing(TracingSettings(endpoint="http://127.0.0.1:9"), process="test")


@pytest.mark.parametrize(
    "header",
    [None, "", "x", CALLER[:-1], CALLER.upper(), "01" + CALLER[2:], CALLER.replace(TRACE_ID, "0" * 32), CALLER + "\n"],
)
def test_what_is_no_traceparent_is_none(header: str | None) -> None:
    assert read_traceparent(header) is None
    assert read_traceparent(CALLER) == CALLER


def test_an_error_is_named_and_never_quoted(collector: Collector) -> None:
    tracing = open_tracing(TracingSettings(endpoint=f"{collector.url}/v1/traces"), process="test")

    def fail(what: Callable[[], object]) -> None:
        with tracing.span("failing"):
            what()

    with pytest.raises(ValueError):
        fail(lambda: int(PROMPT))
    tracing.close()
    (span,) = collector.spans
    assert (span.status.code, span.status.message) == (2, "ValueError")
    assert b"MARKED" not in b"".join(collector.bodies)
