"""MeasuredGenerator: whatever draws, with each job counted and timed.

Data flow: `service` -> `MeasuredGenerator` -> the generator; how it ended, and when the first
preview, the first image and the last came -> `Recorder`. Changes no event.
"""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from serve_app.engine.job import Event, Finished, GenerationJob, GenerationResult, Preview
from serve_app.errors import AppError
from serve_app.metrics import (
    FIRST_IMAGE_SECONDS,
    FIRST_PREVIEW_SECONDS,
    JOB_SECONDS,
    JOBS,
    Metric,
    Recorder,
)
from serve_app.service import Generator

OK = "ok"
CANCELLED = "cancelled"
"""By a client that left, or by the deadline."""
FIRSTS: tuple[tuple[type[Event], Metric], ...] = (
    (Preview, FIRST_PREVIEW_SECONDS),
    (Finished, FIRST_IMAGE_SECONDS),
)


class MeasuredGenerator:
    """A `Generator` around another one, of one model."""

    def __init__(self, generator: Generator, model_id: str, record: Recorder) -> None:
        self._generator = generator
        self._model = model_id
        self._record = record

    async def estimate(self, job: GenerationJob) -> float | None:
        return await self._generator.estimate(job)

    async def generate(self, job: GenerationJob) -> GenerationResult:
        with self._run("json") as run:
            result = await self._generator.generate(job)
            run.drawn()
            return result

    async def stream(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        with self._run("stream") as run:
            firsts: dict[type[Event], Metric] = dict(FIRSTS)
            missing = len(job.seeds)
            async with aclosing(self._generator.stream(job)) as events:
                async for event in events:
                    if first := firsts.pop(type(event), None):
                        self._record.observe(first, run.seconds, model=self._model)
                    if isinstance(event, Finished):
                        missing -= 1
                        if missing == 0:
                            run.drawn()  # sending it on is not drawing
                    yield event

    @contextmanager
    def _run(self, mode: str) -> Iterator["_Run"]:
        run, outcome = _Run(), CANCELLED
        try:
            yield run
        except AppError as exc:
            outcome = exc.code or exc.type
            raise
        except Exception:
            outcome = AppError.code or AppError.type
            raise
        finally:
            if run.drawn_s is not None:
                outcome = OK
                self._record.observe(JOB_SECONDS, run.drawn_s, model=self._model, mode=mode)
            self._record.count(JOBS, model=self._model, mode=mode, outcome=outcome)


class _Run:
    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.drawn_s: float | None = None
        """How long all images took; None before the last of them."""

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def drawn(self) -> None:
        self.drawn_s = self.seconds
