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
from serve_app.engine.check import check_job
from serve_app.engine.device import DeviceThread
from serve_app.engine.graphs import CudaRecorder, Recorder
from serve_app.engine.job import (
    EngineStats,
    Event,
    Finished,
    GenerationJob,
    GenerationResult,
    ModelInfo,
)
from serve_app.engine.lane import Lane
from serve_app.engine.measure import device_key, measure
from serve_app.engine.optimize import optimize, prepare_thread
from serve_app.engine.planner import Planner
from serve_app.engine.sampler import Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptEmbedding, PromptEncoder
from serve_app.engine.warmup import capture_ahead, compile_ahead
from serve_app.engine.watchdog import Watchdog

DRAIN_S = 60.0  # what `async with` grants running jobs: a FLUX.1-dev image takes a few seconds
WARM_UP = "warm up"  # the prompt that warms up


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
        recorder: Recorder | None = None,
    ) -> None:
        """Serve a pipeline that is already on its device. The engine owns it from here on.

        Args:
            pipeline: FLUX.
            config: None takes the defaults.
            text_tokens_max: caps the tokens of the T5 encoder; None takes what suits the model.
            compile_backend: of torch.compile.
            recorder: records step batches; None takes CUDA's where `cuda_graphs` asks for it.

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
        if config.optimize.cuda_graphs:
            recorder = recorder or CudaRecorder(config.device)
        self._sampler = Sampler(pipeline, config.device, self._compiled, recorder)
        self._board = Board(config.queue_max_samples, self._planner)
        self._device = self._start_device(config)

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
        check_job(job, self.info, self.memory)
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
        graphs, decoding = self._sampler.graphs, self._device.decoding
        return dataclasses.replace(
            self._board.stats(),
            recompiles=self._compiled.recompiles,
            eager_calls=self._compiled.eager_calls,
            graph_replays=graphs.replays if graphs else 0,
            graph_misses=graphs.misses if graphs else 0,
            decodes_alone=decoding.alone,
            out_of_memory=self._device.retrying.out_of_memory + decoding.out_of_memory,
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

        Compiles what they need, records the CUDA graphs asked for, draws a single-step image of
        each, and measures which step batches pay. Sizes left out run what fits of the compiled
        code, or without.
        """
        sizes = list(sizes)
        shapes = [(height, width) for width, height in sizes]
        if self._compiled.active or self.memory.graph_samples:
            await self._between_steps(partial(self._prepare_steps, shapes))
        for width, height in sizes:
            job_id = f"warm-up-{width}x{height}"
            await self.generate(
                GenerationJob(job_id, WARM_UP, width, height, steps=1, guidance=0.0, seeds=(0,))
            )
        if sizes and self._measure_s:
            await self._between_steps(partial(self._measure, shapes))
        self._compiled.freeze()
        if self._sampler.graphs:
            self._sampler.graphs.freeze()

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

    def _start_device(self, config: EngineConfig) -> DeviceThread:
        prepare = partial(self._prepare_thread, config.torch_threads)
        watchdog = partial(Watchdog, config.stall_first_s, config.stall_factor)
        lane = None
        if config.optimize.overlap_decode:
            lane = Lane(config.device, self._board.changed, watchdog(), prepare)
        return DeviceThread(
            self._board,
            self._encoder,
            self._sampler,
            watchdog(),
            self._images,
            prepare,
            lane,
            self.memory.fits_beside,
        )

    def _prepare_thread(self, torch_threads: int) -> None:
        load.set_torch_threads(torch_threads)
        if self._compiled.active:
            prepare_thread()

    async def _between_steps(self, errand: Callable[[], None]) -> None:
        await asyncio.wrap_future(self._device.run_between_steps(errand))

    def _prepare_steps(self, shapes: Sequence[Shape]) -> None:
        """On the device thread: compile what these shapes need, and record graphs."""
        [vectors] = self._encoder.encode([WARM_UP])
        board, sampler, decoding = self._board, self._sampler, self._device.decoding
        if self._compiled.active:
            compile_ahead(self._compiled, board, sampler, decoding.rehearse, vectors, shapes)
        decoding.wait_idle()  # nothing else may use the device while it records
        capture_ahead(board, sampler, vectors, self.memory.graph_samples)

    def _measure(self, shapes: Sequence[Shape]) -> None:
        """On the device thread: learn the costs of sizes that are warm."""
        [vectors] = self._encoder.encode([WARM_UP])
        measure(self._board, self._sampler, vectors, shapes, self._measure_s)
        self._planner.keep()
