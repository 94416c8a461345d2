"""Our log lines through Serve's handlers: one file, one format, one switch.

Data flow: our loggers -> ids of the request (`observability.annotate`) -> the handlers that Serve
gave its own logger in this process, as `logging_config` says (TEXT or JSON, level, folder). Serve
makes them anew when that changes in place; the way there stays. A gateway's lines gather on it.
"""

import asyncio
import logging
from logging.handlers import MemoryHandler

from serve_app.deployments.ray_compat import SERVE_LOGGER_NAME
from serve_app.observability import LOGGER_NAME, annotate

GATHER_S = 0.2
"""How long lines wait for others: a kill loses no more than these, and a reader does not notice."""
_AS_IT_IS = logging.Formatter("%(message)s")


class _Annotator(logging.Handler):
    """Writes nothing: completes records on their way up to Serve's handlers."""

    def __init__(self, same: dict[str, str]) -> None:
        super().__init__()
        self._same = same

    def handle(self, record: logging.LogRecord) -> bool:
        annotate(record)
        for name, value in self._same.items():
            record.__dict__.setdefault(name, value)
        return True


class _Gatherer(logging.Handler):
    """Passes lines on to Serve's handlers many at a time, each formatted when it is logged.

    Line by line they cost a gateway 8 % of its time (docs/gateway.md): five system calls for each
    of two handlers, after each of which the event loop has to get the interpreter back. Warnings
    do not wait, and take along what does.
    """

    def __init__(self, serves: logging.Logger) -> None:
        super().__init__()
        self._serves = serves
        self._lines: dict[logging.Handler, list[str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._add(record)
        except Exception:  # noqa: BLE001 - as in logging's own handlers: its caller must not suffer
            self.handleError(record)
        if record.levelno >= logging.WARNING:
            self.flush()
        elif self._timer is None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # another thread's line
                self.flush()
            else:
                self._timer = loop.call_later(GATHER_S, self._later)

    def _add(self, record: logging.LogRecord) -> None:
        texts: dict[logging.Formatter | None, str] = {}
        for handler in self._serves.handlers:
            # The filters add what Serve knows of the request that is in hand now, not later.
            if record.levelno < handler.level or not handler.filter(record):
                continue
            target = handler.target if isinstance(handler, MemoryHandler) else handler
            if target is None:
                continue
            if target.formatter not in texts:  # with TEXT, the file and stderr share one
                texts[target.formatter] = target.format(record)
            self._lines.setdefault(target, []).append(texts[target.formatter])

    def _later(self) -> None:
        # Not in `flush`, which other threads call: a timer belongs to its loop's thread.
        self._timer = None
        self.flush()

    def flush(self) -> None:
        """Write what has come, each handler's lines as one; also called when the process ends."""
        self.acquire()
        try:
            gathered, self._lines = self._lines, {}
            for target, lines in gathered.items():
                _write(target, "\n".join(lines))
        finally:
            self.release()


def _write(handler: logging.Handler, text: str) -> None:
    """Hand a finished text to a handler, which keeps its own rules of files and rotation."""
    handler.acquire()
    formatter, handler.formatter = handler.formatter, _AS_IT_IS
    try:
        handler.emit(logging.makeLogRecord({"msg": text}))
    finally:
        handler.formatter = formatter
        handler.release()


def flush_logs() -> None:
    """Write what has gathered; to be called last."""
    for handler in logging.getLogger(LOGGER_NAME).handlers:
        handler.flush()


def join_serves_logs(*, also: tuple[str, ...] = (), gather: bool = False, **same: str) -> None:
    """Called once by each process of Serve that runs our code; again, it starts over.

    Args:
        also: loggers of libraries that take the same way.
        gather: write many lines at a time, as those of a gateway are many.
        same: what every line of this process carries, by field.
    """
    serves = logging.getLogger(SERVE_LOGGER_NAME)
    gatherers = [_Gatherer(serves)] if gather else []  # one for all: they would disturb each other
    for name in (LOGGER_NAME, *also):
        logger = logging.getLogger(name)
        logger.handlers = [_Annotator(same), *gatherers]
        logger.propagate = not gather
        logger.parent = serves  # not `root`, where nobody listens in these processes
        logger.setLevel(logging.NOTSET)  # Serve's, also when it is changed in place
