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
from serve_app.engine.budget import ladder
from serve_app.engine.cost import TRUSTED
from serve_app.engine.sampler import Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptVectors
from serve_app.engine.warmup import fits
from serve_app.engineconfig import EngineConfig

ROUNDS = 5  # of the ladder; interleaved, so that what disturbs the machine disturbs all of it


def measure(
    board: Board,
    sampler: Sampler,
    vectors: PromptVectors,
    shapes: Sequence[Shape],
    limit_s: float,
) -> None:
    """Time the ladder of each shape, as often as time allows.

    A shape gets an equal part of the time; once that is spent no further batch is tried, so
    `limit_s` is exceeded by one step at most. What is left open, traffic answers. Shapes whose
    costs are known already, from the cache, take no time.
    """
    for number, shape in enumerate(shapes):
        if board.planner.costs.measurements(shape, 1) >= TRUSTED:
            continue
        started_at = time.monotonic()
        allowed_s = limit_s / (len(shapes) - number)
        _measure_shape(board, sampler, vectors, shape, started_at + allowed_s)
        limit_s = max(0.0, limit_s - (time.monotonic() - started_at))


def _measure_shape(
    board: Board, sampler: Sampler, vectors: PromptVectors, shape: Shape, until: float
) -> None:
    height, width = shape
    sizes = ladder(board.planner.budget.most(shape))
    samples = [
        sampler.start(vectors, width, height, 1 + ROUNDS * len(sizes), 0.0, seed)
        for seed in range(sizes[-1])
    ]
    sampler.step(samples[:1])  # the first may allocate and tune, and does not count
    for _ in range(ROUNDS):
        for size in board.planner.budget.reachable(shape):
            began_at = time.monotonic()
            if began_at >= until:
                return
            if not fits(board, samples[:size], sampler.step):
                break
            with board.changed:
                board.planner.costs.record_step(shape, size, time.monotonic() - began_at)


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
