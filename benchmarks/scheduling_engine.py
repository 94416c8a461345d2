"""The workload of `benchmarks.scheduling` on the real engine, with flux-mini.

Data flow: time of each kind of job alone -> Poisson arrivals at the wanted load -> `FluxPipeline`
behind sealed batches, and the engine under each policy, in turn, with the same arrivals ->
latencies. Sizes are scaled to what a CPU can draw. A step batch is small here and other work on
the machine shows in every figure, so these confirm a direction; the simulation has the figures.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FluxPipeline

from benchmarks.scheduling_sim import Job, Outcome
from serve_app.config import EngineConfig
from serve_app.engine import load
from serve_app.engine.engine import Engine
from serve_app.engine.job import GenerationJob
from serve_app.engine.schedule import PolicyName

SOURCE = "embedded:flux-mini"
PROMPT = "a red circle on a blue background"
KINDS = ((128, 4), (128, 28), (256, 4), (256, 28))
ACCOUNTS = 8
THREADS = 1  # of torch: two would wait for each other on a machine that has other work

Draw = Callable[[Job], Awaitable[None]]


@dataclass(frozen=True)
class Timed(Outcome):
    """Latencies beside measured times alone."""

    alone_s: np.ndarray | None = None

    @property
    def slowdown(self) -> np.ndarray:
        return self.latency_s / self.alone_s


class StaticBatches:
    """`@serve.batch` around `FluxPipeline`: seal, run to the end, return as a whole."""

    def __init__(self, pipeline: FluxPipeline, text_tokens: int, batch_max: int) -> None:
        self._pipeline = pipeline
        self._text_tokens = text_tokens
        self._batch_max = batch_max
        self._queue: list[tuple[Job, asyncio.Future[None]]] = []
        self._running: asyncio.Task[None] | None = None

    async def draw(self, job: Job) -> None:
        done = asyncio.get_running_loop().create_future()
        self._queue.append((job, done))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        while self._queue:
            batch, self._queue = self._queue[: self._batch_max], self._queue[self._batch_max :]
            calls: dict[tuple[int, int], int] = {}
            for job, _ in batch:
                calls[job.edge, job.steps] = calls.get((job.edge, job.steps), 0) + 1
            for (edge, steps), count in calls.items():
                await asyncio.to_thread(self.call, edge, steps, count)
            for _, done in batch:
                done.set_result(None)

    def call(self, edge: int, steps: int, count: int) -> None:
        self._pipeline(
            [PROMPT] * count,
            width=edge,
            height=edge,
            num_inference_steps=steps,
            guidance_scale=0.0,
            max_sequence_length=self._text_tokens,
            generator=[torch.Generator("cpu").manual_seed(n) for n in range(count)],
        )


def measure(
    load_: float,
    seconds: float,
    rounds: int,
    batch_sizes: Sequence[int],
    policies: Sequence[PolicyName],
) -> dict[str, Timed]:
    """Outcome of each policy, after `rounds` of about `seconds` each, at the load asked for.

    The machine's speed changes with what else it does. So policies take turns, jobs are timed alone
    anew before each turn, arrivals are scaled to that, and latencies are scaled back.
    """
    load.set_torch_threads(THREADS)
    pipeline = load.load_pipeline(SOURCE, "cpu", "fp32")
    pipeline.set_progress_bar_config(disable=True)
    tokens = load.model_info(pipeline).text_tokens_max
    reference = _alone_s(StaticBatches(pipeline, tokens, 1))
    reference_s = float(np.mean(list(reference.values())))
    names = [f"static {most}" for most in batch_sizes] + list(policies)
    parts: dict[str, list[tuple[Sequence[Job], np.ndarray, np.ndarray]]] = {n: [] for n in names}
    for number in range(rounds):
        for name in names:
            alone = _alone_s(StaticBatches(pipeline, tokens, 1))
            speed = reference_s / float(np.mean(list(alone.values())))
            count = max(8, round(seconds * load_ / reference_s))
            jobs = _workload(alone, load_, count, number)
            if name.startswith("static"):
                draw = StaticBatches(pipeline, tokens, int(name.split()[1])).draw
                latencies = asyncio.run(_serve(jobs, draw))
            else:
                latencies = asyncio.run(_serve_by_engine(pipeline, jobs, name))
            alone_s = np.array([alone[job.edge, job.steps] for job in jobs])
            parts[name].append((jobs, latencies * speed, alone_s * speed))
    return {
        name: Timed(
            [job for jobs, _, _ in found for job in jobs],
            np.concatenate([latencies for _, latencies, _ in found]),
            alone_s=np.concatenate([alone_s for _, _, alone_s in found]),
        )
        for name, found in parts.items()
    }


def _alone_s(server: StaticBatches) -> dict[tuple[int, int], float]:
    """Seconds of each kind of job that has the machine to itself: the least of three, in turn."""
    times: dict[tuple[int, int], list[float]] = {kind: [] for kind in KINDS}
    for edge in sorted({edge for edge, _ in KINDS}):
        server.call(edge, 1, 1)
    for _ in range(3):
        for kind, taken in times.items():
            started_at = time.perf_counter()
            server.call(*kind, 1)
            taken.append(time.perf_counter() - started_at)
    return {kind: min(taken) for kind, taken in times.items()}


def _workload(
    alone: dict[tuple[int, int], float], load_: float, count: int, seed: int
) -> list[Job]:
    mean_s = float(np.mean(list(alone.values())))
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(mean_s / load_, count))
    # every kind as often as any, so that a short run has the load that was asked for
    picks = random.permutation(np.arange(count) % len(KINDS))
    return [
        Job(*KINDS[pick], f"account-{random.integers(ACCOUNTS)}", float(at_s))
        for pick, at_s in zip(picks, times, strict=True)
    ]


async def _serve(jobs: Sequence[Job], draw: Draw) -> np.ndarray:
    started_at = time.perf_counter()

    async def client(job: Job) -> float:
        await asyncio.sleep(job.arrived_s - (time.perf_counter() - started_at))
        await draw(job)
        return time.perf_counter() - started_at - job.arrived_s

    return np.array(await asyncio.gather(*(client(job) for job in jobs)))


async def _serve_by_engine(pipeline: FluxPipeline, jobs: Sequence[Job], policy: str) -> np.ndarray:
    async with Engine(
        pipeline, EngineConfig.model_validate({"schedule": policy, "torch_threads": THREADS})
    ) as engine:

        async def draw(job: Job) -> None:
            await engine.generate(
                GenerationJob(
                    job_id=f"{job.arrived_s}",
                    prompt=PROMPT,
                    width=job.edge,
                    height=job.edge,
                    steps=job.steps,
                    guidance=0.0,
                    seeds=(1,),
                    account=job.account,
                )
            )

        for edge in sorted({edge for edge, _ in KINDS}):
            await draw(Job(edge, 4, "warm", 0.0))
        return await _serve(jobs, draw)
