"""Every metric: its name, kind, labels and meaning, and the interface that records one.

Data flow: engine, metering, storage, service and ingress call a `Recorder` ->
`deployments.rayrecorder` -> Ray's metrics agent -> Prometheus. docs/metrics.md is made from `ALL`.
Labels take few values each: models, routes, error codes; never a prompt, a key or a user. Imports
nothing of this package, nor Ray.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]
PREFIX = "flux_serve_"
"""Of all names. Ray warns of `:` in a name and will refuse it."""
EXPORT_PREFIX = "ray_"
"""Ray's metrics agent puts it before every name."""

HTTP_S = (0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
"""From a balance that was asked for to the longest job."""
JOB_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
STAGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""A step, a decode, a file, a write."""
SAMPLES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table. `name` lacks the prefixes."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    source: Literal["gateway", "replica"] = "gateway"

    @property
    def full_name(self) -> str:
        """As given to Ray."""
        return PREFIX + self.name

    @property
    def exported(self) -> str:
        """As Prometheus sees it; a histogram's series add `_bucket`, `_count` and `_sum`."""
        return EXPORT_PREFIX + self.full_name


class Recorder(Protocol):
    """Takes what happened. From any thread; cheap, never blocking, never raising for a value."""

    def count(self, metric: Metric, value: float = 1, **labels: str) -> None:
        """Add to a counter; 0 adds nothing."""
        ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """One value of a histogram."""
        ...

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """What a gauge shows from now on."""
        ...


class Silent:
    """A `Recorder` for whoever does not measure: an engine used alone, a test."""

    def count(self, metric: Metric, value: float = 1, **labels: str) -> None: ...

    def observe(self, metric: Metric, value: float, **labels: str) -> None: ...

    def set(self, metric: Metric, value: float, **labels: str) -> None: ...


SILENT = Silent()


def _gateway(
    kind: Kind, name: str, text: str, *labels: str, buckets: tuple[float, ...] = ()
) -> Metric:
    return Metric(name, kind, text, labels, buckets)


def _replica(kind: Kind, name: str, text: str, buckets: tuple[float, ...] = ()) -> Metric:
    return Metric(name, kind, text, ("model",), buckets, "replica")


REQUESTS = _gateway(
    "counter",
    "requests_total",
    "HTTP requests by route template; status 499 is a client that left.",
    *("route", "method", "status"),
)
REQUEST_SECONDS = _gateway(
    "histogram",
    "request_seconds",
    "From the request's head to the last byte of the reply.",
    "route",
    buckets=HTTP_S,
)
ERRORS = _gateway(
    "counter",
    "errors_total",
    "Error replies, and errors that ended a stream, by `code` (by `type` where the body has no "
    "code).",
    *("route", "code"),
)
REPLAYS = _gateway(
    "counter",
    "idempotent_replays_total",
    "Generations answered again under their idempotency key, drawn and charged before.",
)
JOBS = _gateway(
    "counter",
    "jobs_total",
    "Jobs sent to a model: `ok`, an error code, or `cancelled`; mode is `json` or `stream`.",
    *("model", "mode", "outcome"),
)
JOB_SECONDS = _gateway(
    "histogram",
    "job_seconds",
    "From sending a job to its last image, of jobs that went well.",
    *("model", "mode"),
    buckets=JOB_S,
)
FIRST_PREVIEW_SECONDS = _gateway(
    "histogram",
    "first_preview_seconds",
    "From sending a streamed job to its first preview.",
    "model",
    buckets=JOB_S,
)
FIRST_IMAGE_SECONDS = _gateway(
    "histogram",
    "first_image_seconds",
    "From sending a streamed job to its first image.",
    "model",
    buckets=JOB_S,
)
REPLICA_DEATHS = _gateway(
    "counter", "replica_deaths_total", "Replicas that died under a job.", "model"
)
IMAGES = _gateway("counter", "images_total", "Images delivered and charged.", "model")
UNITS_CAPTURED = _gateway(
    "counter", "compute_units_captured_total", "Compute units charged.", "model"
)
ACCOUNT_UNITS = _gateway(
    "counter",
    "account_compute_units_captured_total",
    "Compute units charged by account id; only with `metrics.by_account`.",
    "account",
)
HOLDS = _gateway("counter", "holds_total", "Holds made.", "model")
HOLDS_ENDED = _gateway(
    "counter",
    "holds_ended_total",
    "Holds that this gateway ended: `captured` or `released`.",
    *("model", "state"),
)
HOLDS_EXPIRED = _gateway(
    "counter",
    "holds_expired_total",
    "Holds that nobody ended in time: a gateway died, or the ledger was away.",
)
HOLDS_REFUNDED = _gateway(
    "counter",
    "holds_refunded_total",
    "Charges that this gateway gave back: another one had died before it sent the reply.",
)
UNITS_REFUNDED = _gateway(
    "counter", "compute_units_refunded_total", "Compute units of those charges."
)
HOLDS_OPEN = _gateway(
    "gauge", "holds_open", "Open holds on file, the same from every gateway: take the max.", "model"
)
UNITS_HELD = _gateway(
    "gauge", "compute_units_held", "Compute units in open holds, as `holds_open`.", "model"
)
LEDGER_IMBALANCE = _gateway(
    "gauge",
    "ledger_imbalance_compute_units",
    "Units that accounts hold beyond their open holds: 0, or the books are broken.",
)
LEDGER_UP = _gateway("gauge", "ledger_up", "1 when the ledger answered last time, else 0.")
LEDGER_SECONDS = _gateway(
    "histogram",
    "ledger_seconds",
    "An operation of the ledger, waiting for its turn included.",
    "operation",
    buckets=STAGE_S,
)
LEDGER_OUTAGES = _gateway(
    "counter", "ledger_outages_total", "Operations that found the ledger unavailable.", "operation"
)
STORE_PUT_SECONDS = _gateway(
    "histogram", "store_put_seconds", "Storing one image.", buckets=STAGE_S
)
STORE_FAILURES = _gateway(
    "counter",
    "store_failures_total",
    "Operations that the image store failed: `put`, `sign`, `read`, `delete`, `sweep`.",
    "operation",
)
IMAGES_SWEPT = _gateway("counter", "images_swept_total", "Expired images deleted.")
REPLICAS = _gateway(
    "gauge",
    "replicas",
    "Replicas of a model: `running`, `starting`, `stopping`, and the `target`; the same from "
    "every gateway.",
    *("model", "state"),
)

QUEUE_WAIT_SECONDS = _replica(
    "histogram",
    "queue_wait_seconds",
    "A sample's wait from admission to its first step, text encoding not counted.",
    JOB_S,
)
PROMPT_ENCODE_SECONDS = _replica(
    "histogram",
    "prompt_encode_seconds",
    "The text-encoder pass of a sample's prompt, where it was not cached.",
    STAGE_S,
)
STEP_SECONDS = _replica("histogram", "step_seconds", "One transformer call.", STAGE_S)
STEP_BATCH_OCCUPANCY = _replica(
    "histogram", "step_batch_occupancy", "Samples in one transformer call.", SAMPLES
)
STEPS = _replica("counter", "steps_total", "Steps of samples.")
STEP_BATCHES = _replica("counter", "step_batches_total", "Transformer calls.")
DENOISE_SECONDS = _replica(
    "histogram", "denoise_seconds", "All transformer calls that a sample took part in.", JOB_S
)
DECODE_SECONDS = _replica("histogram", "decode_seconds", "Decoding one image (VAE).", STAGE_S)
IMAGE_ENCODE_SECONDS = _replica(
    "histogram", "image_encode_seconds", "Making one file of the pixels.", STAGE_S
)
IMAGES_DRAWN = _replica("counter", "images_drawn_total", "Images drawn, delivered or not.")
DEVICE_SECONDS = _replica(
    "counter", "device_seconds_total", "Device time of steps and decodes: GPU-seconds."
)
SAMPLES_QUEUED = _replica("gauge", "samples_queued", "Samples that wait for their first step.")
SAMPLES_RUNNING = _replica("gauge", "samples_running", "Samples in the making.")
UNITS_QUEUED = _replica(
    "gauge", "compute_units_queued", "Compute units still to draw, of all that is inside."
)
BACKLOG_SECONDS = _replica(
    "gauge", "backlog_seconds", "Estimated device time of all that is inside."
)
RECOMPILES = _replica(
    "counter", "recompiles_total", "Compilations after the warm-up: clients waited for them."
)
EAGER_CALLS = _replica(
    "counter", "eager_calls_total", "Calls of sizes not warmed up, where anything is compiled."
)
GRAPH_REPLAYS = _replica("counter", "graph_replays_total", "Step batches done by a CUDA graph.")
GRAPH_MISSES = _replica(
    "counter", "graph_misses_total", "Step batches without a graph, where any was asked for."
)
DECODES_ALONE = _replica(
    "counter", "decodes_alone_total", "Decodes that had to have the device to themselves."
)
OUT_OF_MEMORY = _replica(
    "counter", "out_of_memory_total", "Calls that ran out of memory and were tried again in parts."
)
MEMORY_PEAK_BYTES = _replica(
    "gauge", "memory_peak_bytes", "Most GPU memory held so far; 0 on a CPU."
)

ALL: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if type(value) is Metric
)
"""In the order of this page."""
