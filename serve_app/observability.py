"""Logs with request ids. Standard library only; Ray collects what a process writes to stderr."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
LOGGER_NAME = "serve_app"
"""Every module logs under its own name, which starts with this."""


@contextmanager
def bind_request_id(request_id: str) -> Iterator[None]:
    """Every log record written inside carries this request id."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = _request_id.get()
        return True


def configure_logging(level: int = logging.INFO) -> None:
    """Send the package's logs to stderr once, however often it is called in a process."""
    logger = logging.getLogger(LOGGER_NAME)
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    handler.addFilter(_RequestIdFilter())
    pattern = "%(levelname)s %(asctime)s %(name)s [%(request_id)s] %(message)s"
    handler.setFormatter(logging.Formatter(pattern))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
