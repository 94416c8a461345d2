"""What is known about the request in hand, for its log lines and its spans.

Data flow: `ingress.middleware` binds `RequestFacts` -> auth, service and streaming fill them in,
once each -> `annotate` puts the ids onto log records, `traced` makes children of its span.
Standard library only. Facts never hold a prompt or a key.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from serve_app.errors import AppError
from serve_app.tracing import NO_SPAN, Info, Span, Value

LOGGER_NAME = "serve_app"
"""Every module logs under its own name, which starts with this."""
IDS = ("request_id", "account_id", "hold_id", "model")
"""What every log line of a request carries, once it is known."""


@dataclass(slots=True)
class RequestFacts:
    """Of one request; shared by all tasks that work for it."""

    request_id: str = ""
    account_id: str = ""
    hold_id: str = ""
    model: str = ""
    images: int | None = None
    """Delivered; None for requests that draw nothing."""
    units: int | None = None
    """Compute units charged, or held by a stream that goes on."""
    user: str | None = None
    """As its client calls its own customer: any text."""
    replayed: bool = False
    span: Span = NO_SPAN


_facts: ContextVar[RequestFacts | None] = ContextVar("request_facts", default=None)


@contextmanager
def bound(facts: RequestFacts) -> Iterator[None]:
    """Every task started inside works for this request."""
    token = _facts.set(facts)
    try:
        yield
    finally:
        _facts.reset(token)


def request_facts() -> RequestFacts:
    """Of the request in hand; outside of any they lead nowhere."""
    return _facts.get() or RequestFacts()


def annotate(record: logging.LogRecord) -> None:
    """Say which request a log record is about; what it says itself stays."""
    facts = _facts.get()
    if facts is None:
        return
    known = record.__dict__
    for name in IDS:
        value = getattr(facts, name)
        if value and name not in known:
            known[name] = value


class traced:  # noqa: N801 - reads as a function, and is cheaper than a generator
    """`with traced(HOLD, units=5) as span:` is a part of the request in hand; errors mark it."""

    __slots__ = ("_span",)

    def __init__(self, info: Info, **attributes: Value) -> None:
        self._span = request_facts().span.child(info, **attributes)

    def __enter__(self) -> Span:
        return self._span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._span.fail(error_code(error))
        self._span.end()


def error_code(error: BaseException) -> str:
    """How spans and log lines call a failure: by code, never by its text."""
    if isinstance(error, AppError):
        return error.code or error.type
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return type(error).__name__
