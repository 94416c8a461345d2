"""The outermost ring: request id, access log, and the last catch of unexpected failures.

Data flow: ASGI scope -> `RequestEnvelope` (sets `scope["state"]["request_id"]`) -> the application
-> headers added to whatever it answers. Pure ASGI: streaming and cancellation pass untouched.
"""

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import AppError, UnknownRoute
from serve_app.ingress.errors import error_response
from serve_app.ingress.headers import REPLAYED
from serve_app.ingress.requestmetrics import RequestMetrics, note_error
from serve_app.metrics import SILENT
from serve_app.observability import bind_request_id

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""What a client may choose as request id: it goes into headers, logs and the ledger."""
PROBE_PATHS = frozenset({"/health", "/ready"})
"""Asked every few seconds by load balancers: they would bury everything else in the log."""


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

    def __init__(self, app: ASGIApp, metrics: RequestMetrics | None = None) -> None:
        self.app = app
        self.metrics = metrics or RequestMetrics(SILENT)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
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

        with bind_request_id(request_id):
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
                self._ended(scope, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].endswith("\n"):  # which the `$` of Starlette's routes lets pass
            await self.app(scope, receive, send)
            return
        error = UnknownRoute("Unknown request URL.")
        note_error(scope, error)
        await error_response(error)(scope, receive, send)

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        """Count and log a request; status 0: its client left before there was a reply."""
        self.metrics.ended(scope, status, seconds)
        level = logging.DEBUG if scope["path"] in PROBE_PATHS else logging.INFO
        # Quoted again: a decoded line break would forge a line of the log.
        path = quote(scope["path"], errors="replace")
        shown = status or "cancelled"
        logger.log(level, "%s %s %s %d ms", scope["method"], path, shown, int(seconds * 1000))
