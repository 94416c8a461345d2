"""Every span of a trace: its name, attributes and meaning, and the interface that makes one.

Data flow: `ingress.middleware` opens a span for each request -> service, ledger, store and handles
add children -> the `trace` of a job carries it to a replica, which adds its own -> `otlp.py` sends
them to a collector. Without one every span is `NO_SPAN`, which does nothing. docs/tracing.md is
made from `ALL` and `ATTRIBUTES`. Attributes never hold a prompt, a key or a query string.
Imports nothing of this package, nor OpenTelemetry.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Value = str | int | float | bool
Carrier = Mapping[str, str]
"""`traceparent` and `tracestate` as W3C writes them; empty where nothing is traced."""


@dataclass(frozen=True)
class Info:
    """One row of the table of spans; `attributes` are keys of `ATTRIBUTES`."""

    name: str
    help: str
    attributes: tuple[str, ...]
    source: Literal["gateway", "replica"] = "gateway"
    kind: Literal["server", "client", "internal"] = "internal"


class Span(Protocol):
    """Something that takes time. From any thread; cheap, never blocking, never raising."""

    @property
    def carrier(self) -> Carrier:
        """What lets another process add children."""
        ...

    def child(self, info: Info, **attributes: Value) -> "Span":
        """A part of it that begins now."""
        ...

    def past(self, info: Info, began: float, ended: float, **attributes: Value) -> None:
        """A part of it that is over; times by `time.monotonic()` of this process."""
        ...

    def set(self, **attributes: Value) -> None:
        """Add attributes, by their keys in `ATTRIBUTES`."""
        ...

    def fail(self, code: str) -> None:
        """It went wrong; the last code counts."""
        ...

    def end(self) -> None:
        """It is over; what comes after this is without effect."""
        ...


class Tracer(Protocol):
    """Where traces begin in a process."""

    def request(self, headers: Mapping[str, list[str]], **attributes: Value) -> Span:
        """The span of a request, as a child of its client's where `headers` name one."""
        ...

    def resume(self, carrier: Carrier, info: Info, **attributes: Value) -> Span:
        """A child of a span of another process."""
        ...

    def close(self) -> None:
        """Send what is left, for some seconds at most. Blocks."""
        ...


class NoSpan:
    """A `Span` and `Tracer` of whoever does not trace."""

    @property
    def carrier(self) -> Carrier:
        return {}

    def child(self, info: Info, **attributes: Value) -> Span:
        return self

    def past(self, info: Info, began: float, ended: float, **attributes: Value) -> None: ...

    def set(self, **attributes: Value) -> None: ...

    def fail(self, code: str) -> None: ...

    def end(self) -> None: ...

    def request(self, headers: Mapping[str, list[str]], **attributes: Value) -> Span:
        return self

    def resume(self, carrier: Carrier, info: Info, **attributes: Value) -> Span:
        return self

    def close(self) -> None: ...


NO_SPAN: Span = NoSpan()
NO_TRACES: Tracer = NoSpan()

ATTRIBUTES = {
    "method": ("http.request.method", "`_OTHER` for methods that no route has"),
    "path": ("url.path", "without the query; cut after 256 characters"),
    "scheme": ("url.scheme", ""),
    "route": ("http.route", "template of the route; absent where none fits"),
    "status": ("http.response.status_code", "absent where the client left before a reply"),
    "error": ("error.type", "`code` of the error, or `type`; `cancelled`; else a class"),
    "request_id": ("flux_serve.request_id", "as in `x-request-id`"),
    "account_id": ("flux_serve.account_id", ""),
    "hold_id": ("flux_serve.hold_id", "of the job's compute units; the job's id, too"),
    "model": ("flux_serve.model", "that draws"),
    "units": ("flux_serve.compute_units", "held, or charged"),
    "images": ("flux_serve.images", "wanted (`hold`, `job`), delivered (request), drawn (`draw`)"),
    "size": ("flux_serve.size", "`WxH` in pixels"),
    "steps": ("flux_serve.steps", "denoising steps wanted, or done (`steps`)"),
    "stream": ("flux_serve.stream", "whether the reply is a stream"),
    "replayed": ("flux_serve.replayed", "drawn and charged before, under an idempotency key"),
    "attempt": ("flux_serve.attempt", "2 after the death of a replica"),
    "image": ("flux_serve.image", "number of the image in its job, from 0"),
    "bytes": ("flux_serve.bytes", "of the file"),
    "prompts": ("flux_serve.batch.prompts", "in the pass of the text encoders"),
    "batch": ("flux_serve.batch.samples", "mean of its step batches"),
    "device_s": ("flux_serve.device_s", "device seconds: its part of each step batch"),
    "previews": ("flux_serve.previews", "made on the way"),
}  # fmt: skip
"""Key in code -> name in traces, and what it holds beyond what the name says."""

REQUEST = Info(
    "{method} {route}",
    "One HTTP request, from its head to the last byte of the reply. `/health` and `/ready` make "
    "none.",
    (
        *("method", "path", "scheme", "route", "status", "error", "request_id", "account_id"),
        *("hold_id", "model", "images", "units", "replayed"),
    ),
    kind="server",
)
AUTH = Info(
    "auth", "The ledger is asked for a key; not for one that was good a moment ago.", ("error",)
)
HOLD = Info(
    "hold",
    "Compute units are held.",
    ("account_id", "hold_id", "model", "images", "size", "steps", "units", "error"),
)
JOB = Info(
    "job",
    "One try to have the job drawn by a replica, waiting for a free one included. A second one "
    "after the death of a replica.",
    ("hold_id", "images", "stream", "attempt", "error"),
    kind="client",
)
STORE = Info("store", "One image is written to the store.", ("bytes", "error"))
CAPTURE = Info("capture", "The hold is charged.", ("hold_id", "units", "error"))
RELEASE = Info("release", "The hold is given back.", ("hold_id", "error"))
DRAW = Info(
    "draw",
    "A replica has the job.",
    (
        *("request_id", "account_id", "hold_id", "model", "images", "size", "steps"),
        "error",
    ),
    source="replica",
    kind="server",
)
QUEUE = Info(
    "queue",
    "A sample waits for its first step, for its prompt's encoding, too.",
    ("image", "error"),
    source="replica",
)
ENCODE = Info(
    "encode",
    "The pass of the text encoders that the prompt was in; none where its embedding was cached.",
    ("prompts",),
    source="replica",
)
STEPS = Info(
    "steps",
    "All steps of a sample, from the begin of the first to the end of the last.",
    ("image", "steps", "size", "batch", "device_s", "previews", "error"),
    source="replica",
)
DECODE = Info(
    "decode", "Latents to pixels (VAE), waiting for it included.", ("image", "error"), "replica"
)
FILE = Info(
    "file",
    "Pixels to a PNG, JPEG or WebP file, waiting for a thread included.",
    ("image", "bytes", "error"),
    source="replica",
)

ALL: tuple[Info, ...] = tuple(value for value in list(globals().values()) if type(value) is Info)
"""In the order of a request."""
