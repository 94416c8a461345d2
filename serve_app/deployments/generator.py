"""HandleGenerator: the service's `Generator` over a Serve deployment handle.

Data flow: job -> handle -> replica -> events; failures of Ray and Serve -> our error tree. The only
retry lives here: a replica that died took its pictures along, and drawing them again is unbilled.
"""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from serve_app.deployments.beats import ReplicaSilent, without_beats
from serve_app.deployments.fleet import ReplicaBounds
from serve_app.deployments.pace import Pace, retry_after_s
from serve_app.deployments.ray_compat import GRPC_BY_DEFAULT
from serve_app.engine.job import Event, Finished, GenerationJob, GenerationResult, Preview, Step
from serve_app.errors import AppError, GenerationFailed, Overloaded, Unavailable
from serve_app.observability import traced
from serve_app.tracing import JOB

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""The first try and one retry on another replica."""
ESTIMATE_TIMEOUT_S = 1.0
"""How long a quote waits for a replica's estimate: a busy fleet answers in milliseconds."""
_SERVE_FAILURES = (BackPressureError, DeploymentUnavailableError, RequestCancelledError)


Replicas = Callable[[], Awaitable[ReplicaBounds | None]]
"""How many replicas the model has and may have; None when nobody knows."""


def _attempt(job: GenerationJob, number: int, *, stream: bool) -> traced:
    """The span of one try."""
    return traced(JOB, hold_id=job.job_id, images=len(job.seeds), attempt=number, stream=stream)


async def _unknown() -> ReplicaBounds | None:
    return None


class HandleGenerator:
    """Draws on the replicas of one model."""

    def __init__(
        self,
        handle: DeploymentHandle,
        replicas: Replicas = _unknown,
        replica_died: Callable[[], None] = lambda: None,
    ) -> None:
        """`replica_died` is told of each death under a job."""
        self._handle = handle
        # The handle was made elsewhere, with the transport of that process: choose it here.
        self._draw = handle.options(stream=True, _by_reference=not GRPC_BY_DEFAULT).stream
        self._replica_died = replica_died
        self._replicas = replicas
        self._pace = Pace()

    async def generate(self, job: GenerationJob) -> GenerationResult:
        """Draw on some replica; raises only `AppError` and `CancelledError`."""
        images: dict[int, Finished] = {}
        job = dataclasses.replace(job, images_only=True)
        async with aclosing(self._drawn(job, stream=False)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    images[event.index] = event
        return GenerationResult(tuple(images[index] for index in sorted(images)))

    async def _refuse_hopeless(self, job: GenerationJob) -> None:
        """Refuse what not even all replicas could finish in time; the client may come back."""
        if not self._pace.hopeless(job, 1):
            return
        bounds = await self._replicas()
        if bounds and self._pace.hopeless(job, bounds.most):
            raise self._overloaded(bounds.running)

    async def estimate(self, job: GenerationJob) -> float | None:
        """What some replica expects; None when none answers soon, as a quote must not wait.

        Where none runs, none is asked: a quote must not start one.
        """
        bounds = await self._replicas()
        if bounds is not None and bounds.running == 0:
            return None
        response = self._handle.estimate.remote(job)
        try:
            async with asyncio.timeout(ESTIMATE_TIMEOUT_S):
                expected_s: float | None = await response
        except (Exception, asyncio.CancelledError):  # whatever happens there: a quote does without
            _cancel(response)
            if _cancelled_here():
                raise
            return None
        return expected_s

    async def stream(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        """Events of the job; raises only `AppError`. Closing it stops the replica.

        After the death of a replica another one draws the images that are missing.
        """
        async with aclosing(self._drawn(job, stream=True)) as events:
            async for event in events:
                yield event

    async def _drawn(self, job: GenerationJob, *, stream: bool) -> AsyncGenerator[Event, None]:
        await self._refuse_hopeless(job)
        with self._pace.sent(job):
            async with aclosing(self._retried(job, stream=stream)) as events:
                async for event in events:
                    yield event

    async def _retried(self, job: GenerationJob, *, stream: bool) -> AsyncGenerator[Event, None]:
        started = time.monotonic()
        missing = list(range(len(job.seeds)))
        previewed: set[tuple[int, int]] = set()
        for attempt in range(1, ATTEMPTS + 1):
            indices = tuple(missing)
            part = dataclasses.replace(
                job,
                seeds=tuple(job.seeds[index] for index in indices),
                timeout_s=job.timeout_s - (time.monotonic() - started),
            )
            try:
                with _attempt(part, attempt, stream=stream) as span:
                    traced_part = dataclasses.replace(part, trace=span.carrier)
                    async with aclosing(self._call(traced_part)) as events:
                        async for event in events:
                            if isinstance(event, Step | Preview | Finished):
                                event = dataclasses.replace(event, index=indices[event.index])
                            if isinstance(event, Finished):
                                missing.remove(event.index)
                                if not missing:
                                    span.end()  # sending it on is not drawing
                            elif isinstance(event, Preview):
                                if (event.index, event.number) in previewed:
                                    continue  # sent by the replica that died
                                previewed.add((event.index, event.number))
                            yield event
                return
            except (RayActorError, ReplicaSilent):
                self._replica_died()
                logger.warning("replica died under job %s (try %d)", job.job_id, attempt)
            if not missing:
                return
        uncharged = "images not sent were not charged" if stream else "nothing was charged"
        raise GenerationFailed(f"The model replica failed; {uncharged}.")

    async def _call(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        """One try. Raises `RayActorError` or `ReplicaSilent` when its replica is gone."""
        response = self._draw.remote(job)
        missing = len(job.seeds)
        try:
            async with aclosing(without_beats(response)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        missing -= 1
                        self._pace.drawn(job, event)
                    yield event
        except ReplicaSilent:
            raise
        except asyncio.CancelledError as exc:
            if _cancelled_here():
                raise
            raise ReplicaSilent("the replica stopped and cancelled its jobs") from exc
        except Exception as exc:
            if isinstance(exc, RayActorError):
                raise
            error = await self._translate(exc, job)
            if error is exc:
                raise
            raise error from exc
        finally:
            if missing:
                # Else the replica would draw on for nobody. What has ended does not mind.
                _cancel(response)

    async def _translate(self, exc: Exception, job: GenerationJob) -> AppError:
        cause = exc.cause if isinstance(exc, RayTaskError) else exc
        if not isinstance(cause, BackPressureError):
            return _translate(exc, job)
        bounds = await self._replicas()
        return self._overloaded(bounds.running if bounds else 1)

    def _overloaded(self, replicas: int) -> Overloaded:
        """Come back when what is there now is done."""
        wait_s = retry_after_s(self._pace.drain_s(replicas))
        return Overloaded("The server is overloaded. Try again later.").after(wait_s)


def _cancel(response: DeploymentResponse[Any] | DeploymentResponseGenerator[Any]) -> None:
    """Cancel a call, also one that was assigned in this very turn of the event loop.

    That one Serve's own `cancel` misses, as nobody has fetched its result yet: over gRPC it would
    keep its place in the replica for as long as the gateway lives.
    """
    with contextlib.suppress(Exception):  # it raises why a call was not assigned: that is known
        response.cancel()
    assigned = response._replica_result_future
    if response._replica_result is not None or not assigned.done() or assigned.cancelled():
        return
    if assigned.exception() is None:
        assigned.result().cancel()


def _cancelled_here() -> bool:
    """Whether somebody cancels us. If not, Serve's gRPC transport tells that the replica was."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _translate(exc: Exception, job: GenerationJob) -> AppError:
    cause = exc.cause if isinstance(exc, RayTaskError) else exc
    if isinstance(cause, AppError):
        logger.warning("job %s: %s: %s", job.job_id, type(cause).__name__, cause.message)
        return cause
    if isinstance(cause, DeploymentUnavailableError):
        return Unavailable("The model cannot be served right now.")
    if isinstance(cause, RequestCancelledError):
        return GenerationFailed("The job was cancelled; nothing was charged.")
    # By actor calls str(exc) holds the remote traceback, over gRPC only the replica's own log has
    # it: it goes to the log, never to the client.
    kind = "Ray" if isinstance(exc, RayError) else "model"
    logger.error("%s failure under job %s", kind, job.job_id, exc_info=exc)
    return GenerationFailed("The model replica failed; nothing was charged.")
