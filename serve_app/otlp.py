"""Spans to a collector, by OpenTelemetry's SDK over OTLP/HTTP; the extra `otel` brings it.

Data flow: `Span`s of `tracing.py` -> the SDK's bounded queue -> its own thread -> the collector.
Nothing waits for that: a collector that is slow or away costs spans, never a request. The SDK's
global tracer provider stays untouched, as Serve's own tracing uses that. Nothing else imports
OpenTelemetry.
"""

import threading
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import (
    Link,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import serve_app
from serve_app.config import TracingConfig
from serve_app.tracing import ATTRIBUTES, NO_SPAN, REQUEST, Carrier, Info, NoSpan, Span, Value

DEFAULT_NAME = "flux-serve"
CLOSE_S = 5.0
"""How long a stopping process may take to send what is left."""
TRACESTATE_MAX_CHARS = 512
"""What W3C asks everybody to pass on; a longer one is left out."""
KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}

_w3c = TraceContextTextMapPropagator()


class _Clock:
    """Wall-clock times that agree with `time.monotonic()`, so that spans nest as they did."""

    def __init__(self) -> None:
        self._wall_ns, self._monotonic_s = time.time_ns(), time.monotonic()

    def at_ns(self, monotonic_s: float) -> int:
        return self._wall_ns + int((monotonic_s - self._monotonic_s) * 1e9)

    def now_ns(self) -> int:
        return self.at_ns(time.monotonic())


class _Unsampled(NoSpan):
    """A span that nobody will see, nor any child of it, here or on a replica."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier

    @property
    def carrier(self) -> Carrier:
        return self._carrier


class _OtlpSpan:
    """A `Span` that is sent when it has ended."""

    def __init__(self, tracer: SdkTracer, span: SdkSpan, clock: _Clock, method: str = "") -> None:
        self._tracer = tracer
        self._span = span
        self._clock = clock
        self._method = method

    @property
    def carrier(self) -> Carrier:
        return _carrier(self._span)

    def child(self, info: Info, **attributes: Value) -> Span:
        now = self._clock.now_ns()
        return _OtlpSpan(self._tracer, self._begin(info, now, attributes), self._clock)

    def past(self, info: Info, began: float, ended: float, **attributes: Value) -> None:
        span = self._begin(info, self._clock.at_ns(began), attributes)
        if "error" in attributes:
            span.set_status(Status(StatusCode.ERROR, str(attributes["error"])))
        span.end(self._clock.at_ns(ended))

    def set(self, **attributes: Value) -> None:
        if not self._span.is_recording():
            return
        if self._method and "route" in attributes:
            self._span.update_name(f"{self._method} {attributes['route']}")
        self._span.set_attributes(_named(attributes))

    def fail(self, code: str) -> None:
        if not self._span.is_recording():  # it has ended, and well
            return
        self.set(error=code)
        self._span.set_status(Status(StatusCode.ERROR, code))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end(self._clock.now_ns())

    def _begin(self, info: Info, at_ns: int, attributes: dict[str, Value]) -> SdkSpan:
        return self._tracer.start_span(
            info.name,
            set_span_in_context(self._span, Context()),
            KINDS[info.kind],
            _named(attributes),
            start_time=at_ns,
        )


class OtlpTracer:
    """A `Tracer` of one process."""

    def __init__(self, config: TracingConfig, instance: str) -> None:
        """`instance` tells processes of one service apart.

        What the configuration leaves out is taken from the environment (`OTEL_...`).
        """
        endpoint = None
        if config.endpoint is not None:
            endpoint = f"{config.endpoint.rstrip('/')}/v1/traces"
        sampler = None
        if config.sample_ratio is not None:
            sampler = ParentBasedTraceIdRatio(config.sample_ratio)
        self._provider = TracerProvider(
            sampler=sampler,
            resource=_resource(config.service_name, instance),
            shutdown_on_exit=False,  # it would wait for a dead collector; `close` has a limit
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("serve_app", serve_app.__version__)
        self._follow = config.follow_clients

    def request(self, headers: Mapping[str, list[str]], **attributes: Value) -> Span:
        theirs = _context(headers)
        links: list[Link] = []
        if not self._follow:
            span_context = get_current_span(theirs).get_span_context()
            links, theirs = [Link(span_context)] if span_context.is_valid else [], Context()
        method = str(attributes["method"])
        clock = _Clock()
        name = method if method != "_OTHER" else "HTTP"
        span = self._tracer.start_span(
            name, theirs, KINDS[REQUEST.kind], _named(attributes), links, clock.now_ns()
        )
        if not span.get_span_context().trace_flags.sampled:
            return _Unsampled(_carrier(span))
        return _OtlpSpan(self._tracer, span, clock, name)

    def resume(self, carrier: Carrier, info: Info, **attributes: Value) -> Span:
        context = _w3c.extract(carrier, Context())
        theirs = get_current_span(context).get_span_context()
        if not theirs.trace_flags.sampled:  # nor one that is not valid
            return NO_SPAN
        clock = _Clock()
        span = self._tracer.start_span(
            info.name, context, KINDS[info.kind], _named(attributes), start_time=clock.now_ns()
        )
        return _OtlpSpan(self._tracer, span, clock)

    def close(self) -> None:
        # The SDK itself would wait for half a minute.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)


def _resource(service_name: str | None, instance: str) -> Resource:
    """What made the spans; a name in the configuration wins over one in the environment."""
    resource = Resource.create(
        {SERVICE_VERSION: serve_app.__version__, SERVICE_INSTANCE_ID: instance}
    )
    named = str(resource.attributes[SERVICE_NAME])
    if service_name is None and named.startswith("unknown_service"):  # the SDK's own default
        service_name = DEFAULT_NAME
    return resource.merge(Resource({SERVICE_NAME: service_name} if service_name else {}))


def _context(headers: Mapping[str, list[str]]) -> Context:
    """The client's span; nothing of what W3C does not allow."""
    parents, states = headers["traceparent"], ",".join(headers["tracestate"])
    carrier = {"traceparent": parents[0]} if len(parents) == 1 else {}
    if states and len(states) <= TRACESTATE_MAX_CHARS:
        carrier["tracestate"] = states
    return _w3c.extract(carrier, Context())


def _carrier(span: SdkSpan) -> Carrier:
    carrier: dict[str, str] = {}
    _w3c.inject(carrier, set_span_in_context(span, Context()))
    return carrier


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {ATTRIBUTES[key][0]: value for key, value in attributes.items()}
