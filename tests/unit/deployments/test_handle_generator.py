"""HandleGenerator over a scripted handle: pictures and events as they come, and how long they take.

What it expects is told in quotes, and in refusals of jobs that would come too late. What becomes of
failures is in test_handle_failures.py, of clients that leave in test_handle_cancelling.py.
"""

import asyncio
import dataclasses

import pytest
from handle_kit import (
    DRAWN,
    FIRST,
    JOB,
    PREVIEWS,
    QUEUED,
    SECOND,
    TWO,
    Outcome,
    StreamHandle,
    generator,
    handle_of,
    play,
    task_error,
)
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from serve_app.deployments.fleet import ReplicaBounds
from serve_app.deployments.generator import HandleGenerator
from serve_app.engine.job import GenerationResult
from serve_app.errors import Overloaded


async def test_pictures_come_back_as_they_are() -> None:
    handle = handle_of(DRAWN)
    assert await generator(handle).generate(JOB) == DRAWN
    (job,) = handle.jobs
    assert job.prompt == JOB.prompt
    assert 0 < job.timeout_s <= JOB.timeout_s


async def test_events_come_through_as_they_are() -> None:
    handle = StreamHandle((QUEUED, *PREVIEWS, SECOND, FIRST))
    assert await play(handle) == [QUEUED, *PREVIEWS, SECOND, FIRST]
    assert 0 < handle.jobs[0].timeout_s <= TWO.timeout_s
    assert not handle.responses[0].cancelled


async def test_who_waits_for_all_images_is_sent_nothing_else() -> None:
    handle = handle_of(DRAWN, DRAWN)
    await generator(handle).generate(JOB)
    async for _ in generator(handle).stream(JOB):
        pass
    assert [job.images_only for job in handle.jobs] == [True, False]


async def test_an_estimate_is_what_a_replica_expects() -> None:
    assert await generator(StreamHandle(estimate=1.5)).estimate(JOB) == 1.5


@pytest.mark.parametrize(
    "failure",
    [
        RayActorError(),
        task_error(ValueError("x")),
        BackPressureError(num_queued_requests=1, max_queued_requests=1),
        asyncio.Event(),
        asyncio.CancelledError(),
    ],
    ids=["dead", "failing", "full", "silent", "stopping"],
)
async def test_an_estimate_that_no_replica_gives_soon_is_unknown(
    failure: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.deployments.generator.ESTIMATE_TIMEOUT_S", 0.05)
    handle = StreamHandle(estimate=failure)
    assert await generator(handle).estimate(JOB) is None
    assert handle.estimate.response.cancelled


def with_replicas(handle: StreamHandle, running: int, most: int) -> HandleGenerator:
    async def replicas() -> ReplicaBounds:
        return ReplicaBounds(running, most)

    return HandleGenerator(handle, replicas)  # type: ignore[arg-type]


async def test_a_quote_starts_no_replica() -> None:
    handle = StreamHandle(estimate=1.5)
    assert await with_replicas(handle, 0, 8).estimate(JOB) is None
    assert handle.estimate.asked == 0
    assert await with_replicas(handle, 1, 8).estimate(JOB) == 1.5


def drawn_in(device_s: float) -> GenerationResult:
    """Pictures whose device time is known."""
    return GenerationResult(
        tuple(
            dataclasses.replace(one, timings=dataclasses.replace(one.timings, device_s=device_s))
            for one in DRAWN.images
        )
    )


async def test_backpressure_says_how_long_the_work_that_is_out_will_take() -> None:
    waiting = asyncio.Event()
    handle = handle_of(drawn_in(40.0), waiting, BackPressureError(1, 1))
    drawing = with_replicas(handle, 2, 2)
    long = dataclasses.replace(JOB, timeout_s=1000.0)
    await drawing.generate(long)
    first = asyncio.create_task(drawing.generate(long))
    await waiting.wait()
    with pytest.raises(Overloaded) as caught:
        await drawing.generate(long)
    # 40 s of work for the one that is out and for this one, on two replicas
    assert caught.value.retry_after_s == 40
    first.cancel()
    await asyncio.wait([first])


@pytest.mark.parametrize(("most", "refused"), [(2, True), (8, False)])
async def test_a_job_is_refused_only_if_all_replicas_that_may_start_come_too_late(
    most: int, refused: bool
) -> None:
    waiting = asyncio.Event()
    handle = handle_of(drawn_in(40.0), waiting, DRAWN)
    drawing = with_replicas(handle, 1, most)
    await drawing.generate(JOB)
    first = asyncio.create_task(drawing.generate(JOB))
    await waiting.wait()
    late = dataclasses.replace(JOB, timeout_s=10.0)
    if refused:
        for again in (drawing.generate(late), anext(drawing.stream(late))):
            with pytest.raises(Overloaded) as caught:
                await again
            assert caught.value.retry_after_s == 40
    else:
        assert await drawing.generate(late) == DRAWN
    assert len(handle.jobs) == 2 + (not refused)
    first.cancel()
    await asyncio.wait([first])
