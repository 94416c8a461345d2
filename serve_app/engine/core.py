"""What every engine does: asyncio outside, one device thread and a pool of encoders inside.

Data flow: `submit(job)` -> board (`board.py`) -> device thread (`device.py`) -> events back on the
caller's event loop. Nothing here blocks that loop. `engine.py` adds FLUX, `simulated.py` only what
FLUX would take. Must not import torch, Ray or anything about HTTP.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from serve_app.config import EngineConfig
from serve_app.engine import codec
from serve_app.engine.board import Board
from serve_app.engine.check import check_job
from serve_app.engine.device import DeviceThread
from serve_app.engine.images import Images
from serve_app.engine.job import (
    EngineStats,
    Event,
    Finished,
    GenerationJob,
    GenerationResult,
    ModelInfo,
    OutputFormat,
)
from serve_app.engine.parts import Encoder, PromptEmbedding, Sampler
from serve_app.engine.planner import Planner
from serve_app.engine.schedule import Shape
from serve_app.engine.stages import SampleStages
from serve_app.engine.watchdog import Watchdog
from serve_app.metrics import Recorder

if TYPE_CHECKING:
    from serve_app.engine.lane import Lane  # loads torch

DRAIN_S = 60.0  # what `async with` grants running jobs: a FLUX.1-dev image takes a few seconds


class EngineCore(ABC):
    """One replica of a model: takes jobs, gives encoded images.

    Use it from one event loop or several; `async with` closes it.
    """

    def __init__(
        self,
        info: ModelInfo,
        config: EngineConfig,
        planner: Planner,
        encoder: Encoder,
        sampler: Sampler,
        prepare_thread: Callable[[], None],
    ) -> None:
        """Start the device thread; `prepare_thread` is what it does first."""
        self.info = info
        self._planner = planner
        self._pool = ThreadPoolExecutor(config.encode_threads, "flux-image")
        self._board = Board(config.queue_max_samples, planner)
        self._device = DeviceThread(
            self._board,
            encoder,
            sampler,
            Watchdog(config.stall_first_s, config.stall_factor),
            Images(self._board, self._pool, self._encode_image),
            prepare_thread,
            self._make_lane(config),
            self._fits_beside,
        )

    async def submit(
        self,
        job: GenerationJob,
        prompt_embedding: PromptEmbedding | None = None,
        stages: list[SampleStages] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Run a job: `Queued`, then `Step`s, `Preview`s if asked for and one `Finished` per seed.

        Events come in the order of doing; those of one sample in their own order.

        Closing the iterator, or cancelling the task that waits in it, drops the job's samples at
        the next step boundary.

        Args:
            job: what to draw.
            prompt_embedding: from `encode_prompts`; without it the engine encodes `job.prompt`
                itself, together with all others that wait.
            stages: gets one for each sample, which tells how far that came, to the end.

        Raises:
            InvalidValue: the model cannot draw that size, or a number is out of range.
            Overloaded: the queue is full, or too long for the job to be finished in time.
            Draining: the engine is closing. Unavailable: it is dead.
            GenerationFailed: the model failed. DeadlineExceeded: `timeout_s` has passed.
            JobCancelled: somebody called `cancel`.
        """
        check_job(job, self.info, self._samples_that_fit(job.height, job.width))
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

        def deliver(item: Event | Exception | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, item)

        run, queued = self._board.admit(job, deliver, prompt_embedding, stages)
        try:
            yield queued
            while (item := await events.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._board.end(run, None)

    async def generate(
        self,
        job: GenerationJob,
        prompt_embedding: PromptEmbedding | None = None,
        stages: list[SampleStages] | None = None,
    ) -> GenerationResult:
        """Run a job and return its images in the order of its seeds; raises as `submit`."""
        async with aclosing(self.submit(job, prompt_embedding, stages)) as events:
            images = [event async for event in events if isinstance(event, Finished)]
        return GenerationResult(tuple(sorted(images, key=lambda image: image.index)))

    async def encode_prompts(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """Have many prompts encoded in one pass of the text encoders, before the next step.

        The handles can be given to `submit` at once: waiting here for the encoders would cost each
        job a step of a busy device. Should the encoders fail, `submit` raises it.

        Raises:
            Draining: the engine is closing. Unavailable: it is dead.
        """
        return self._device.encode(prompts)

    def cancel(self, job_id: str) -> bool:
        """Drop a job at the next step boundary; its events end with `JobCancelled`.

        Returns False when no job of that id is inside.
        """
        return self._board.cancel(job_id)

    def record_to(self, recorder: Recorder) -> None:
        """Send histograms of what happens from now on to a recorder."""
        with self._board.changed:
            self._board.meters.record = recorder

    def stats(self) -> EngineStats:
        """A snapshot; cheap enough for every metrics interval."""
        return self._board.stats()

    def estimate(self, job: GenerationJob) -> float | None:
        """Seconds until a job would be done, were it submitted now and no other after it.

        None before the engine has timed a step.
        """
        expected = self._board.estimate(job)
        return expected.finish_s if expected else None

    def cost_s(self, job: GenerationJob) -> float | None:
        """Device seconds of a job, alone; None before the engine has timed a step."""
        return self._board.cost_s(job)

    def healthy(self) -> bool:
        """Whether the device thread lives, works, and gets ahead while there is work."""
        return self._device.trouble() is None

    def check(self) -> None:
        """Do nothing when healthy.

        Raises:
            RuntimeError: says what is wrong; the replica should be replaced.
        """
        trouble = self._device.trouble()
        if trouble:
            raise RuntimeError(f"engine unhealthy: {trouble}")

    @abstractmethod
    async def warm_up(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Prepare (width, height)s, so that no client waits for the first use."""

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new jobs, give the others `drain_s` seconds, end the rest with `Draining`."""
        await asyncio.to_thread(self._device.close, drain_s)
        self._pool.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(0.0 if error else DRAIN_S)

    async def _between_steps(self, errand: Callable[[], None]) -> None:
        await asyncio.wrap_future(self._device.run_between_steps(errand))

    def _encode_image(self, pixels: Any, output_format: OutputFormat, compression: int) -> bytes:
        """What the sampler decoded, as a file. A thread of the pool."""
        return codec.encode(pixels, output_format, compression)

    def _make_lane(self, config: EngineConfig) -> "Lane | None":
        """What decodes beside the steps, if anything does; the board is there already."""
        return None

    def _fits_beside(self, shape: Shape) -> bool:
        """Whether memory suffices to decode a size beside a step."""
        return False

    @abstractmethod
    def _samples_that_fit(self, height: int, width: int) -> int:
        """Largest step batch that memory allows; 0 when not even one image fits."""
