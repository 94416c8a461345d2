"""The two sides of `benchmarks/engine.py`: `FluxPipeline` as it comes, one by one, and our engine.

Data flow: a `Work` (size, steps, images) -> PNG files on either side, the same prompts and seeds,
the same PNG writer -> seconds. Prompts never repeat, so that no cache of embeddings helps.
Must not import Ray: it runs on bare GPU machines.
"""

import asyncio
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from diffusers import FluxPipeline
from torch.utils.flop_counter import FlopCounterMode

from serve_app.config import EngineConfig
from serve_app.engine import codec
from serve_app.engine.engine import Engine
from serve_app.engine.job import GenerationJob
from serve_app.engine.load import load_pipeline

PEAK_S = 2.0  # how long to look for the best rate: a busy machine has good moments

_numbers = itertools.count()


@dataclass(frozen=True)
class Work:
    """What one measurement draws."""

    px: int
    steps: int
    images: int = 1
    guidance: float = 0.0

    def jobs(self) -> list[GenerationJob]:
        """One job per image, each with a prompt never used before."""
        return [
            GenerationJob(
                job_id=f"{number}",
                prompt=f"a red circle on a blue background, number {number}",
                width=self.px,
                height=self.px,
                steps=self.steps,
                guidance=self.guidance,
                seeds=(number,),
            )
            for number in itertools.islice(_numbers, self.images)
        ]


class Baseline:
    """`FluxPipeline.__call__`, one image after another, its pictures written as PNG."""

    def __init__(self, source: str, config: EngineConfig, text_tokens: int | None) -> None:
        self.pipeline: FluxPipeline = load_pipeline(source, config.device, config.precision)
        self.pipeline.set_progress_bar_config(disable=True)
        self._text_tokens = text_tokens or 512

    def compile(self) -> None:
        """As the documentation of diffusers advises: the blocks, and the VAE's decoder."""
        self.pipeline.transformer.compile_repeated_blocks(fullgraph=True)
        self.pipeline.vae.decode = torch.compile(self.pipeline.vae.decode, fullgraph=True)

    def draw(self, work: Work) -> None:
        for job in work.jobs():
            picture = self.pipeline(
                job.prompt,
                width=job.width,
                height=job.height,
                num_inference_steps=job.steps,
                guidance_scale=job.guidance,
                max_sequence_length=self._text_tokens,
                generator=torch.Generator("cpu").manual_seed(job.seeds[0]),
            ).images[0]
            codec.encode(np.asarray(picture), "png")

    def flops(self, work: Work) -> float:
        """Floating-point operations of one image, text encoders and VAE included."""
        with FlopCounterMode(display=False) as counter:
            self.draw(dataclasses.replace(work, images=1))
        return float(counter.get_total_flops())


class Ours:
    """Our engine, all images of a work in flight at once."""

    def __init__(self, source: str, config: EngineConfig, text_tokens: int | None) -> None:
        started_at = time.perf_counter()
        self.engine = Engine.load(source, config, text_tokens_max=text_tokens)
        self.load_s = time.perf_counter() - started_at
        self.warm_up_s = 0.0

    def warm_up(self, sizes: Sequence[int]) -> None:
        started_at = time.perf_counter()
        asyncio.run(self.engine.warm_up([(px, px) for px in sizes]))
        self.warm_up_s = time.perf_counter() - started_at

    def draw(self, work: Work) -> None:
        async def all_at_once() -> None:
            await asyncio.gather(*(self.engine.generate(job) for job in work.jobs()))

        asyncio.run(all_at_once())

    def close(self) -> None:
        asyncio.run(self.engine.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Taken:
    """Medians over the rounds."""

    seconds: float
    cpu_seconds: float
    """Of all threads of the process: on a CPU that others use, too, the steadier figure."""


def in_turn(ways: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, Taken]:
    """Time each way: one run to warm up, then all of them in every round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if number:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Taken(*(statistics.median(column) for column in zip(*taken, strict=True)))
        for name, taken in times.items()
    }


def peak_flops(device: str, dtype: torch.dtype, edge: int) -> float:
    """The best rate of a large matrix product here and now: what a roofline can be held against."""
    one = torch.randn(edge, edge, device=device, dtype=dtype)
    best_s = float("inf")
    until = time.perf_counter() + PEAK_S
    while time.perf_counter() < until:
        _synchronize(device)
        started_at = time.perf_counter()
        one @ one
        _synchronize(device)
        best_s = min(best_s, time.perf_counter() - started_at)
    return 2.0 * edge**3 / best_s


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
