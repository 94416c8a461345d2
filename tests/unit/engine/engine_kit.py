"""What the engine's tests share: jobs, the reference, and a gate between two steps."""

import io
import linecache
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image

from serve_app.engine.engine import Engine
from serve_app.engine.job import GenerationJob
from tests import machine

TEXT_TOKENS = 24  # keeps the tiny models cheap; the engine's cap is part of what is tested

MakeEngine = Callable[..., Engine]


def patience_s() -> float:
    """How long a thread waits for its test; only a failing test gets there."""
    return machine.MACHINE.allow()


def quiet(pipeline: FluxPipeline) -> FluxPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Gate:
    """Stands before every transformer call: counts it, and lets it through when told to."""

    def __init__(self, pipeline: FluxPipeline) -> None:
        self.calls = 0
        self.batches: list[int] = []
        self.failing = False
        self._open = threading.Event()
        self._open.set()
        self._permits = threading.Semaphore(0)
        pipeline.transformer.register_forward_pre_hook(self._pass, with_kwargs=True)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()
        self._permits.release()

    def let_one_through(self) -> None:
        self._permits.release()

    def _pass(self, _module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self.calls += 1
        self.batches.append(kwargs["hidden_states"].shape[0])
        if not self._open.is_set():
            assert self._permits.acquire(timeout=patience_s())
        if self.failing:
            raise RuntimeError("a secret of the machine")


def make_job(job_id: str = "job", **changes: Any) -> GenerationJob:
    fields: dict[str, Any] = {
        "prompt": "a red circle",
        "width": 64,
        "height": 64,
        "steps": 3,
        "guidance": 2.0,
        "seeds": (7,),
    }
    return GenerationJob(job_id=job_id, **(fields | changes))


def is_empty(engine: Engine) -> bool:
    """No sample waits or runs, as the engine tells everybody."""
    stats = engine.stats()
    return stats.samples_queued == stats.samples_running == stats.compute_units_queued == 0


def remembers_nothing(engine: Engine) -> bool:
    """Not even a sample that its client has left: the device thread may hold one for a step."""
    return not engine._board.runs and not engine._board.samples


def reference(pipeline: FluxPipeline, job: GenerationJob, **options: Any) -> Any:
    """What `FluxPipeline.__call__` itself makes of a job with one seed."""
    return pipeline(
        job.prompt,
        width=job.width,
        height=job.height,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        max_sequence_length=options.pop("text_tokens", TEXT_TOKENS),
        generator=torch.Generator("cpu").manual_seed(job.seeds[0]),
        **options,
    ).images[0]


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


async def until(happened: Callable[[], bool]) -> None:
    """Let the loop run until something has happened."""
    code = happened.__code__  # the condition itself says best what was waited for
    what = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    await machine.until(happened, what)
