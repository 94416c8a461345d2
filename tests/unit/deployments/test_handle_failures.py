"""HandleGenerator when a replica dies or fails: one retry for the dead, and errors of ours only."""

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
    StreamHandle,
    generator,
    handle_of,
    play,
    task_error,
)
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)

from serve_app.deployments.beats import Beat
from serve_app.deployments.generator import HandleGenerator
from serve_app.engine.job import Event, Finished, Step
from serve_app.errors import (
    AppError,
    DeadlineExceeded,
    GenerationFailed,
    InvalidValue,
    Overloaded,
    Unavailable,
)
from serve_app.observability import RequestFacts, bound
from tests.otlp_receiver import Open, Receiver, named


@pytest.mark.parametrize(
    "error", [RayActorError(), ActorDiedError(), ActorUnavailableError("x", b"0" * 16)]
)
async def test_a_dead_replica_gets_one_retry(error: Exception) -> None:
    handle = handle_of(error, DRAWN)
    assert await generator(handle).generate(JOB) == DRAWN
    first, second = handle.jobs
    assert second.timeout_s <= first.timeout_s
    assert (first.job_id, first.seeds) == (second.job_id, second.seeds)


@pytest.mark.parametrize("mode", ["json", "stream"])
async def test_each_try_is_a_span_that_its_replica_continues(
    receiver: Receiver, open_tracer: Open, mode: str
) -> None:
    tracer = open_tracer()
    request = tracer.request({"traceparent": [], "tracestate": []}, method="POST")
    with bound(RequestFacts(span=request)):
        if mode == "json":
            handle = handle_of(ActorDiedError(), DRAWN)
            await generator(handle).generate(JOB)
        else:
            second = dataclasses.replace(SECOND, index=0)  # the only one that is missing
            handle = StreamHandle((QUEUED, FIRST, ActorDiedError()), (QUEUED, second))
            events = generator(handle).stream(TWO)
            while not isinstance(await anext(events), Finished) or len(handle.jobs) < 2:
                pass
            await events.aclose()  # as the service, which has all images
    request.end()
    tracer.close()
    parent = named(receiver.spans, "POST")
    died, drew = [span for span in receiver.spans if span.name == "job"]
    assert [span.attributes["flux_serve.attempt"] for span in (died, drew)] == [1, 2]
    assert [span.attributes["flux_serve.stream"] for span in (died, drew)] == [mode == "stream"] * 2
    assert (died.failed, died.attributes["error.type"]) == (True, "ActorDiedError")
    assert not drew.failed
    for span, job in zip((died, drew), handle.jobs, strict=True):
        assert span.parent_id == parent.span_id
        assert span.lies_in(parent)
        assert job.trace["traceparent"].startswith(f"00-{span.trace_id}-{span.span_id}-")
        assert span.attributes["flux_serve.images"] == len(job.seeds)


async def test_two_dead_replicas_are_a_failure() -> None:
    handle = handle_of(RayActorError(), ActorDiedError(), DRAWN)
    with pytest.raises(GenerationFailed) as caught:
        await generator(handle).generate(JOB)
    assert len(handle.jobs) == 2
    assert caught.value.message == "The model replica failed; nothing was charged."


async def test_a_replica_that_dies_before_an_image_is_replaced_unnoticed() -> None:
    handle = StreamHandle(
        (QUEUED, PREVIEWS[0], ActorDiedError()), (QUEUED, *PREVIEWS, FIRST, SECOND)
    )
    events = [event for event in await play(handle) if event != QUEUED]
    assert events == [*PREVIEWS, FIRST, SECOND]
    assert handle.jobs[1].seeds == TWO.seeds
    assert handle.jobs[1].timeout_s <= handle.jobs[0].timeout_s


async def test_a_replica_that_dies_after_an_image_is_replaced_for_the_others() -> None:
    """The other replica draws a job of one sample, which is the first of its own."""
    second = dataclasses.replace(SECOND, index=0)
    again = dataclasses.replace(PREVIEWS[1], index=0)
    step = Step("job-1", 0, 1, 4)
    handle = StreamHandle(
        (QUEUED, *PREVIEWS, FIRST, ActorDiedError()), (QUEUED, step, again, second)
    )
    events = [event for event in await play(handle) if event != QUEUED]
    assert events == [*PREVIEWS, FIRST, dataclasses.replace(step, index=1), SECOND]
    assert handle.jobs[1].seeds == (8,)


async def test_a_replica_that_dies_after_the_last_image_is_not_missed() -> None:
    handle = StreamHandle((QUEUED, FIRST, SECOND, ActorDiedError()))
    assert await play(handle) == [QUEUED, FIRST, SECOND]


async def test_two_dead_replicas_end_a_stream() -> None:
    handle = StreamHandle((QUEUED, FIRST, ActorDiedError()), (QUEUED, ActorDiedError()))
    seen: list[Event] = []
    with pytest.raises(GenerationFailed):
        await play(handle, seen)
    assert seen == [QUEUED, FIRST, QUEUED]
    assert len(handle.jobs) == 2


async def test_each_death_of_a_replica_under_a_job_is_told() -> None:
    deaths: list[str] = []
    handle = handle_of(RayActorError(), DRAWN)
    dying = HandleGenerator(handle, replica_died=lambda: deaths.append("job"))  # type: ignore[arg-type]
    await dying.generate(JOB)
    stream = StreamHandle((QUEUED, ActorDiedError()), (QUEUED, FIRST, SECOND))
    dying = HandleGenerator(stream, replica_died=lambda: deaths.append("stream"))  # type: ignore[arg-type]
    async for _ in dying.stream(TWO):
        pass
    assert deaths == ["job", "stream"]


async def test_a_replica_that_falls_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine is gone, and told nobody."""
    monkeypatch.setattr("serve_app.deployments.beats.SILENCE_S", 0.05)
    second = dataclasses.replace(SECOND, index=0)
    handle = StreamHandle((Beat(), QUEUED, FIRST, asyncio.Event()), (Beat(), QUEUED, second))
    assert (await generator(handle).generate(TWO)).images == (FIRST, SECOND)
    assert handle.jobs[1].seeds == (8,)
    assert handle.responses[0].cancelled


async def test_a_replica_that_stops_and_cancels_its_jobs_is_replaced() -> None:
    """Serve's gRPC transport hands on what ended the call there, which cancelled nobody here."""
    handle = StreamHandle((Beat(), asyncio.CancelledError()), (Beat(), QUEUED, *DRAWN.images))
    assert await generator(handle).generate(JOB) == DRAWN
    assert len(handle.jobs) == 2


@pytest.mark.parametrize("wrapped", [True, False], ids=["actor transport", "gRPC transport"])
@pytest.mark.parametrize(
    "cause",
    [
        Overloaded("The model's queue is full.").after(9),
        InvalidValue("Width is odd.").at("size"),
        DeadlineExceeded("Too late."),
    ],
    ids=lambda cause: type(cause).__name__,
)
async def test_an_error_of_ours_arrives_as_it_was_raised(cause: AppError, wrapped: bool) -> None:
    handle = handle_of(task_error(cause) if wrapped else cause)
    with pytest.raises(type(cause)) as caught:
        await generator(handle).generate(JOB)
    found = caught.value
    assert type(found) is type(cause)
    assert found.message == cause.message
    assert "Traceback" not in found.message
    assert (found.param, found.retry_after_s) == (cause.param, cause.retry_after_s)
    assert len(handle.jobs) == 1


@pytest.mark.parametrize("wrapped", [True, False], ids=["actor transport", "gRPC transport"])
@pytest.mark.parametrize("cause", [ValueError("hunter2"), RuntimeError("hunter2")])
async def test_an_unknown_failure_is_logged_but_not_told(
    cause: Exception, wrapped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    handle = handle_of(task_error(cause) if wrapped else cause)
    with pytest.raises(GenerationFailed) as caught:
        await generator(handle).generate(JOB)
    assert type(caught.value) is GenerationFailed
    assert "hunter2" not in caught.value.message
    assert "hunter2" in caplog.text
    assert JOB.job_id in caplog.text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BackPressureError(num_queued_requests=3, max_queued_requests=3), Overloaded),
        (DeploymentUnavailableError(DeploymentID("FluxModel-flux-mini")), Unavailable),
        (RequestCancelledError("some id"), GenerationFailed),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_what_serve_refuses_is_an_error_of_ours(
    error: Exception, expected: type[AppError]
) -> None:
    with pytest.raises(expected) as caught:
        await generator(handle_of(error)).generate(JOB)
    assert type(caught.value) is expected
    assert (caught.value.retry_after_s is not None) == (expected.status == 503)


@pytest.mark.parametrize("wrapped", [True, False], ids=["actor transport", "gRPC transport"])
@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (Overloaded("full").after(7), Overloaded),
        (GenerationFailed("The model failed."), GenerationFailed),
        (ValueError("hunter2"), GenerationFailed),
    ],
)
async def test_a_stream_fails_with_errors_of_ours(
    cause: Exception, expected: type[AppError], wrapped: bool
) -> None:
    handle = StreamHandle((QUEUED, FIRST, task_error(cause) if wrapped else cause))
    with pytest.raises(expected) as caught:
        await play(handle)
    assert type(caught.value) is expected
    assert "hunter2" not in caught.value.message
    assert len(handle.jobs) == 1
    assert handle.responses[0].cancelled  # it may not have ended there: an image is missing


async def test_a_stream_that_serve_refuses_is_overloaded() -> None:
    full = BackPressureError(num_queued_requests=3, max_queued_requests=3)
    with pytest.raises(Overloaded):
        await play(StreamHandle((full,)))
