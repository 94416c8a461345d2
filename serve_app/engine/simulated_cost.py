"""What FLUX.1 takes on a GPU that is not here: the tables behind `simulated:` sources.

Data flow: device and tokens -> seconds of a step batch, a decode, a text-encoder pass. The step
table is computed for an H100 in bf16 (wave quantisation; published times of FLUX.1-dev are 10 to
20 % above it), not measured by us; the other devices are factors of it. Must not import torch, read
a clock or sleep.
"""

from dataclasses import dataclass

import numpy as np

from serve_app.engine.cost import ATTENTION_TFLOP_PER_TOKEN2, LINEAR_TFLOP_PER_TOKEN
from serve_app.engine.cost import STEP_OVERHEAD_TFLOP as OVERHEAD_TFLOP
from serve_app.engine.schedule import Shape
from serve_app.errors import ConfigError

TOKEN_PX = 16
# 256x256, 384x384, 512x512, 768x768 and 1024x1024 with 256 text tokens.
TABLE_TOKENS = (512, 832, 1280, 2560, 4352)
STEP_MS = (24.0, 29.0, 36.0, 67.0, 122.0)
BATCHES = (1, 2, 4, 8)
GAINS = (  # throughput of a step batch of 1, 2, 4, 8 over a single sample's, for each of the above
    (1.0, 1.47, 1.82, 2.04),
    (1.0, 1.22, 1.46, 1.56),
    (1.0, 1.12, 1.22, 1.24),
    (1.0, 1.04, 1.09, 1.12),
    (1.0, 1.05, 1.09, 1.10),
)
DECODE_S_PER_PIXEL = 0.0899 / 1024**2  # published for an H200, eager
ENCODE_PASS_S = 0.010  # of T5-XXL: weights to read, launches
ENCODE_S_PER_TOKEN = 0.003 / 256  # and 2.4 TFLOP for each prompt of 256 tokens

DEVICES = {
    "h100": 1.0,
    # As many tensor cores; reading the 6.5 GB of modulation weights takes 0.6 ms less per step,
    # which is about the error of the table.
    "h200": 1.0,
    "l4": 8.2,  # 121 against 989 TFLOP/s dense bf16: an estimate
}


@dataclass(frozen=True)
class SimulatedCost:
    """Seconds of device time on a simulated device."""

    device: str
    text_tokens: int
    time_scale: float = 1.0
    """Seconds that a simulated second takes."""

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"simulated device {self.device!r}: there are {', '.join(DEVICES)}")

    def step_s(self, shape: Shape, samples: int) -> float:
        """Of one transformer call."""
        tokens = shape[0] * shape[1] / TOKEN_PX**2 + self.text_tokens
        per_tflop = [ms / _tflop(at) for at, ms in zip(TABLE_TOKENS, STEP_MS, strict=True)]
        alone_ms = _tflop(tokens) * np.interp(tokens, TABLE_TOKENS, per_tflop)
        gains = [np.interp(tokens, TABLE_TOKENS, column) for column in zip(*GAINS, strict=True)]
        gain = np.interp(samples, BATCHES, gains)
        return self._scaled(float(alone_ms * samples / gain) / 1000)

    def decode_s(self, shape: Shape) -> float:
        """From latents to pixels, of one image."""
        return self._scaled(DECODE_S_PER_PIXEL * shape[0] * shape[1])

    def encode_s(self, prompts: int) -> float:
        """Of one pass of the text encoders."""
        return self._scaled(ENCODE_PASS_S + prompts * self.text_tokens * ENCODE_S_PER_TOKEN)

    def job_s(self, shape: Shape, steps: int, samples: int = 1) -> float:
        """Of a job's steps and decodes, one sample at a time and alone on the device."""
        return samples * (steps * self.step_s(shape, 1) + self.decode_s(shape))

    def _scaled(self, seconds: float) -> float:
        return seconds * DEVICES[self.device] * self.time_scale


def _tflop(tokens: float) -> float:
    """Of a step with one sample, what costs the same whatever is in it included."""
    return OVERHEAD_TFLOP + LINEAR_TFLOP_PER_TOKEN * tokens + ATTENTION_TFLOP_PER_TOKEN2 * tokens**2
