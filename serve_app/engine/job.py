"""What enters and leaves an engine: frozen dataclasses of plain Python types.

They cross Ray handles, so they hold neither tensors nor PIL images. Must not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OutputFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True)
class GenerationJob:
    """One request to an engine: `len(seeds)` samples of one prompt and size."""

    job_id: str
    prompt: str
    width: int
    height: int
    steps: int
    guidance: float
    seeds: tuple[int, ...]
    output_format: OutputFormat = "png"
    output_compression: int = 100
    """0 to 100; quality of JPEG and WebP as in OpenAI's `output_compression`. PNG ignores it."""
    account: str = ""
    """For fair sharing between accounts."""
    timeout_s: float = 600.0
    """Time left when the job was sent; clocks of two machines are never compared."""
    previews: int = 0
    """Previews of each sample on its way; see `preview_steps`."""
    progress: bool = False
    """Whether `Step`s shall leave the replica; see `progress.EventFilter`."""
    images_only: bool = False
    """Whether only `Finished` shall leave the replica: whoever waits for a whole reply."""
    request_id: str = ""
    """For logs; clients may choose it, and choose it twice."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The span that it is drawn for, as W3C headers; see `tracing`."""

    @property
    def ids(self) -> dict[str, str]:
        """Whose job it is, as `extra` of a log line."""
        return {
            "request_id": self.request_id,
            "account_id": self.account,
            "hold_id": self.job_id,
        }


@dataclass(frozen=True)
class Timings:
    """Seconds that one sample spent in each stage."""

    queued_s: float
    encode_prompt_s: float
    denoise_s: float
    decode_s: float
    encode_image_s: float
    device_s: float = 0.0
    """Of the device's time: its part of each step batch, and its decode."""


@dataclass(frozen=True)
class Queued:
    """The job was admitted with `ahead` samples before it."""

    job_id: str
    ahead: int
    estimated_s: float | None = None
    """Seconds until all its samples are drawn; None before the engine has timed a step."""


@dataclass(frozen=True)
class Step:
    """Sample `index` finished step `step` (counted from 1) of `steps`."""

    job_id: str
    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """What sample `index` will probably look like: `number` counts its previews from 0."""

    job_id: str
    index: int
    number: int
    image: bytes = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """Sample `index` is an encoded image."""

    job_id: str
    index: int
    seed: int
    image: bytes = field(repr=False)
    timings: Timings


Event = Queued | Step | Preview | Finished


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """After which steps (counted from 1) to make previews: evenly spaced, never after the last.

    The last step gives the image itself, so there are at most `steps` - 1.
    """
    count = min(previews, steps - 1)
    parts = count + 1
    return tuple((2 * i * steps + parts) // (2 * parts) for i in range(1, parts))


@dataclass(frozen=True)
class GenerationResult:
    """All images of a job, in the order of its seeds."""

    images: tuple[Finished, ...]


@dataclass(frozen=True)
class SizeStats:
    """What happens to samples of one size; seconds are running means."""

    height: int
    width: int
    compute_units_queued: int
    """Pixels x steps still to do, queued and running."""
    images_done: int
    step_batches_done: int
    occupancy: float
    """Samples per step batch, mean since the start."""
    step_time_s: float
    """Of one transformer call."""
    queued_s: float
    """From admission to the first step, text encoding not counted."""
    decode_s: float
    encode_image_s: float


@dataclass(frozen=True)
class EngineStats:
    """A snapshot for health, autoscaling and metrics."""

    samples_queued: int
    samples_running: int
    compute_units_queued: int
    """Pixels x steps still to do, queued and running."""
    steps_done: int
    step_batches_done: int
    step_time_s: float
    """Running mean of one transformer call; 0.0 before the first."""
    busy_s: float = 0.0
    """Device time spent on steps and decodes since the start."""
    backlog_s: float = 0.0
    """Estimated device time of everything inside; 0.0 before anything was measured."""
    images_done: int = 0
    sizes: tuple[SizeStats, ...] = ()
    """Of sizes seen lately, smallest first."""
    recompiles: int = 0
    """Compilations since the warm-up: clients waited for them; should stay 0."""
    eager_calls: int = 0
    """Calls of sizes that had not been warmed up, where anything is compiled."""
    graph_replays: int = 0
    """Step batches that a CUDA graph did, since the warm-up."""
    graph_misses: int = 0
    """Step batches that had no graph, where any was asked for."""
    decodes_alone: int = 0
    """Decodes that found no memory beside a step, where they may be there."""
    out_of_memory: int = 0
    """Calls that ran out of memory and were tried again in parts."""
    memory_peak_bytes: int = 0
    """Most GPU memory held so far; 0 on a CPU."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model folder says about itself; shown by `GET /v1/models/{id}`."""

    size_multiple_px: int
    """Width and height must be multiples of it: VAE scale factor x 2 (2x2 packing)."""
    text_tokens_max: int
    """Tokens of the T5 encoder; longer prompts are cut."""
    guidance: bool
    """Whether the transformer takes a guidance scale."""


class JobCancelled(Exception):
    """Ends the events of a job that `cancel` was called for; no failure, so not an `AppError`."""
