"""A scripted Serve handle for HandleGenerator: what replicas say, and whether they were stopped.

Data flow: outcomes or messages -> `handle_of` or `StreamHandle` -> `generator` -> what a test sees.
"""

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayTaskError
from scripted import pictures, preview

from serve_app.deployments.beats import Beat
from serve_app.deployments.generator import HandleGenerator
from serve_app.engine.job import Event, GenerationJob, GenerationResult, Queued

JOB = GenerationJob("job-1", "a red circle", 256, 256, 4, 0.0, (7,), timeout_s=30.0)
DRAWN = pictures(JOB, 1)
TWO = GenerationJob("job-1", "a red circle", 256, 256, 4, 0.0, (7, 8), previews=1, timeout_s=30.0)
QUEUED = Queued("job-1", 0)
FIRST, SECOND = pictures(TWO, 2).images
PREVIEWS = (preview(TWO, 0, 0), preview(TWO, 1, 0))
Outcome = GenerationResult | float | BaseException | asyncio.Event
Message = Event | Beat | BaseException | asyncio.Event


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


async def play(handle: StreamHandle, into: list[Event] | None = None) -> list[Event]:
    """The events of a stream of `TWO`, added to `into` as they come."""
    seen = [] if into is None else into
    async for event in generator(handle).stream(TWO):
        seen.append(event)
    return seen


def task_error(cause: Exception) -> Exception:
    """As Ray hands on what a replica raised: an instance of both, whose text is the traceback."""
    error = RayTaskError("generate", "Traceback: /secret/path hunter2", cause)
    made: Exception = error.as_instanceof_cause()
    return made
