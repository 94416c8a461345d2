"""The ASGI application: routes, error handlers and the envelope around them."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from serve_app.errors import AppError
from serve_app.ingress.admin import AdminApi, Fleet
from serve_app.ingress.errors import on_app_error, on_http_exception, on_unexpected
from serve_app.ingress.middleware import RequestEnvelope
from serve_app.ingress.pages import Pages
from serve_app.ingress.requestmetrics import RequestMetrics
from serve_app.ingress.routes import Api
from serve_app.metering.admin import LedgerAdmin
from serve_app.metrics import SILENT, Recorder
from serve_app.service import ImageService
from serve_app.tracing import NO_TRACES, Tracer


def create_app(
    service: ImageService,
    why_not_ready: Callable[[], Awaitable[str | None]],
    ledger_admin: LedgerAdmin,
    fleet: Fleet,
    record: Recorder = SILENT,
    tracer: Tracer = NO_TRACES,
) -> ASGIApp:
    """The whole HTTP surface over a service.

    The envelope lies outside Starlette, so that it sees every reply and every failure.
    """
    api, admin = Api(service, why_not_ready), AdminApi(service, ledger_admin, fleet)
    routes = [*api.routes(), *admin.routes(), *Pages(service.config).routes()]
    app = Starlette(
        routes=routes,
        exception_handlers={
            AppError: on_app_error,
            HTTPException: on_http_exception,
            Exception: on_unexpected,
        },
    )
    app.router.redirect_slashes = False  # a redirect would drop the body of a POST
    return RequestEnvelope(app, RequestMetrics(record, routes), tracer)
