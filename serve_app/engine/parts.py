"""What the step engine asks of a model: an encoder of prompts and a sampler, as protocols.

Data flow: the board, the device thread and the pool know a model only by these. `text.py` and
`sampler.py` are the real ones, `simulated_model.py` the one that only takes its time. Must not
import torch: a simulated replica starts without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve_app.errors import AppError

PASS_PROMPTS_MAX = 32  # prompts per encoder pass; bounds activation memory of T5-XXL


class NonFiniteLatents(Exception):
    """The model produced NaN or infinity: a picture of it would be black."""


class Vectors(Protocol):
    """One encoded prompt."""

    @property
    def prompt(self) -> str: ...

    @property
    def encode_s(self) -> float:
        """Seconds of the encoder pass that they came from; 0.0 when they came from the cache."""
        ...


@dataclass(eq=False)
class PromptEmbedding:
    """A prompt that the engine encodes, or has encoded: a handle that never leaves its process.

    It can be submitted with a job at once. The device thread fills it in before its next step, so
    that the job joins that very step instead of waiting for one to see its embedding come back.
    """

    prompt: str
    vectors: Vectors | None = field(default=None, repr=False)
    failure: AppError | None = None
    passed: tuple[float, float, int] | None = None
    """Begin and end of its encoder pass by `time.monotonic()`, and the prompts in it; None for a
    prompt that was known."""

    @property
    def pending(self) -> bool:
        return self.vectors is None and self.failure is None


class Encoder(Protocol):
    """Prompts to vectors."""

    def encode(self, prompts: Sequence[str]) -> Sequence[Vectors]:
        """In their order; device thread only."""
        ...

    def cached(self, prompt: str) -> Vectors | None:
        """Look one prompt up. From any thread."""
        ...


class Sample(Protocol):
    """One image in the making."""

    width: int
    height: int
    steps: int
    steps_done: int
    latents: Any
    preview_steps: tuple[int, ...]
    preview: Any
    """What a preview can be made of, if the step just done is one of `preview_steps`."""

    @property
    def done(self) -> bool: ...


class Sampler(Protocol):
    """Vectors to pixels. What it makes of them is its own affair: `Any` here."""

    def start(
        self, vectors: Any, width: int, height: int, steps: int, guidance: float, seed: int
    ) -> Sample: ...

    def step(self, samples: Sequence[Any]) -> None:
        """Advance every sample by one step; sizes must be equal."""
        ...

    def decode(self, sample: Any) -> Any:
        """Something that the image encoder of the engine understands.

        Raises:
            NonFiniteLatents: there is no picture in it.
        """
        ...

    def decode_latents(self, latents: Any, height: int, width: int) -> Any:
        """The same from `latents` or a kept `preview`."""
        ...
