"""The engine as callers see it: asyncio outside, one device thread and a pool of encoders inside.

Data flow: `submit(job)` -> board (`board.py`) -> device thread (`device.py`) -> events back on the
caller's event loop. Nothing here blocks that loop. Must not import Ray or anything about HTTP.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self

from diffusers import FluxPipeline

from serve_app.config import EngineConfig
from serve_app.engine import load, memory
from serve_app.engine.board import Board
from serve_app.engine.device import DeviceThread
from serve_app.engine.job import (
    EngineStats,
    Event,
    Finished,
    GenerationJob,
    GenerationResult,
    ModelInfo,
)
from serve_app.engine.measure import device_key, measure
from serve_app.engine.optimize import optimize, prepare_thread
from serve_app.engine.planner import Planner
from serve_app.engine.sampler import Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptEmbedding, PromptEncoder
from serve_app.engine.warmup import compile_ahead
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import InvalidValue

DRAIN_S = 60.0  # what `async with` grants running jobs: a FLUX.1-dev image takes a few seconds
WARM_UP = "warm up"  # the prompt that warms up
SEED_LIMIT = 2**64  # torch.Generator takes 64 bits


class Engine:
    """FLUX, one replica of it: takes jobs, gives encoded images.

    Use it from one event loop or several; `async with` closes it.
    """

    def __init__(
        self,
        pipeline: FluxPipeline,
        config: EngineConfig | None = None,
        *,
        text_tokens_max: int | None = None,
        compile_backend: str = "inductor",
    ) -> None:
        """Serve a pipeline that is already on its device. The engine owns it from here on.

        Raises:
            ConfigError: this machine lacks what a switch in `config.optimize` needs.
        """
        config = config or EngineConfig()
        self._compiled = optimize(pipeline, config, compile_backend)
        self.info: ModelInfo = load.model_info(pipeline, text_tokens_max)
        self.memory = memory.budget(pipeline, self.info.text_tokens_max, config)
        self._images = ThreadPoolExecutor(config.encode_threads, "flux-image")
        self._planner = Planner(
            config,
            self.info.size_multiple_px,
            self.info.text_tokens_max,
            device_key(pipeline, config),
            lambda shape: self.memory.samples_max(*shape),
        )
        self._device_name = config.device
        self._measure_s = config.budget_measure_s
        self._encoder = PromptEncoder(
            pipeline, self.info.text_tokens_max, config.prompt_cache_entries
        )
        self._sampler = Sampler(pipeline, config.device, self._compiled)
        self._board = Board(config.queue_max_samples, self._planner)
        self._device = DeviceThread(
            self._board,
            self._encoder,
            self._sampler,
            Watchdog(config.stall_first_s, config.stall_factor),
            self._images,
            prepare_thread=partial(self._prepare_thread, config.torch_threads),
        )

    @classmethod
    def load(
        cls,
        source: str,
        config: EngineConfig | None = None,
        *,
        text_tokens_max: int | None = None,
    ) -> Self:
        """Load a model and start its engine; blocks for as long as loading takes.

        Args:
            source: `embedded:flux-mini`, a diffusers folder, a hub id, or `random:...`.
            config: device, precision, threads, batch and queue sizes; None takes the defaults.
            text_tokens_max: caps the tokens of the T5 encoder; None takes what suits the model.

        Raises:
            ConfigError: nothing loadable at `source`, or no such device.
        """
        config = config or EngineConfig()
        load.set_torch_threads(config.torch_threads)
        pipeline = load.load_pipeline(source, config.device, config.precision, config.offload)
        return cls(pipeline, config, text_tokens_max=text_tokens_max)

    async def submit(
        self, job: GenerationJob, prompt_embedding: PromptEmbedding | None = None
    ) -> AsyncGenerator[Event, None]:
        """Run a job: `Queued`, then `Step`s, `Preview`s if asked for and one `Finished` per seed.

        Events come in the order of doing; those of one sample in their own order.

        Closing the iterator, or cancelling the task that waits in it, drops the job's samples at
        the next step boundary.

        Args:
            job: what to draw.
            prompt_embedding: from `encode_prompts`; without it the engine encodes `job.prompt`
                itself, together with all others that wait.

        Raises:
            InvalidValue: the model cannot draw that size, or a number is out of range.
            Overloaded: the queue is full, or too long for the job to be finished in time.
            Draining: the engine is closing. Unavailable: it is dead.
            GenerationFailed: the model failed. DeadlineExceeded: `timeout_s` has passed.
            JobCancelled: somebody called `cancel`.
        """
        self._check_job(job)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

        def deliver(item: Event | Exception | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, item)

        run, queued = self._board.admit(job, deliver, prompt_embedding)
        try:
            yield queued
            while (item := await events.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._board.end(run, None)

    async def generate(
        self, job: GenerationJob, prompt_embedding: PromptEmbedding | None = None
    ) -> GenerationResult:
        """Run a job and return its images in the order of its seeds; raises as `submit`."""
        async with aclosing(self.submit(job, prompt_embedding)) as events:
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

    def stats(self) -> EngineStats:
        """A snapshot; cheap enough for every metrics interval."""
        return dataclasses.replace(
            self._board.stats(),
            recompiles=self._compiled.recompiles,
            eager_calls=self._compiled.eager_calls,
            out_of_memory=self._device.retrying.out_of_memory,
            memory_peak_bytes=memory.peak_bytes(self._device_name),
        )

    def estimate(self, job: GenerationJob) -> float | None:
        """Seconds until a job would be done, were it submitted now and no other after it.

        None before the engine has timed a step.
        """
        expected = self._board.estimate(job)
        return expected.finish_s if expected else None

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

    async def warm_up(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Prepare (width, height)s, so that no client waits for the first use.

        Compiles what they need, draws a single-step image of each, and measures which step batches
        pay. Sizes left out run what fits of the compiled code, or without.
        """
        sizes = list(sizes)
        shapes = [(height, width) for width, height in sizes]
        if self._compiled.active:
            await self._between_steps(partial(self._compile_ahead, shapes))
        for width, height in sizes:
            job_id = f"warm-up-{width}x{height}"
            await self.generate(
                GenerationJob(job_id, WARM_UP, width, height, steps=1, guidance=0.0, seeds=(0,))
            )
        if sizes and self._measure_s:
            await self._between_steps(partial(self._measure, shapes))
        self._compiled.freeze()

    async def close(self, drain_s: float = 0.0) -> None:
        """Refuse new jobs, give the others `drain_s` seconds, end the rest with `Draining`."""
        await asyncio.to_thread(self._device.close, drain_s)
        self._images.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close(0.0 if error else DRAIN_S)

    def _prepare_thread(self, torch_threads: int) -> None:
        load.set_torch_threads(torch_threads)
        if self._compiled.active:
            prepare_thread()

    async def _between_steps(self, errand: Callable[[], None]) -> None:
        await asyncio.wrap_future(self._device.run_between_steps(errand))

    def _compile_ahead(self, shapes: Sequence[Shape]) -> None:
        """On the device thread: nothing of these shapes has to be compiled after it."""
        [vectors] = self._encoder.encode([WARM_UP])
        compile_ahead(self._compiled, self._board, self._sampler, vectors, shapes)

    def _measure(self, shapes: Sequence[Shape]) -> None:
        """On the device thread: learn the costs of sizes that are warm."""
        [vectors] = self._encoder.encode([WARM_UP])
        measure(self._board, self._sampler, vectors, shapes, self._measure_s)
        self._planner.keep()

    def _check_job(self, job: GenerationJob) -> None:
        multiple = self.info.size_multiple_px
        if job.width % multiple or job.height % multiple or min(job.width, job.height) < multiple:
            raise InvalidValue(f"Width and height must be multiples of {multiple}.").at("size")
        if self.memory.samples_max(job.height, job.width) == 0:
            raise InvalidValue("The memory of this model's machine cannot hold that size.").at(
                "size"
            )
        if job.steps < 1:
            raise InvalidValue("At least one step is needed.").at("num_inference_steps")
        if not job.seeds:
            raise InvalidValue("At least one image is needed.").at("n")
        if not all(0 <= seed < SEED_LIMIT for seed in job.seeds):
            raise InvalidValue("Seeds are whole numbers from 0 to 2^64 - 1.").at("seed")
