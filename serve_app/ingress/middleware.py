"""The outermost ring: request id, span, access log, and the last catch of unexpected failures.

Data flow: ASGI scope -> `RequestEnvelope` (sets `scope["state"]["request_id"]`, binds the request's
facts) -> the application -> headers added to whatever it answers. Pure ASGI: streaming and
cancellation pass untouched.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import AppError, UnknownRoute
from serve_app.ingress.accesslog import PROBE_PATHS, write_line
from serve_app.ingress.errors import error_response
from serve_app.ingress.headers import REPLAYED
from serve_app.ingress.requestmetrics import RequestMetrics, note_error
from serve_app.ingress.requestspan import begin_span, end_span
from serve_app.metrics import SILENT
from serve_app.observability import RequestFacts, bound
from serve_app.tracing import NO_SPAN, NO_TRACES, Span, Tracer

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What a client may choose as request id: it goes into headers, logs and the ledger."""


def request_id_from(value: str | None) -> str:
    """The client's request id if it is harmless, else a new one."""
    if value is not None and _REQUEST_ID.fullmatch(value):
        return value
    return f"req_{uuid.uuid4().hex}"


async def refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """No route is a WebSocket: a 404 like any other, where the server can send one."""
    await receive()  # "websocket.connect"
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    response = error_response(UnknownRoute("No WebSocket is served here."))
    response.headers["x-request-id"] = request_id_from(Headers(scope=scope).get("x-request-id"))
    await response(scope, receive, send)


class RequestEnvelope:
    """Wraps every request; knows nothing of routes."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: RequestMetrics | None = None,
        tracer: Tracer = NO_TRACES,
    ) -> None:
        self.app = app
        self.metrics = metrics or RequestMetrics(SILENT)
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        status, complete = 0, False

        async def send_wrapped(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed_ms = int((time.perf_counter() - started) * 1000)
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["openai-processing-ms"] = str(elapsed_ms)
                headers["x-content-type-options"] = "nosniff"
                if REPLAYED in headers:
                    self.metrics.replayed()
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        facts = RequestFacts(request_id, span=self._begin_span(scope))
        with bound(facts):
            try:
                await self._answer(scope, receive, send_wrapped)
            except Exception:
                logger.exception("unexpected failure")
                note_error(scope, AppError())
                if status and not complete:
                    raise  # the reply has begun: only breaking it off tells the client
                if not status:
                    await error_response(AppError())(scope, receive, send_wrapped)
            finally:
                self._ended(scope, status, time.perf_counter() - started, facts)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].endswith("\n"):  # which the `$` of Starlette's routes lets pass
            await self.app(scope, receive, send)
            return
        error = UnknownRoute("Unknown request URL.")
        note_error(scope, error)
        await error_response(error)(scope, receive, send)

    def _begin_span(self, scope: Scope) -> Span:
        if self.tracer is NO_TRACES or scope["path"] in PROBE_PATHS:
            return NO_SPAN
        return begin_span(self.tracer, scope)

    def _ended(self, scope: Scope, status: int, seconds: float, facts: RequestFacts) -> None:
        """Count and tell of a request; status 0: its client left before there was a reply."""
        self.metrics.ended(scope, status, seconds)
        write_line(scope, status, seconds, facts)
        if facts.span is not NO_SPAN:
            end_span(scope, status, self.metrics.route(scope), facts)
