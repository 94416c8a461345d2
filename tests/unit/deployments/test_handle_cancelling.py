"""Calls that HandleGenerator gives up: cancelled on their replica, however far Serve has got."""

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
from handle_kit import (
    DRAWN,
    FIRST,
    JOB,
    QUEUED,
    SECOND,
    TWO,
    StreamHandle,
    generator,
    handle_of,
    play,
)
from ray.serve._private.common import RequestMetadata
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentResponseGenerator

from serve_app.engine.job import GenerationJob
from serve_app.errors import Overloaded


async def test_a_cancelled_job_is_cancelled_on_its_replica() -> None:
    waiting = asyncio.Event()
    handle = handle_of(waiting)
    job = asyncio.create_task(generator(handle).generate(JOB))
    await waiting.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert handle.responses[0].cancelled
    assert len(handle.jobs) == 1


async def test_a_closed_stream_is_cancelled_on_its_replica() -> None:
    handle = StreamHandle((QUEUED, FIRST, SECOND))
    events = generator(handle).stream(TWO)
    assert await anext(events) == QUEUED
    await events.aclose()
    assert handle.responses[0].cancelled


async def test_a_cancelled_wait_for_an_event_cancels_the_stream_on_its_replica() -> None:
    waiting = asyncio.Event()
    handle = StreamHandle((QUEUED, waiting))
    job = asyncio.create_task(play(handle))
    await waiting.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert handle.responses[0].cancelled
    assert len(handle.jobs) == 1


async def test_a_job_that_ended_is_not_cancelled() -> None:
    handle = handle_of(DRAWN)
    await generator(handle).generate(JOB)
    assert not handle.responses[0].cancelled


class Assigned:
    """Serve's result of a call that a replica has taken."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class OneResponse(StreamHandle):
    """Answers with one of Serve's own responses."""

    def __init__(self, assigned: Any, *, separate_loop: bool) -> None:
        super().__init__()
        metadata = RequestMetadata(request_id="r", internal_request_id="i")
        self.response = DeploymentResponseGenerator(assigned, metadata, separate_loop)

    def remote(self, job: GenerationJob) -> Any:
        return self.response


async def test_a_call_assigned_in_the_very_moment_it_is_given_up_is_cancelled() -> None:
    """Nobody has fetched the result that has just come."""
    result = Assigned()
    assigned: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    handle = OneResponse(assigned, separate_loop=False)
    drawing = asyncio.create_task(generator(handle).generate(JOB))
    for _ in range(3):  # until its reader waits for the assignment
        await asyncio.sleep(0)
    drawing.cancel()
    assigned.set_result(result)
    with pytest.raises(asyncio.CancelledError):
        await drawing
    assert handle.response._replica_result is None  # so Serve's own `cancel` did nothing
    assert result.cancelled


async def test_a_call_that_a_router_elsewhere_refuses_is_an_ordinary_503() -> None:
    """A gateway whose configuration leaves out ADR 0023's switches: `cancel` raises there."""
    assigned: Future[Any] = Future()
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    assigned.set_exception(full)
    with pytest.raises(Overloaded):
        await generator(OneResponse(assigned, separate_loop=True)).generate(JOB)
