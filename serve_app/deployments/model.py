"""FluxModel: one engine on one device, as a Serve replica.

Data flow: `stream(job)` -> `@serve.batch` gathers prompts for one text-encoder pass -> the engine
joins the samples to its step batches. Everything that takes time runs on the engine's threads, so
the replica's loop stays free: a blocked loop fails its health check and is killed.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ray import serve

from serve_app.config import BatchingConfig, ModelConfig, TracingConfig
from serve_app.deployments.autoscaling import BACKLOG_S, BUSY_S, JOB_S, JOBS
from serve_app.deployments.beats import Beat, with_beats
from serve_app.deployments.enginewatch import INTERVAL_S, EngineWatch
from serve_app.deployments.jobline import JobLine
from serve_app.deployments.jobspans import JobSpans
from serve_app.deployments.logs import join_serves_logs
from serve_app.deployments.rayrecorder import replica_recorder
from serve_app.deployments.traces import LIBRARY_LOGGER, open_tracer
from serve_app.deployments.workmeter import WorkMeter
from serve_app.engine.job import EngineStats, Event, Finished, GenerationJob
from serve_app.engine.progress import EventFilter
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.engine.parts import PromptEmbedding

logger = logging.getLogger(__name__)

DRAIN_S = 20.0
"""How long a closing engine may finish what runs; Serve has drained its requests before."""


class FluxModel:
    # Serve awaits an async constructor; mypy knows only Python's own rule.
    async def __init__(  # type: ignore[misc]
        self, config: ModelConfig, tracing: TracingConfig | None = None
    ) -> None:
        # Torch loads here and not above: building the graph and the gateway must not wait for it.
        # It also warns about image processors that FLUX does not use.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from serve_app.engine.open import open_engine

        join_serves_logs(also=(LIBRARY_LOGGER,), model=config.id)
        self._tracer = open_tracer(tracing)
        self.config = config
        self._meter = WorkMeter()
        self._jobs = 0
        self._apply(config.batching)
        self.engine = await asyncio.to_thread(
            open_engine, config.source, config.engine, config.text_tokens_max
        )
        sizes = (size.split("x") for size in config.engine.warm_up_sizes)
        await self.engine.warm_up([(int(width), int(height)) for width, height in sizes])
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Record what the engine does, for as long as the replica lives."""
        record = replica_recorder(self.config.id)
        self.engine.record_to(record)
        watch = EngineWatch(record, self.config.reference_steps, self.engine.stats())
        while True:
            watch.report(self.engine.stats())
            await asyncio.sleep(INTERVAL_S)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new batching knobs in place (Serve's `user_config`)."""
        try:
            self._apply(BatchingConfig.model_validate(user_config))
        except ValidationError as exc:
            raise ConfigError(f"user_config of {self.config.deployment_name}: {exc}") from exc

    def _apply(self, batching: BatchingConfig) -> None:
        self._encode.set_max_batch_size(batching.max_batch_size)
        self._encode.set_batch_wait_timeout_s(batching.batch_wait_timeout_s)

    async def stream(self, job: GenerationJob) -> AsyncGenerator[Event | Beat, None]:
        """Events of a job as they come, steps only if asked for, and beats.

        Cancelling it drops its samples at the next step.
        """
        async with aclosing(with_beats(self._draw(job))) as messages:
            async for message in messages:
                yield message

    async def _draw(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        with self._counted(job), JobLine(job) as line, self._spans(job) as spans:
            embedding = spans.embedding = await self._encode(job.prompt)
            leaving = EventFilter(job)
            async with aclosing(self.engine.submit(job, embedding, spans.stages)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        line.drawn(event)
                    if leaving.passes(event):  # each event is a message
                        yield event

    def _spans(self, job: GenerationJob) -> JobSpans:
        return JobSpans(self._tracer, job, self.config.id)

    @contextmanager
    def _counted(self, job: GenerationJob) -> Iterator[None]:
        """A job is here, for as long as this lasts."""
        self._meter.admitted(self.engine.cost_s(job) or 0.0)
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    @serve.batch  # type: ignore[untyped-decorator]
    async def _encode(self, prompts: list[str]) -> "list[PromptEmbedding]":
        return await self.engine.encode_prompts(prompts)

    async def estimate(self, job: GenerationJob) -> float | None:
        """Seconds until the job would be done here; None before the first measured step."""
        return self.engine.estimate(job)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy sees of this replica; Serve asks and sends it."""
        stats = self.engine.stats()
        return {
            BACKLOG_S: stats.backlog_s,
            BUSY_S: stats.busy_s,
            JOB_S: self._meter.job_s,
            JOBS: float(self._jobs),
        }

    async def stats(self) -> EngineStats:
        return self.engine.stats()

    def check_health(self) -> None:
        """Raise when the device thread is dead or stuck; Serve then replaces the replica."""
        self.engine.check()

    async def __del__(self) -> None:
        """Serve awaits this once the replica has drained its requests."""
        if hasattr(self, "_watching"):
            self._watching.cancel()
        engine = getattr(self, "engine", None)  # absent when loading failed
        if engine is not None:
            await engine.close(DRAIN_S)
        await asyncio.to_thread(self._tracer.close)
