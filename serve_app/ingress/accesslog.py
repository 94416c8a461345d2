"""One line of the log for each request: what was asked, what came of it, who paid how much.

Data flow: scope, outcome and `RequestFacts` -> a sentence for people, and its parts as fields for
JSON logs. What a client chose is quoted in the sentence: a line break in it must not forge a line.
"""

import logging
from urllib.parse import quote

from starlette.types import Scope

from serve_app.ingress.requestmetrics import CLIENT_LEFT
from serve_app.observability import RequestFacts

logger = logging.getLogger(__name__)

PROBE_PATHS = frozenset({"/health", "/ready"})
"""Asked every few seconds by load balancers: they would bury everything else in the log."""


def write_line(scope: Scope, status: int, seconds: float, facts: RequestFacts) -> None:
    """Tell of a request that is over; status 0: its client left before there was a reply."""
    level = logging.DEBUG if scope["path"] in PROBE_PATHS else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields: dict[str, object] = {
        "method": scope["method"],
        "path": quote(scope["path"], errors="replace"),
        "status": status or CLIENT_LEFT,
        "duration_ms": int(seconds * 1000),
    }
    known = _outcome(scope, facts)
    ids: dict[str, object] = {
        "account": facts.account_id,
        "hold": facts.hold_id,
        "model": facts.model,
    }
    told = {**ids, **known}
    if "user" in told:
        told["user"] = repr(facts.user)
    logger.log(
        level,
        "%s %s %s %d ms%s",
        fields["method"],
        fields["path"],
        status or "cancelled",
        fields["duration_ms"],
        "".join(f" {name}={value}" for name, value in told.items() if value != ""),
        extra={**fields, **known},
    )


def _outcome(scope: Scope, facts: RequestFacts) -> dict[str, object]:
    """What `annotate` does not add."""
    known: dict[str, object] = {}
    if facts.images is not None:
        known["images"] = facts.images
        known["units"] = facts.units
    if facts.replayed:
        known["replayed"] = True
    if facts.user is not None:
        known["user"] = facts.user
    code = scope.get("state", {}).get("error_code")
    if code is not None:
        known["code"] = code
    return known
