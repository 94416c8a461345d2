"""SimulatedEngine: the engine without a model, for load and autoscaling tests.

Data flow: as in `core.py`: board, planner, schedule, device thread and pool are the real ones. Only
encoder and sampler are replaced: they sleep for what `simulated_cost.py` says and hand out
placeholders (`simulated_picture.py`). Must not import torch: many replicas start on one machine.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from serve_app.config import EngineConfig
from serve_app.engine import simulated_picture
from serve_app.engine.budget import ladder
from serve_app.engine.core import EngineCore
from serve_app.engine.cost import TRUSTED
from serve_app.engine.job import OutputFormat
from serve_app.engine.planner import Planner
from serve_app.engine.simulated_cost import SimulatedCost
from serve_app.engine.simulated_picture import Placeholder
from serve_app.engine.source import check_made_up, model_info

logger = logging.getLogger(__name__)


FITS = 64  # the largest step batch that may be configured: memory is not simulated


class Clock:
    """Sleeps. What it overslept, a busy machine's fault, comes off the next time."""

    def __init__(self) -> None:
        self._overslept_s = 0.0

    def spend(self, seconds: float) -> None:
        left_s = seconds - self._overslept_s
        if left_s <= 0:
            self._overslept_s = -left_s
            return
        started_at = time.monotonic()
        time.sleep(left_s)
        self._overslept_s = min(seconds, time.monotonic() - started_at - left_s)


@dataclass(frozen=True)
class SimulatedVectors:
    prompt: str
    encode_s: float


@dataclass(eq=False)
class SimulatedSample:
    vectors: SimulatedVectors
    width: int
    height: int
    steps: int
    seed: int
    steps_done: int = 0
    latents: None = None
    preview_steps: tuple[int, ...] = ()
    preview: Placeholder | None = None

    @property
    def done(self) -> bool:
        return self.steps_done >= self.steps


class SimulatedEncoder:
    """Text encoders that only take their time; recent prompts are known, as in the real one."""

    def __init__(self, cost: SimulatedCost, clock: Clock, cache_entries: int) -> None:
        self._cost = cost
        self._clock = clock
        self._cache_entries = cache_entries
        self._known: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()  # `cached` may be called from any thread

    def encode(self, prompts: Sequence[str]) -> list[SimulatedVectors]:
        """One pass for the prompts that are not known."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if not self.cached(prompt)]
        pass_s = self._cost.encode_s(len(missing)) if missing else 0.0
        self._clock.spend(pass_s)
        with self._lock:
            for prompt in missing:
                self._known[prompt] = None
            while len(self._known) > self._cache_entries:
                self._known.popitem(last=False)
        return [SimulatedVectors(one, pass_s if one in missing else 0.0) for one in prompts]

    def cached(self, prompt: str) -> SimulatedVectors | None:
        """Look one prompt up. From any thread."""
        with self._lock:
            if prompt not in self._known:
                return None
            self._known.move_to_end(prompt)
        return SimulatedVectors(prompt, 0.0)


class SimulatedSampler:
    """A denoiser that only takes its time."""

    def __init__(self, cost: SimulatedCost, clock: Clock) -> None:
        self._cost = cost
        self._clock = clock

    def start(
        self,
        vectors: SimulatedVectors,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        seed: int,
    ) -> SimulatedSample:
        """As `Sampler.start`; guidance changes nothing."""
        return SimulatedSample(vectors, width, height, steps, seed)

    def step(self, samples: Sequence[SimulatedSample]) -> None:
        """Take as long as a step batch of this size does."""
        first = samples[0]
        self._clock.spend(self._cost.step_s((first.height, first.width), len(samples)))
        for sample in samples:
            sample.steps_done += 1
            if sample.steps_done in sample.preview_steps:
                note = f"step {sample.steps_done} of {sample.steps}"
                sample.preview = _placeholder(sample, note)

    def decode(self, sample: SimulatedSample) -> Placeholder:
        """Take as long as a decode."""
        self._clock.spend(self._cost.decode_s((sample.height, sample.width)))
        return _placeholder(sample, "")

    def decode_latents(self, latents: Placeholder, height: int, width: int) -> Placeholder:
        """Take as long as a decode, for the step that was kept."""
        self._clock.spend(self._cost.decode_s((height, width)))
        return latents


def _placeholder(sample: SimulatedSample, note: str) -> Placeholder:
    return Placeholder(sample.width, sample.height, sample.seed, sample.vectors.prompt, note)


class SimulatedEngine(EngineCore):
    """A FLUX that takes its time and draws nothing."""

    def __init__(
        self, source: str, config: EngineConfig | None = None, *, text_tokens_max: int | None = None
    ) -> None:
        """Simulate `simulated:DEVICE:MODEL`.

        Raises:
            ConfigError: there is no such source.
        """
        config = config or EngineConfig()
        _, device, _ = check_made_up(source).split(":")
        info = model_info(source, text_tokens_max)
        self.cost = SimulatedCost(device, info.text_tokens_max, config.simulation.time_scale)
        clock = Clock()
        super().__init__(
            info,
            config,
            Planner(config, info.size_multiple_px, info.text_tokens_max),
            SimulatedEncoder(self.cost, clock, config.prompt_cache_entries),
            SimulatedSampler(self.cost, clock),
            partial(logger.warning, "%s: no model is loaded, placeholders are drawn", source),
        )

    @classmethod
    def load(
        cls,
        source: str,
        config: EngineConfig | None = None,
        *,
        text_tokens_max: int | None = None,
    ) -> Self:
        """Start one, after the time that loading a model takes; raises as the constructor."""
        config = config or EngineConfig()
        check_made_up(source)
        time.sleep(config.simulation.load_s * config.simulation.time_scale)
        return cls(source, config, text_tokens_max=text_tokens_max)

    async def warm_up(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Know at once what steps of these (width, height)s cost; a real engine measures them."""
        costs, budget = self._planner.costs, self._planner.budget
        with self._board.changed:
            for width, height in sizes:
                shape = (height, width)
                for samples in ladder(budget.most(shape)):
                    for _ in range(TRUSTED):
                        costs.record_step(shape, samples, self.cost.step_s(shape, samples))
                costs.record_decode(shape, self.cost.decode_s(shape))

    def _encode_image(self, pixels: Any, output_format: OutputFormat, compression: int) -> bytes:
        return simulated_picture.encode(pixels, output_format, compression)

    def _samples_that_fit(self, height: int, width: int) -> int:
        return FITS
