"""Measuring at warm-up which step batches pay, on the very model and device that will serve.

Data flow: shapes -> throw-away samples -> timed step batches of 1, 2, 4, ... -> the planner's
costs, from which its budget follows. Runs on the device thread. Must not know about jobs.
"""

import platform
import time
from collections.abc import Sequence

import torch
from diffusers import FluxPipeline

from serve_app.engine.board import Board
from serve_app.engine.budget import GAIN_MIN, ladder
from serve_app.engine.cost import TRUSTED
from serve_app.engine.sampler import Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptVectors
from serve_app.engineconfig import EngineConfig

STEPS = 64  # of a throw-away sample: more than a ladder takes


def measure(
    board: Board,
    sampler: Sampler,
    vectors: PromptVectors,
    shapes: Sequence[Shape],
    limit_s: float,
) -> None:
    """Time the ladder of each shape, up to the first batch that does not pay.

    A shape gets an equal part of the time. Once that is spent no larger batch is tried: bounded by
    `limit_s` and one rung, the first of which a compiler may prolong. Shapes whose costs are known
    already, from the cache, take none.
    """
    for number, shape in enumerate(shapes):
        planner = board.planner
        sizes = ladder(planner.budget.most(shape))
        if planner.costs.measurements(shape, 1) >= TRUSTED:
            continue
        started_at = time.monotonic()
        allowed_s = limit_s / (len(shapes) - number)
        best = 0.0
        for size in sizes:
            rate = size / _time_batch(board, sampler, vectors, shape, size)
            if rate < GAIN_MIN * best or time.monotonic() - started_at > allowed_s:
                break
            best = rate
        limit_s = max(0.0, limit_s - (time.monotonic() - started_at))


def _time_batch(
    board: Board, sampler: Sampler, vectors: PromptVectors, shape: Shape, size: int
) -> float:
    """Seconds of a step batch; the first, which warms up, does not count."""
    height, width = shape
    samples = [sampler.start(vectors, width, height, STEPS, 0.0, seed) for seed in range(size)]
    sampler.step(samples)
    for _ in range(TRUSTED):
        started_at = time.monotonic()
        sampler.step(samples)
        with board.changed:
            board.planner.costs.record_step(shape, size, time.monotonic() - started_at)
    with board.changed:
        return board.planner.costs.step_s(shape, size)


def device_key(pipeline: FluxPipeline, config: EngineConfig) -> str:
    """Names what step times depend on: device, model, and how it runs."""
    device = torch.device(config.device)
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()} {torch.get_num_threads()} threads"
    parameters = sum(one.numel() for one in pipeline.transformer.parameters())
    how = f"{config.precision} offload={config.offload} {config.optimize!r}"
    return f"{machine} | {parameters} parameters | {how}"
