"""Who traces, and what that asks of an installation."""

import subprocess
import sys

import pytest

from serve_app.config import TracingConfig
from serve_app.deployments.traces import open_tracer
from serve_app.errors import ConfigError
from serve_app.tracing import NO_TRACES


def test_without_a_section_nothing_is_traced() -> None:
    assert open_tracer(None) is NO_TRACES


def test_the_sdk_can_be_disabled_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracer(TracingConfig()) is NO_TRACES


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serve_app.otlp", None)  # as when an import fails
    with pytest.raises(ConfigError, match=r"flux-serve\[otel\]"):
        open_tracer(TracingConfig())


def test_what_does_not_trace_does_not_import_the_sdk() -> None:
    code = (
        "import sys, serve_app.ingress.app, serve_app.metering.measured, serve_app.engine.core;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
