"""What an engine says of its work is what it did, and nothing of its warm-up."""

from recorded import Recorded
from test_simulated import job, make

from serve_app import metrics
from serve_app.deployments.enginewatch import EngineWatch

STAGES = (
    metrics.QUEUE_WAIT_SECONDS,
    metrics.DENOISE_SECONDS,
    metrics.DECODE_SECONDS,
    metrics.IMAGE_ENCODE_SECONDS,
)


async def test_each_step_batch_and_image_is_observed_once() -> None:
    recorded = Recorded("model")
    async with make() as engine:
        await engine.warm_up([(256, 256)])
        await engine.generate(job("warm", seeds=(1, 2)))
        engine.record_to(recorded)
        result = await engine.generate(job("counted", seeds=(1, 2, 3), steps=5, prompt="another"))
    batches = recorded.values[metrics.STEP_BATCH_OCCUPANCY][()]
    assert sum(batches) == 3 * 5
    assert len(recorded.values[metrics.STEP_SECONDS][()]) == len(batches)
    for stage in STAGES:
        assert len(recorded.values[stage][()]) == 3
    seconds = sorted(image.timings.denoise_s for image in result.images)
    assert sorted(recorded.values[metrics.DENOISE_SECONDS][()]) == seconds


async def test_the_encoder_pass_of_a_known_prompt_is_not_observed() -> None:
    recorded = Recorded("model")
    async with make() as engine:
        engine.record_to(recorded)
        await engine.generate(job("first"))
        await engine.generate(job("second"))
    assert len(recorded.values[metrics.PROMPT_ENCODE_SECONDS][()]) == 1


async def test_a_watch_counts_what_came_since_it_looked_last() -> None:
    recorded = Recorded("model")
    async with make() as engine:
        await engine.generate(job("before", steps=7))
        watch = EngineWatch(recorded, 4, engine.stats())
        for number in range(2):
            await engine.generate(job(f"job-{number}", seeds=(1, 2), steps=5))
            watch.report(engine.stats())
        watch.report(engine.stats())
        busy_s = engine.stats().busy_s
    assert recorded.counts[metrics.STEPS] == {(): 2 * 2 * 5}
    assert recorded.counts[metrics.IMAGES_DRAWN] == {(): 4}
    assert 0 < recorded.counts[metrics.DEVICE_SECONDS][()] < busy_s
    assert metrics.OUT_OF_MEMORY not in recorded.counts
    assert recorded.gauges[metrics.SAMPLES_RUNNING] == {(): 0}


async def test_units_inside_are_those_that_clients_pay() -> None:
    recorded = Recorded("model")
    async with make(simulation={"time_scale": 1.0}) as engine:
        events = engine.submit(job("long", edge=1024, steps=8, seeds=(1, 2)))
        await anext(events)  # admitted, and no step is over yet
        EngineWatch(recorded, 4, engine.stats()).report(engine.stats())
        await events.aclose()
    assert recorded.gauges[metrics.UNITS_QUEUED] == {(): 2 * 1024 * 1024 * 8 / 4}
    inside = [
        recorded.gauges[gauge][()] for gauge in (metrics.SAMPLES_QUEUED, metrics.SAMPLES_RUNNING)
    ]
    assert sum(inside) == 2
