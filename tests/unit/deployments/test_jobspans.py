"""A replica's spans of a job, over an engine that only takes its time."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from serve_app.config import EngineConfig
from serve_app.deployments.jobspans import JobSpans
from serve_app.engine.job import Finished, GenerationJob, Step
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import DeadlineExceeded, InvalidValue
from serve_app.tracing import JOB
from tests.otlp_receiver import PROMPT, Open, Received, Receiver, named

MODEL = "flux-mini"
WANTED = GenerationJob(
    "hold_1", PROMPT, 256, 256, 4, 0.0, (7, 8), account="acct_1", request_id="req_1"
)


@pytest.fixture
async def engine() -> AsyncIterator[SimulatedEngine]:
    settings = EngineConfig.model_validate({"simulation": {"time_scale": 0.05}})
    async with SimulatedEngine("simulated:h200:schnell", settings) as made:
        yield made


class Gateway:
    """What sends a job with a trace; `job` is the span that the replica continues."""

    def __init__(self, open_tracer: Open, wanted: GenerationJob = WANTED) -> None:
        self.tracer = open_tracer()
        self._request = self.tracer.request({"traceparent": [], "tracestate": []}, method="POST")
        self._span = self._request.child(JOB)
        self.job = dataclasses.replace(wanted, trace=self._span.carrier)

    def spans(self) -> JobSpans:
        return JobSpans(self.tracer, self.job, MODEL)

    def end(self) -> None:
        self._span.end()
        self._request.end()
        self.tracer.close()


def parts(spans: list[Received], image: int) -> dict[str, Received]:
    """The stages of one sample by name."""
    return {span.name: span for span in spans if span.attributes.get("flux_serve.image") == image}


async def draw(engine: SimulatedEngine, gateway: Gateway) -> None:
    with gateway.spans() as spans:
        (spans.embedding,) = await engine.encode_prompts([gateway.job.prompt])
        await engine.generate(gateway.job, spans.embedding, spans.stages)


async def leave(
    engine: SimulatedEngine, gateway: Gateway, kind: type, count: int, how: BaseException
) -> None:
    """Leave a stream at the event of that kind and number."""
    with gateway.spans() as spans:
        async with aclosing(engine.submit(gateway.job, None, spans.stages)) as events:
            async for event in events:
                count -= isinstance(event, kind)
                if not count:
                    raise how


async def test_a_job_shows_each_stage_of_each_sample(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    gateway = Gateway(open_tracer)
    await draw(engine, gateway)
    gateway.end()
    job, drawn = named(receiver.spans, "job"), named(receiver.spans, "draw")
    assert (drawn.trace_id, drawn.parent_id) == (job.trace_id, job.span_id)
    assert drawn.lies_in(job)
    assert drawn.attributes == {
        "flux_serve.request_id": "req_1",
        "flux_serve.account_id": "acct_1",
        "flux_serve.hold_id": "hold_1",
        "flux_serve.model": MODEL,
        "flux_serve.images": 2,
        "flux_serve.size": "256x256",
        "flux_serve.steps": 4,
    }
    encode = named(receiver.spans, "encode")
    assert encode.attributes == {"flux_serve.batch.prompts": 1}
    children = [span for span in receiver.spans if span.parent_id == drawn.span_id]
    assert len(children) == 1 + 2 * 4
    assert all(span.lies_in(drawn) and not span.failed for span in children)
    for image in (0, 1):
        stages = parts(children, image)
        assert list(stages) == ["queue", "steps", "decode", "file"]
        queue, steps, decode, file = stages.values()
        assert encode.ended_ns <= steps.began_ns
        assert queue.ended_ns == steps.began_ns
        assert steps.ended_ns == decode.began_ns
        assert decode.ended_ns == file.began_ns
        assert steps.attributes["flux_serve.steps"] == 4
        assert steps.attributes["flux_serve.batch.samples"] == 2  # they shared each step batch
        assert steps.attributes["flux_serve.device_s"] > 0
        assert file.attributes["flux_serve.bytes"] > 0


async def test_a_known_prompt_shows_no_pass(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    await engine.generate(WANTED)
    gateway = Gateway(open_tracer)
    await draw(engine, gateway)
    gateway.end()
    assert "encode" not in {span.name for span in receiver.spans}


async def test_a_job_that_is_cancelled_shows_how_far_it_came(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    gateway = Gateway(open_tracer, dataclasses.replace(WANTED, steps=200, seeds=(7,)))
    with pytest.raises(asyncio.CancelledError):
        await leave(engine, gateway, Step, 1, asyncio.CancelledError())
    gateway.end()
    drawn = named(receiver.spans, "draw")
    assert (drawn.failed, drawn.status) == (True, "cancelled")
    stages = parts(receiver.spans, 0)
    assert list(stages) == ["queue", "steps"]
    assert not stages["queue"].failed
    assert (stages["steps"].failed, stages["steps"].status) == (True, "cancelled")
    assert 0 < stages["steps"].attributes["flux_serve.steps"] < 200
    assert stages["steps"].lies_in(drawn)


async def test_a_job_that_waits_until_its_deadline_shows_its_wait(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    gateway = Gateway(open_tracer, dataclasses.replace(WANTED, timeout_s=-1.0))
    with pytest.raises(DeadlineExceeded):
        await draw(engine, gateway)
    gateway.end()
    stages = parts(receiver.spans, 0)
    assert list(stages) == ["queue"]
    assert stages["queue"].status == DeadlineExceeded.code


async def test_a_refused_job_shows_nothing_but_that(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    gateway = Gateway(open_tracer, dataclasses.replace(WANTED, width=255))
    with pytest.raises(InvalidValue):
        await draw(engine, gateway)
    gateway.end()
    drawn = named(receiver.spans, "draw")
    assert (drawn.failed, drawn.status) == (True, InvalidValue.code)
    assert parts(receiver.spans, 0) == {}


async def test_a_stream_that_is_left_after_its_last_image_has_not_failed(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    gateway = Gateway(open_tracer)
    with pytest.raises(GeneratorExit):
        await leave(engine, gateway, Finished, 2, GeneratorExit())
    gateway.end()
    assert not any(span.failed for span in receiver.spans)


async def test_a_job_without_a_trace_makes_no_spans(
    engine: SimulatedEngine, receiver: Receiver, open_tracer: Open
) -> None:
    tracer = open_tracer()
    with JobSpans(tracer, WANTED, MODEL) as spans:
        await engine.generate(WANTED, None, spans.stages)
    tracer.close()
    assert receiver.spans == []
