"""Which tracer a process of Serve has.

Data flow: `TracingConfig` -> `open_tracer` -> `otlp.OtlpTracer`, or the one that makes no spans.
Only who traces needs the extra `otel`, and only he waits for its imports.
"""

import os

from ray import serve

from serve_app.config import TracingConfig
from serve_app.errors import ConfigError
from serve_app.tracing import NO_TRACES, Tracer

LIBRARY_LOGGER = "opentelemetry"
"""Where the SDK says that a collector is away."""


def open_tracer(config: TracingConfig | None) -> Tracer:
    """The tracer of a gateway or of a model's replica.

    Raises:
        ConfigError: Traces are wanted, and the extra `otel` is not installed.
    """
    if config is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NO_TRACES
    try:
        from serve_app.otlp import OtlpTracer
    except ImportError as exc:
        raise ConfigError(
            "args.tracing: traces need the extra 'otel' (pip install 'flux-serve[otel]')"
        ) from exc
    return OtlpTracer(config, serve.get_replica_context().replica_tag)
