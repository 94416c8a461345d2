"""What happened to the samples of each size: running means, and histograms over all sizes.

Data flow: step batches and finished samples -> one meter per size -> `SizeStats`; and, without the
size, which clients choose -> `Recorder`. The board's lock guards it. Must not import torch.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from serve_app.engine.job import SizeStats, Timings
from serve_app.engine.schedule import Candidate, Shape
from serve_app.metrics import (
    DECODE_SECONDS,
    DENOISE_SECONDS,
    IMAGE_ENCODE_SECONDS,
    PROMPT_ENCODE_SECONDS,
    QUEUE_WAIT_SECONDS,
    SILENT,
    STEP_BATCH_OCCUPANCY,
    STEP_SECONDS,
    Recorder,
)

SIZES_MAX = 64  # clients choose sizes; metrics carry a series for each
STEP_TIME_WEIGHT = 0.1  # of the newest step in the running mean: follows a change in ~10 steps
NEWEST_WEIGHT = 0.1  # in the running means: they follow a change in about ten events


@dataclass
class StepClock:
    """What step batches have cost so far."""

    steps: int = 0
    batches: int = 0
    batch_s: float = 0.0
    """Running mean."""

    def count(self, samples: int, seconds: float) -> None:
        weight = STEP_TIME_WEIGHT if self.batches else 1.0
        self.batch_s += weight * (seconds - self.batch_s)
        self.steps += samples
        self.batches += 1


@dataclass
class _Mean:
    value: float = 0.0
    seen: bool = False

    def add(self, value: float) -> None:
        self.value += (NEWEST_WEIGHT if self.seen else 1.0) * (value - self.value)
        self.seen = True


@dataclass
class _Meter:
    images: int = 0
    batches: int = 0
    steps: int = 0
    step_time_s: _Mean = field(default_factory=_Mean)
    queued_s: _Mean = field(default_factory=_Mean)
    decode_s: _Mean = field(default_factory=_Mean)
    encode_image_s: _Mean = field(default_factory=_Mean)


class Meters:
    """One meter per size, least recently used dropped."""

    def __init__(self) -> None:
        self._meters: OrderedDict[Shape, _Meter] = OrderedDict()
        self.record: Recorder = SILENT

    def stepped(self, shape: Shape, samples: int, seconds: float) -> None:
        """A step batch is over."""
        meter = self._meter(shape)
        meter.batches += 1
        meter.steps += samples
        meter.step_time_s.add(seconds)
        self.record.observe(STEP_SECONDS, seconds)
        self.record.observe(STEP_BATCH_OCCUPANCY, samples)

    def finished(self, shape: Shape, timings: Timings) -> None:
        """An image is done."""
        meter = self._meter(shape)
        meter.images += 1
        meter.queued_s.add(timings.queued_s)
        meter.decode_s.add(timings.decode_s)
        meter.encode_image_s.add(timings.encode_image_s)
        self.record.observe(QUEUE_WAIT_SECONDS, timings.queued_s)
        self.record.observe(DENOISE_SECONDS, timings.denoise_s)
        self.record.observe(DECODE_SECONDS, timings.decode_s)
        self.record.observe(IMAGE_ENCODE_SECONDS, timings.encode_image_s)
        if timings.encode_prompt_s > 0:  # else it came from the cache
            self.record.observe(PROMPT_ENCODE_SECONDS, timings.encode_prompt_s)

    def stats(self, inside: Iterable[Candidate]) -> tuple[SizeStats, ...]:
        """A snapshot; `inside` are the samples that have steps left, sizes in order of pixels."""
        units: dict[Shape, int] = {}
        for one in inside:
            left = one.width * one.height * one.steps_left
            units[one.shape] = units.get(one.shape, 0) + left
        shapes = sorted({*self._meters, *units}, key=lambda shape: (shape[0] * shape[1], shape))
        return tuple(self._stats(shape, units.get(shape, 0)) for shape in shapes)

    def _stats(self, shape: Shape, units: int) -> SizeStats:
        meter = self._meters.get(shape) or _Meter()
        return SizeStats(
            height=shape[0],
            width=shape[1],
            compute_units_queued=units,
            images_done=meter.images,
            step_batches_done=meter.batches,
            occupancy=meter.steps / meter.batches if meter.batches else 0.0,
            step_time_s=meter.step_time_s.value,
            queued_s=meter.queued_s.value,
            decode_s=meter.decode_s.value,
            encode_image_s=meter.encode_image_s.value,
        )

    def _meter(self, shape: Shape) -> _Meter:
        meter = self._meters.setdefault(shape, _Meter())
        self._meters.move_to_end(shape)
        if len(self._meters) > SIZES_MAX:
            self._meters.popitem(last=False)
        return meter
