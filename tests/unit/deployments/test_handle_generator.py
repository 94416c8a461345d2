"""HandleGenerator over a scripted handle: one retry for a dead replica, and our errors only."""

import asyncio
import dataclasses
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID, RequestMetadata
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentResponseGenerator
from scripted import pictures, preview

from serve_app.deployments.beats import Beat
from serve_app.deployments.fleet import ReplicaBounds
from serve_app.deployments.generator import HandleGenerator
from serve_app.engine.job import Event, Finished, GenerationJob, GenerationResult, Queued, Step
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

JOB = GenerationJob("job-1", "a red circle", 256, 256, 4, 0.0, (7,), timeout_s=30.0)
DRAWN = pictures(JOB, 1)

Outcome = GenerationResult | float | BaseException | asyncio.Event


class Response:
    """What `handle.estimate.remote()` returns: something to await and to cancel."""

    def __init__(self, outcome: "Outcome") -> None:
        self.outcome = outcome
        self.cancelled = False
        self._replica_result: object = None
        self._replica_result_future: Future[Any] = Future()

    def __await__(self) -> Generator[Any, None, float]:
        return self._wait().__await__()

    async def _wait(self) -> float:
        if isinstance(self.outcome, asyncio.Event):
            self.outcome.set()
            await asyncio.Event().wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert isinstance(self.outcome, float)
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class Estimates:
    def __init__(self, outcome: "Outcome") -> None:
        self.response = Response(outcome)
        self.asked = 0

    def remote(self, job: GenerationJob) -> Response:
        self.asked += 1
        return self.response


Message = Event | Beat | BaseException | asyncio.Event


class Stream:
    """What a streaming call returns: yields its items, then raises or ends."""

    def __init__(self, items: "tuple[Message, ...]") -> None:
        self.items = list(items)
        self.cancelled = False
        self._replica_result: object = None
        self._replica_result_future: Future[Any] = Future()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event | Beat:
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, asyncio.Event):
            item.set()
            await asyncio.Event().wait()
        assert not isinstance(item, asyncio.Event)
        return item

    def cancel(self) -> None:
        self.cancelled = True


class StreamHandle:
    """A handle whose streaming calls play one script after the other."""

    def __init__(self, *scripts: "tuple[Message, ...]", estimate: "Outcome" = 0.0) -> None:
        self.responses = [Stream(script) for script in scripts]
        self.jobs: list[GenerationJob] = []
        self.estimate = Estimates(estimate)

    def options(self, *, stream: bool, _by_reference: bool) -> "StreamHandle":
        assert stream
        assert _by_reference  # by actor calls, where nothing is said
        return self

    @property
    def stream(self) -> "StreamHandle":
        return self

    def remote(self, job: GenerationJob) -> Stream:
        self.jobs.append(job)
        return self.responses[len(self.jobs) - 1]


def handle_of(*outcomes: "Outcome") -> StreamHandle:
    """Answers its jobs one outcome after the other."""
    return StreamHandle(*(_script(one) for one in outcomes))


def _script(outcome: "Outcome") -> "tuple[Message, ...]":
    if isinstance(outcome, GenerationResult):
        return (Beat(), Queued("job-1", 0), *outcome.images)
    assert not isinstance(outcome, float)
    return (outcome,)


def generator(handle: StreamHandle) -> HandleGenerator:
    return HandleGenerator(handle)  # type: ignore[arg-type]


def task_error(cause: Exception) -> Exception:
    """As Ray hands on what a replica raised: an instance of both, whose text is the traceback."""
    error = RayTaskError("generate", "Traceback: /secret/path hunter2", cause)
    made: Exception = error.as_instanceof_cause()
    return made


async def test_pictures_come_back_as_they_are() -> None:
    handle = handle_of(DRAWN)
    assert await generator(handle).generate(JOB) == DRAWN
    (job,) = handle.jobs
    assert job.prompt == JOB.prompt
    assert 0 < job.timeout_s <= JOB.timeout_s


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


TWO = GenerationJob("job-1", "a red circle", 256, 256, 4, 0.0, (7, 8), previews=1, timeout_s=30.0)
QUEUED = Queued("job-1", 0)
FIRST, SECOND = pictures(TWO, 2).images
PREVIEWS = (preview(TWO, 0, 0), preview(TWO, 1, 0))


async def play(handle: StreamHandle, into: list[Event] | None = None) -> list[Event]:
    seen = [] if into is None else into
    async for event in generator(handle).stream(TWO):
        seen.append(event)
    return seen


async def test_events_come_through_as_they_are() -> None:
    handle = StreamHandle((QUEUED, *PREVIEWS, SECOND, FIRST))
    assert await play(handle) == [QUEUED, *PREVIEWS, SECOND, FIRST]
    assert 0 < handle.jobs[0].timeout_s <= TWO.timeout_s
    assert not handle.responses[0].cancelled


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


def drawn_in(device_s: float) -> GenerationResult:
    """Pictures whose device time is known."""
    return GenerationResult(
        tuple(
            dataclasses.replace(one, timings=dataclasses.replace(one.timings, device_s=device_s))
            for one in DRAWN.images
        )
    )


def with_replicas(handle: StreamHandle, running: int, most: int) -> HandleGenerator:
    async def replicas() -> ReplicaBounds:
        return ReplicaBounds(running, most)

    return HandleGenerator(handle, replicas)  # type: ignore[arg-type]


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


async def test_a_quote_starts_no_replica() -> None:
    handle = StreamHandle(estimate=1.5)
    assert await with_replicas(handle, 0, 8).estimate(JOB) is None
    assert handle.estimate.asked == 0
    assert await with_replicas(handle, 1, 8).estimate(JOB) == 1.5


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


async def test_who_waits_for_all_images_is_sent_nothing_else() -> None:
    handle = handle_of(DRAWN, DRAWN)
    await generator(handle).generate(JOB)
    async for _ in generator(handle).stream(JOB):
        pass
    assert [job.images_only for job in handle.jobs] == [True, False]
