"""Our log lines through Serve's handlers: one file, one format, one switch.

Data flow: our loggers -> ids of the request (`observability.annotate`) -> the handlers that Serve
gave its own logger in this process, as `logging_config` says (TEXT or JSON, level, folder). Serve
makes them anew when that changes in place; the way there stays.
"""

import logging

from ray.serve._private.constants import SERVE_LOGGER_NAME

from serve_app.observability import LOGGER_NAME, annotate


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


def join_serves_logs(*, also: tuple[str, ...] = (), **same: str) -> None:
    """Called once by each process of Serve that runs our code; again, it starts over.

    Args:
        also: loggers of libraries that take the same way.
        same: what every line of this process carries, by field.
    """
    serves = logging.getLogger(SERVE_LOGGER_NAME)
    for name in (LOGGER_NAME, *also):
        logger = logging.getLogger(name)
        logger.handlers = [_Annotator(same)]
        logger.parent = serves  # not `root`, where nobody listens in these processes
        logger.setLevel(logging.NOTSET)  # Serve's, also when it is changed in place
