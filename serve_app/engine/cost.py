"""What device time costs: seconds of a step batch and of a decode, learned as the engine runs.

Data flow: measured times -> running medians per shape and batch size -> `step_s`, `decode_s` for
any shape and size. What has not been measured is predicted from FLUX's FLOPs, scaled by what has.
Must not import torch or read a clock. Not safe for threads: the board's lock guards it.
"""

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from serve_app.engine.schedule import Shape

SECONDS_MIN = 1e-9  # nothing is free: throughput is one over it
WINDOW = 15  # newest times that a median is taken over: follows a change within as many steps
TRUSTED = 3  # measurements before a median counts: one or two may hold a compile or a hiccup

# TFLOP of one FLUX.1 transformer step: linear layers and attention, fitted to 6.81 at 512 tokens
# and 69.47 at 4352 (FlopCounterMode); 408.8 counted and 407.3 predicted at 16640.
LINEAR_TFLOP_PER_TOKEN = 0.012946
ATTENTION_TFLOP_PER_TOKEN2 = 6.93e-7
# What a step costs whatever is in it (weights to read, launches, unfilled waves), in TFLOP: step
# times of FLUX.1 on an H100 are affine in FLOPs within 5 %, and this is their intercept.
STEP_OVERHEAD_TFLOP = 9.5
# The VAE decoder counts 10 TFLOP per megapixel but is bound by memory: about 3x its FLOPs.
DECODE_TFLOP_PER_PIXEL = 30e-6


class Medians:
    """Running medians of measured times."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._quick: dict[int, float] = {}

    def record(self, key: int, seconds: float) -> None:
        times = self._times.setdefault(key, deque(maxlen=WINDOW))
        times.append(seconds)
        self._medians[key] = statistics.median(times)
        self._quick[key] = sorted(times)[len(times) // 4]

    def count(self, key: int) -> int:
        return len(self._times.get(key, ()))

    def __getitem__(self, key: int) -> float:
        return self._medians[key]

    def quick(self, key: int) -> float:
        """The lower quartile: other work on the machine only ever adds to a time."""
        return self._quick[key]

    def keys(self) -> list[int]:
        return sorted(self._medians)

    def trusted(self) -> list[int]:
        """Keys measured often enough; before there are any, the one measured most."""
        keys = [key for key, times in self._times.items() if len(times) >= TRUSTED]
        return sorted(keys) or sorted(self._times, key=self.count, reverse=True)[:1]

    def dump(self) -> dict[str, float]:
        return {str(key): self._medians[key] for key in self._medians if self.count(key) >= TRUSTED}


class CostModel:
    """Seconds of device time, for one model on one device."""

    def __init__(self, token_px: int, text_tokens: int) -> None:
        """`token_px` is the edge of the square of pixels that one image token stands for."""
        self._token_px = token_px
        self._text_tokens = text_tokens
        self._steps: dict[Shape, Medians] = {}
        self._decodes: dict[Shape, Medians] = {}
        self._known: dict[tuple[Shape, int], float] = {}
        self.version = 0
        """Changes with every measurement."""

    @property
    def measured(self) -> bool:
        """Whether `step_s` are seconds; before the first measurement they are only proportions."""
        return bool(self._steps)

    def tokens(self, shape: Shape) -> int:
        """Tokens of one sample, text included."""
        return shape[0] * shape[1] // self._token_px**2 + self._text_tokens

    def record_step(self, shape: Shape, samples: int, seconds: float) -> None:
        """Learn from one step batch."""
        self._steps.setdefault(shape, Medians()).record(samples, seconds)
        self._changed()

    def record_decode(self, shape: Shape, seconds: float) -> None:
        """Learn from one decoded image."""
        self._decodes.setdefault(shape, Medians()).record(1, seconds)
        self._changed()

    def measurements(self, shape: Shape, samples: int) -> int:
        """How often this step batch has been timed lately."""
        return self._steps[shape].count(samples) if shape in self._steps else 0

    def step_s(self, shape: Shape, samples: int) -> float:
        """Seconds of one step batch."""
        key = (shape, samples)
        if key not in self._known:
            self._known[key] = max(SECONDS_MIN, self._step_s(shape, samples))
        return self._known[key]

    def quick_s(self, shape: Shape, samples: int) -> float:
        """Seconds of one step batch when nothing interferes: for comparing batch sizes."""
        medians = self._steps.get(shape)
        if medians is None:
            return self.step_s(shape, samples)
        return max(SECONDS_MIN, self._between(medians, shape, samples, medians.quick))

    def decode_s(self, shape: Shape) -> float:
        """Seconds from latents to pixels."""
        key = (shape, 0)
        if key not in self._known:
            self._known[key] = self._decode_s(shape)
        return self._known[key]

    def dump(self) -> dict[str, Any]:
        """Plain types, for a cache on disk."""
        tables = (("steps", self._steps), ("decodes", self._decodes))
        return {
            name: {f"{w}x{h}": table[(h, w)].dump() for h, w in table} for name, table in tables
        }

    def restore(self, dumped: dict[str, Any]) -> None:
        """Take over what `dump` gave; times measured from here on soon outweigh it."""
        for name, record in (("steps", self.record_step), ("decodes", self._record_decodes)):
            for size, medians in dumped.get(name, {}).items():
                width, height = (int(edge) for edge in size.split("x"))
                for samples, seconds in medians.items():
                    for _ in range(TRUSTED):
                        record((height, width), int(samples), float(seconds))

    def _record_decodes(self, shape: Shape, _samples: int, seconds: float) -> None:
        self.record_decode(shape, seconds)

    def _changed(self) -> None:
        self._known.clear()
        self.version += 1

    def _step_seed(self, shape: Shape, samples: int) -> float:
        tokens = self.tokens(shape)
        one = LINEAR_TFLOP_PER_TOKEN * tokens + ATTENTION_TFLOP_PER_TOKEN2 * tokens**2
        return STEP_OVERHEAD_TFLOP + samples * one

    def _step_s(self, shape: Shape, samples: int) -> float:
        medians = self._steps.get(shape)
        if medians is None:
            return self._step_seed(shape, samples) * self._scale(
                table[key] / self._step_seed(other, key)
                for other, table in self._steps.items()
                for key in table.trusted()
            )
        return self._between(medians, shape, samples, medians.__getitem__)

    def _between(
        self, medians: Medians, shape: Shape, samples: int, known: Callable[[int], float]
    ) -> float:
        """Seconds of a batch of this size from those of the sizes that were measured."""
        sizes = medians.trusted()
        if samples in sizes:
            return known(samples)
        below = [size for size in sizes if size < samples]
        above = [size for size in sizes if size > samples]
        if below and above:
            low, high = below[-1], above[0]
            part = (samples - low) / (high - low)
            return known(low) + part * (known(high) - known(low))
        nearest = below[-1] if below else above[0]
        return known(nearest) * self._step_seed(shape, samples) / self._step_seed(shape, nearest)

    def _decode_s(self, shape: Shape) -> float:
        if shape in self._decodes:
            return self._decodes[shape][1]
        pixels = shape[0] * shape[1]
        if self._decodes:
            return pixels * self._scale(
                table[1] / (h * w) for (h, w), table in self._decodes.items()
            )
        return (
            DECODE_TFLOP_PER_PIXEL
            * pixels
            * self._scale(
                table[key] / self._step_seed(other, key)
                for other, table in self._steps.items()
                for key in table.trusted()
            )
        )

    @staticmethod
    def _scale(ratios: Iterable[float]) -> float:
        found = list(ratios)
        return statistics.median(found) if found else 1.0
