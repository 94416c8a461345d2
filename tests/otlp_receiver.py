"""A collector for tests: takes OTLP over HTTP as a real one does, and keeps the spans.

Data flow: exporter -> POST `/v1/traces`, protobuf -> `Received` spans. Every span is held against
the table of `serve_app.tracing`: what is not documented fails the test that made it.
"""

import gzip
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from serve_app.otlp import OtlpTracer
from serve_app.tracing import ALL, ATTRIBUTES, REQUEST
from tests.machine import eventually

STOP_POLL_S = 0.01
"""How soon the server's thread sees that it shall end."""
PROMPT = "a private circle"
"""Of jobs whose spans are looked at: none may hold it."""
Open = Callable[..., OtlpTracer]
"""The fixture `open_tracer`."""
REQUEST_NAME = re.compile(r"(GET|POST|PUT|PATCH|DELETE|HEAD|OPTIONS|HTTP)( /\S*)?")


@dataclass(frozen=True)
class Received:
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first span of a trace."""
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    failed: bool
    status: str
    resource: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    tracestate: str

    def lies_in(self, other: "Received") -> bool:
        return other.began_ns <= self.began_ns <= self.ended_ns <= other.ended_ns


class Receiver:
    """Serves from `with`; `url` is what `tracing.endpoint` takes."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.headers: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Receiver":
        serving = partial(self._server.serve_forever, poll_interval=STOP_POLL_S)
        threading.Thread(target=serving, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def trace(self, trace_id: str) -> list[Received]:
        return [span for span in self.spans if span.trace_id == trace_id]

    def having(self, name: str, **attributes: Any) -> list[Received]:
        """Spans of a name with these attributes of ours."""
        wanted = {f"flux_serve.{key}": value for key, value in attributes.items()}
        named = [span for span in self.spans if span.name == name]
        return [span for span in named if {**span.attributes, **wanted} == span.attributes]

    def until(
        self, check: Callable[[list[Received]], bool], trace_id: str, timeout_s: float = 60
    ) -> list[Received]:
        """The spans of a trace once they satisfy `check`; exporters send every few seconds."""
        try:
            eventually(lambda: check(self.trace(trace_id)), f"trace {trace_id}", timeout_s)
        except AssertionError as late:
            names = [span.name for span in self.trace(trace_id)]
            raise AssertionError(f"{late}; the trace has {names}") from None
        return self.trace(trace_id)

    def _take(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans.extend(_received(span, resource) for span in scope.spans)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["content-type"] == "application/x-protobuf"
                known = self.path == "/v1/traces"
                if known:
                    receiver.headers.append(dict(self.headers))
                    receiver._take(body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if known else 404)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Tests read spans, not access logs."""

        return Handler


def named(spans: list[Received], name: str) -> Received:
    (found,) = [span for span in spans if span.name == name]
    return found


def assert_documented(spans: list[Received]) -> None:
    """Names and attributes are those of docs/tracing.md."""
    rows = {info.name: info for info in ALL}
    for span in spans:
        info = rows.get(span.name)
        if info is None:
            assert REQUEST_NAME.fullmatch(span.name), span.name
            info = REQUEST
        unknown = set(span.attributes) - {ATTRIBUTES[key][0] for key in info.attributes}
        assert not unknown, (span.name, unknown)


def _received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        status=span.status.message,
        resource=resource,
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        tracestate=span.trace_state,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
