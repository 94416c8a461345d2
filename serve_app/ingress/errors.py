"""Failures as replies: one error body for everything, in OpenAI's shape.

Data flow: `AppError` (or Starlette's 404 and 405) -> `error_response`. No text of any other
exception ever reaches a client.
"""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve_app.errors import AppError, MethodNotAllowed, RateLimitExceeded, UnknownRoute
from serve_app.ingress.headers import rate_headers
from serve_app.ingress.requestmetrics import note_error
from serve_app.schema import ErrorBody, ErrorDetail


def error_body(error: AppError) -> ErrorBody:
    """What a client is told of a failure, in a reply or in a stream."""
    return ErrorBody(
        error=ErrorDetail(
            message=error.message, type=error.type, param=error.param, code=error.code
        )
    )


def error_response(error: AppError) -> Response:
    """The reply for a failure: status, headers that steer retries, and the body."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.allow is not None:
        headers["allow"] = error.allow
    if isinstance(error, RateLimitExceeded):
        headers.update(rate_headers(error.rate))
    return JSONResponse(error_body(error).model_dump(), error.status, headers)


async def on_app_error(request: Request, exc: Exception) -> Response:
    """Starlette's handler for `AppError`."""
    assert isinstance(exc, AppError)
    note_error(request.scope, exc)
    return error_response(exc)


async def on_unexpected(request: Request, exc: Exception) -> Response:
    """Anything else: an opaque 500. Starlette raises it on, so the envelope logs it."""
    return error_response(AppError())


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """Starlette's router knows two failures of its own: no such path, no such method."""
    assert isinstance(exc, HTTPException)
    path = request.url.path
    if exc.status_code == 405:
        error: AppError = MethodNotAllowed(f"{request.method} is not allowed for {path}.")
        error.allow = (exc.headers or {}).get("Allow")
    else:
        error = UnknownRoute(f"Unknown request URL: {request.method} {path}.")
    note_error(request.scope, error)
    return error_response(error)
