"""What Serve's own HTTP servers must do for us: no text errors, no control headers from outside.

Data flow: client -> `ProxyGuard` (inside Serve's proxy process) -> proxy -> gateway. With HAProxy:
client -> HAProxy -> `ProxyGuard` (inside the gateway's process) -> Serve's replica -> gateway.
Serve loads `middlewares` by the import path in RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, which the
config files set through `controller_options`; replicas inherit it from the controller. The proxy
process imports this: no torch, no SQL.
"""

import logging
import os
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.deployments.logs import join_serves_logs
from serve_app.errors import AppError, DeadlineExceeded, Unavailable
from serve_app.ingress.errors import error_response
from serve_app.ingress.middleware import refuse_websocket, request_id_from

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
CALLBACK_PATH = "serve_app.deployments.proxy.middlewares"
SYSTEM_ROUTES = ("/-/healthz", "/-/routes")
"""Load balancers and the operator read these as Serve writes them."""
CONTROL_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",  # would let a client set Serve's timeout, or disable it
        b"x-request-disconnect-disabled",  # would keep a GPU busy for a client that left
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
        b"x-session-id",  # would steer which replica serves a request
    }
)
REPLACED_HEADERS = CONTROL_HEADERS | {b"x-request-id"}

logger = logging.getLogger(__name__)


def warn_if_unguarded(direct_ingress: bool) -> None:
    """Say it when clients reach this gateway's own port (HAProxy mode) past any guard."""
    if direct_ingress and os.environ.get(CALLBACK_VARIABLE) != CALLBACK_PATH:
        logger.warning("clients can steer Serve: set %s=%s", CALLBACK_VARIABLE, CALLBACK_PATH)


def middlewares() -> Iterable[Middleware]:
    """Called once by every Serve proxy at its start."""
    join_serves_logs()
    return [Middleware(ProxyGuard)]


class ProxyGuard:
    """Strips control headers; turns Serve's own plain-text failures into our error body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await refuse_websocket(scope, receive, send)
            return
        if scope["type"] != "http" or scope["path"] in SYSTEM_ROUTES:
            await self.app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get("x-request-id"))
        kept = [pair for pair in scope["headers"] if pair[0].lower() not in REPLACED_HEADERS]
        kept.append((b"x-request-id", request_id.encode("ascii")))
        await _Exchange(request_id, send).run(self.app, {**scope, "headers": kept}, receive)


class _Exchange:
    """One request and the reply that its client gets."""

    def __init__(self, request_id: str, send: Send) -> None:
        self._request_id = request_id
        self._send_out = send
        self._started = False
        self._replaced: AppError | None = None

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        try:
            await app(scope, receive, self._send)
        except Exception:
            if self._started:
                raise  # the connection breaks: nobody must take half a reply for a whole one
            logger.exception(
                "Serve's proxy failed under request %s",
                self._request_id,
                extra={"request_id": self._request_id},
            )
        if not self._started:  # a gateway died, say: uvicorn would tell it in plain text
            error = self._replaced or AppError()
            await error_response(error)(scope, receive, self._send_with_id)

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_serves_own(message):
            self._replaced = _translate(message["status"])
        elif self._replaced is None:
            await self._send_with_id(message)

    async def _send_with_id(self, message: Message) -> None:
        self._started = True
        if message["type"] == "http.response.start":
            # Serve's proxy and the gateway each add one: leave exactly one.
            MutableHeaders(scope=message)["x-request-id"] = self._request_id
        await self._send_out(message)


def _is_serves_own(message: Message) -> bool:
    """Our own failures are always JSON."""
    content_type = Headers(raw=message["headers"]).get("content-type", "")
    return message["status"] >= 400 and not content_type.startswith("application/json")


def _translate(status: int) -> AppError:
    if status in (404, 503):  # 404: the gateway owns "/", so it is not deployed yet
        return Unavailable("The server is starting or overloaded.")
    if status == 408:
        return DeadlineExceeded("The image was not ready in time.")
    return AppError()
