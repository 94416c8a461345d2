"""What a log line and a span cost whoever makes them: `python -m benchmarks.observability`.

Data flow: the same line through a plain handler on stderr and through Serve's handlers into a file,
the same span without and with a tracer whose collector is away -> processor time for each, the
least of many rounds, as other work of the machine only adds. Sending is not in it: the SDK's own
thread does that. Ray is not started, so the ids that it adds to JSON lines are missing.
"""

import argparse
import io
import logging
import tempfile
import time
from collections.abc import Callable

from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig

from benchmarks._report import finish
from serve_app.config import TracingConfig
from serve_app.deployments.logs import join_serves_logs
from serve_app.observability import RequestFacts, bound, traced
from serve_app.otlp import OtlpTracer
from serve_app.tracing import HOLD, NO_SPAN, Span

ROUNDS = 15
NOWHERE = "http://127.0.0.1:9"  # the port "discard": nobody takes the spans
HEADERS: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
IDS = {"request_id": "req_" + "0" * 32, "account_id": "acct_1", "hold_id": "hold_1"}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of each")
    repeats = 300 if parser.parse_args().quick else 2000
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    tracer = OtlpTracer(TracingConfig(endpoint=NOWHERE), "benchmark")
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "line_stderr_us": _least(_line_on_stderr(), repeats),
            "line_text_us": _least(_line_through_serve(folder, "TEXT"), repeats),
            "line_json_us": _least(_line_through_serve(folder, "JSON"), repeats),
            "span_off_us": _least(lambda: _span(NO_SPAN), repeats),
            "request_span_us": _least(lambda: _request(tracer).end(), repeats),
        }
        request = _request(tracer)
        figures["span_on_us"] = _least(lambda: _span(request), repeats)
    rows = [{"what": name, "us": value} for name, value in figures.items()]
    packages = ("ray", "opentelemetry-sdk")
    finish("observability", rows, figures, packages=packages)


def _least(work: Callable[[], object], repeats: int) -> float:
    """Microseconds of processor time of this process."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(repeats):
            work()
        rounds.append((time.process_time() - began) / repeats * 1e6)
    return min(rounds)


def _line_on_stderr() -> Callable[[], None]:
    logger = logging.getLogger("plain")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    return lambda: _write(logger)


def _line_through_serve(folder: str, encoding: str) -> Callable[[], None]:
    configure_component_logger(
        component_name="Gateway",
        component_id="benchmark",
        component_type=ServeComponentType.REPLICA,
        logging_config=LoggingConfig(encoding=encoding, logs_dir=folder),
        max_bytes=100_000_000,
        backup_count=1,
    )
    serves = logging.getLogger("ray.serve")
    # Of the two that Serve makes only the file: the other one would fill the terminal.
    serves.handlers = [one for one in serves.handlers if type(one) is not logging.StreamHandler]
    join_serves_logs()
    logger = logging.getLogger("serve_app.benchmark")
    return lambda: _write(logger)


def _write(logger: logging.Logger) -> None:
    logger.info("%s %s %s %d ms", "POST", "/v1/images/generations", 200, 1234, extra=IDS)


def _request(tracer: OtlpTracer) -> Span:
    return tracer.request(HEADERS, method="GET", path="/v1/models", scheme="http")


def _span(request: Span) -> None:
    facts = RequestFacts("req_1", span=request)
    with bound(facts), traced(HOLD, account_id="a", model="m", images=1, units=5) as span:
        span.set(hold_id="hold_1")


if __name__ == "__main__":
    main()
