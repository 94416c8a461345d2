"""The span of a request, as OpenTelemetry's conventions for HTTP servers want it.

Data flow: scope -> `begin_span` (the client's `traceparent` and `tracestate` are its parent) ->
`RequestFacts.span` -> `end_span` with the outcome. The query stays out: it may hold a signature.
"""

from starlette.datastructures import Headers
from starlette.types import Scope

from serve_app.ingress.requestmetrics import METHODS
from serve_app.observability import RequestFacts
from serve_app.tracing import Span, Tracer, Value

PATH_MAX_CHARS = 256
"""Clients choose paths; ours are far shorter."""
TRACE_HEADERS = ("traceparent", "tracestate")


def begin_span(tracer: Tracer, scope: Scope) -> Span:
    """Begin the span of a request that nothing is known of yet."""
    headers = Headers(scope=scope)
    return tracer.request(
        {name: headers.getlist(name) for name in TRACE_HEADERS},
        method=_method(scope),
        path=scope["path"][:PATH_MAX_CHARS],
        scheme=scope.get("scheme", "http"),
    )


def end_span(scope: Scope, status: int, route: str | None, facts: RequestFacts) -> None:
    """End it; status 0: its client left before there was a reply.

    A failure of the client's is none of ours: only 5xx, and streams that broke, mark the span as
    failed.
    """
    span, code = facts.span, scope.get("state", {}).get("error_code")
    known: dict[str, Value | None] = {
        "route": route,
        "status": status or None,
        "request_id": facts.request_id,
        "account_id": facts.account_id or None,
        "hold_id": facts.hold_id or None,
        "model": facts.model or None,
        "images": facts.images,
        "units": facts.units,
        "replayed": facts.replayed or None,
        "error": code if status else "cancelled",
    }
    span.set(**{name: value for name, value in known.items() if value is not None})
    if code is not None and (status >= 500 or 0 < status < 400):
        span.fail(code)
    span.end()


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in METHODS else "_OTHER"
