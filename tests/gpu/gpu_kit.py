"""Engines and jobs for the tests on a GPU."""

import asyncio
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine.engine import Engine
from serve_app.engine.job import GenerationJob

true_size = pytest.mark.skipif(
    os.environ.get("FLUX_SERVE_GPU_TRUE_SIZE") != "1",
    reason="FLUX_SERVE_GPU_TRUE_SIZE=1 runs FLUX.1 at its true size",
)
COMPILED = {"compile_transformer": "dynamic", "compile_vae": True}


@contextmanager
def engine(source: str = "random:tiny-dev", **changes: Any) -> Iterator[Engine]:
    switches = changes.pop("optimize", {})
    fields: dict[str, Any] = {"device": "cuda", "precision": "bf16", "budget_measure_s": 0.5}
    config = EngineConfig(**(fields | changes), optimize=OptimizeConfig(**switches))
    made = Engine.load(source, config)
    try:
        yield made
    finally:
        asyncio.run(made.close())


def make_job(job_id: str = "job", **changes: Any) -> GenerationJob:
    fields: dict[str, Any] = {
        "prompt": "a red circle",
        "width": 256,
        "height": 256,
        "steps": 4,
        "guidance": 3.5,
        "seeds": (7,),
    }
    return GenerationJob(job_id=job_id, **(fields | changes))


def draw(engine: Engine, *jobs: GenerationJob) -> list[list[np.ndarray]]:
    """The pictures of each job, all jobs in flight at once."""

    async def all_at_once() -> list[list[np.ndarray]]:
        results = await asyncio.gather(*map(engine.generate, jobs))
        return [[pixels(image.image) for image in result.images] for result in results]

    return asyncio.run(all_at_once())


def warm_up(engine: Engine, *sizes: tuple[int, int]) -> None:
    asyncio.run(engine.warm_up(sizes))


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image))).astype(int)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels; 40 looks the same, 20 is another picture of the same thing."""
    error = float(np.mean((one - other) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
