"""FLUX behind the engine's interface: loads it, warms it up, counts what it compiled.

Data flow: `source` -> pipeline (`load.py`) -> encoder and sampler -> `core.py`, which does the
rest. Must not import Ray or anything about HTTP.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Self

from diffusers import FluxPipeline

from serve_app.config import EngineConfig
from serve_app.engine import load, memory
from serve_app.engine.core import EngineCore
from serve_app.engine.graphs import CudaRecorder, Recorder
from serve_app.engine.job import EngineStats, GenerationJob
from serve_app.engine.lane import Lane
from serve_app.engine.measure import device_key, measure
from serve_app.engine.optimize import optimize, prepare_thread
from serve_app.engine.planner import Planner
from serve_app.engine.sampler import Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptEncoder
from serve_app.engine.warmup import capture_ahead, compile_ahead
from serve_app.engine.watchdog import Watchdog

WARM_UP = "warm up"  # the prompt that warms up


class Engine(EngineCore):
    """FLUX on a device of this machine."""

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
        info = load.model_info(pipeline, text_tokens_max)
        self.memory = memory.budget(pipeline, info.text_tokens_max, config)
        self._device_name = config.device
        self._measure_s = config.budget_measure_s
        self._encoder = PromptEncoder(pipeline, info.text_tokens_max, config.prompt_cache_entries)
        if config.optimize.cuda_graphs:
            recorder = recorder or CudaRecorder(config.device)
        self._sampler = Sampler(pipeline, config.device, self._compiled, recorder)
        super().__init__(
            info,
            config,
            Planner(
                config,
                info.size_multiple_px,
                info.text_tokens_max,
                device_key(pipeline, config),
                lambda shape: self.memory.samples_max(*shape),
            ),
            self._encoder,
            self._sampler,
            partial(self._prepare_thread, config.torch_threads),
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

    def stats(self) -> EngineStats:
        """A snapshot; cheap enough for every metrics interval."""
        graphs, decoding = self._sampler.graphs, self._device.decoding
        return dataclasses.replace(
            super().stats(),
            recompiles=self._compiled.recompiles,
            eager_calls=self._compiled.eager_calls,
            graph_replays=graphs.replays if graphs else 0,
            graph_misses=graphs.misses if graphs else 0,
            decodes_alone=decoding.alone,
            out_of_memory=self._device.retrying.out_of_memory + decoding.out_of_memory,
            memory_peak_bytes=memory.peak_bytes(self._device_name),
        )

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

    def _make_lane(self, config: EngineConfig) -> Lane | None:
        if not config.optimize.overlap_decode:
            return None
        watchdog = Watchdog(config.stall_first_s, config.stall_factor)
        prepare = partial(self._prepare_thread, config.torch_threads)
        return Lane(config.device, self._board.changed, watchdog, prepare)

    def _fits_beside(self, shape: Shape) -> bool:
        return self.memory.fits_beside(shape)

    def _samples_that_fit(self, height: int, width: int) -> int:
        return self.memory.samples_max(height, width)

    def _prepare_thread(self, torch_threads: int) -> None:
        load.set_torch_threads(torch_threads)
        if self._compiled.active:
            prepare_thread()

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
