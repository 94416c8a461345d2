"""Requests as metrics: by the template of their route, never by their path, which clients choose.

Data flow: `RequestEnvelope` -> `RequestMetrics.ended(scope, ...)` -> `Recorder`. An error's code
comes from whoever answered it: `note_error` leaves it in the scope.
"""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.routing import Route
from starlette.types import Scope

from serve_app.errors import AppError
from serve_app.metrics import ERRORS, REPLAYS, REQUEST_SECONDS, REQUESTS, Recorder

NO_ROUTE = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CLIENT_LEFT = 499
"""As nginx has it: there was nobody to answer."""


def note_error(scope: Scope, error: AppError) -> None:
    """Remember for the metrics how a request failed; the last one counts."""
    scope.setdefault("state", {})["error_code"] = error.code or error.type


class RequestMetrics:
    """Of one application."""

    def __init__(self, record: Recorder, routes: Sequence[Route] = ()) -> None:
        self._record = record
        self._templates: dict[Callable[..., Any], str] = {
            route.endpoint: route.path.replace(":path}", "}") for route in routes
        }

    def route(self, scope: Scope) -> str | None:
        """Template of the route that took a request; None where none did."""
        return self._templates.get(scope.get("endpoint"))  # type: ignore[arg-type]

    def replayed(self) -> None:
        """An earlier reply is sent again."""
        self._record.count(REPLAYS)

    def ended(self, scope: Scope, status: int, seconds: float) -> None:
        """A request is over; status 0: its client left before there was a reply."""
        route = self.route(scope) or NO_ROUTE
        method = scope["method"] if scope["method"] in METHODS else NO_ROUTE
        shown = str(status or CLIENT_LEFT)
        self._record.count(REQUESTS, route=route, method=method, status=shown)
        self._record.observe(REQUEST_SECONDS, seconds, route=route)
        code = scope.get("state", {}).get("error_code")
        if code is not None:
            self._record.count(ERRORS, route=route, code=code)
