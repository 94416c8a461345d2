"""What the engine draws: FluxPipeline's own pictures, whatever shares their step batches.

Jobs that end early are in test_engine_stops.py, failures in test_engine_failures.py.
"""

import asyncio
import threading

import numpy as np
import pytest
from diffusers import FluxPipeline
from engine_kit import Gate, MakeEngine, is_empty, make_job, patience_s, pixels, reference, until

from serve_app.engine import codec
from serve_app.engine.job import Finished, Queued, Step
from serve_app.errors import InvalidValue, Overloaded


async def test_events_come_in_order_and_end_with_an_image_per_seed(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    job = make_job(seeds=(5, 6), steps=2)
    events = [event async for event in engine.submit(job)]
    assert events[0] == Queued("job", ahead=0)
    steps = [event for event in events if isinstance(event, Step)]
    finished = [event for event in events if isinstance(event, Finished)]
    assert {(one.index, one.step, one.steps) for one in steps} == {
        (0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2),
    }  # fmt: skip
    assert sorted((one.index, one.seed) for one in finished) == [(0, 5), (1, 6)]
    assert all(pixels(one.image).shape == (64, 64, 3) for one in finished)
    for one in finished:
        timings = one.timings
        assert min(timings.encode_prompt_s, timings.denoise_s, timings.decode_s) > 0
        assert timings.encode_image_s > 0
        assert timings.queued_s >= 0
    assert is_empty(engine)


async def test_the_picture_is_the_pipelines_own(
    make_engine: MakeEngine, pipeline: FluxPipeline
) -> None:
    job = make_job(width=96, height=128, steps=3, guidance=4.5)
    engine = make_engine()  # first, for it lays the VAE out anew, for both
    expected = np.asarray(reference(pipeline, job))
    [image] = (await engine.generate(job)).images
    assert np.array_equal(pixels(image.image), expected)


async def test_a_seed_gives_the_same_picture_whatever_else_runs(make_engine: MakeEngine) -> None:
    engine = make_engine(step_batch_max_samples=4)
    job = make_job(steps=5)
    [alone] = (await engine.generate(job)).images
    others = [
        make_job(
            f"other {n}",
            prompt=f"picture {n}",
            steps=1 + n,
            seeds=(n, n + 1),
            width=64 + 32 * (n % 2),
        )
        for n in range(5)
    ]
    _, *results = await asyncio.gather(
        *(engine.generate(other) for other in others[:3]),
        engine.generate(job),
        *(engine.generate(other) for other in others[3:]),
    )
    [busy] = next(result.images for result in results if result.images[0].job_id == "job")
    difference = pixels(alone.image).astype(int) - pixels(busy.image).astype(int)
    assert abs(difference).max() <= 1  # 1e-5 of latents may tip a rounding, no more


async def test_samples_share_transformer_calls_up_to_the_limit(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(step_batch_max_samples=3)
    await engine.generate(make_job(seeds=(1, 2, 3, 4), steps=2))
    assert gate.batches == [3, 3, 1, 1]
    assert engine.stats().steps_done == 8
    assert engine.stats().step_batches_done == 4
    assert engine.stats().step_time_s > 0


async def test_a_job_joins_a_batch_that_is_under_way(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine()
    gate.close()
    first = asyncio.create_task(engine.generate(make_job("first", steps=4)))
    await until(lambda: gate.calls == 1)
    second = asyncio.create_task(engine.generate(make_job("second", steps=2)))
    await until(lambda: engine.stats().samples_queued == 1)
    gate.open()
    await asyncio.gather(first, second)
    assert gate.batches == [1, 2, 2, 1]


async def test_sizes_do_not_mix_but_all_are_served(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine()
    sizes = [(64, 64), (96, 64), (64, 96), (64, 64)]
    jobs = [make_job(f"{n}", width=w, height=h) for n, (w, h) in enumerate(sizes)]
    results = await asyncio.gather(*(engine.generate(job) for job in jobs))
    for (width, height), result in zip(sizes, results, strict=True):
        assert pixels(result.images[0].image).shape == (height, width, 3)
    assert max(gate.batches) <= 2


async def test_embeddings_made_beforehand_give_the_same_picture(make_engine: MakeEngine) -> None:
    engine = make_engine()
    job = make_job(prompt="a blue star")
    plain = await engine.generate(job)
    embeddings = await engine.encode_prompts(["a blue star", "a cat"])
    assert [one.prompt for one in embeddings] == ["a blue star", "a cat"]
    assert (await engine.generate(job, embeddings[0])).images[0].image == plain.images[0].image


async def test_a_job_joins_the_step_after_its_prompt_is_encoded(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.close()
    running = asyncio.create_task(engine.generate(make_job("running", steps=3)))
    await until(lambda: gate.calls == 1)
    handles = await engine.encode_prompts(["a", "b"])  # while the device stands still
    assert all(handle.pending for handle in handles)
    joining = [
        asyncio.create_task(engine.generate(make_job(handle.prompt, steps=1), handle))
        for handle in handles
    ]
    await until(lambda: engine.stats().samples_queued == 2)
    gate.let_one_through()
    await until(lambda: gate.calls == 2)
    assert gate.batches == [1, 3]
    assert not any(handle.pending for handle in handles)
    gate.open()
    await asyncio.gather(running, *joining)


async def test_a_full_queue_refuses_and_says_when_to_come_back(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(queue_max_samples=3)
    gate.close()
    task = asyncio.create_task(engine.generate(make_job("inside", seeds=(1, 2))))
    await until(lambda: gate.calls == 1)
    with pytest.raises(Overloaded) as refusal:
        await engine.generate(make_job("refused", seeds=(1, 2)))
    assert refusal.value.retry_after_s is not None
    assert 1 <= refusal.value.retry_after_s <= 120
    last = asyncio.create_task(engine.generate(make_job("fits")))
    gate.open()
    await asyncio.gather(task, last)
    await engine.generate(make_job("refused", seeds=(1, 2)))


async def test_images_are_encoded_beside_the_device(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    threads: list[str] = []
    release = threading.Event()
    encode = codec.encode

    def slow_encode(*arguments: object) -> bytes:
        threads.append(threading.current_thread().name)
        assert release.wait(patience_s())
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(codec, "encode", slow_encode)
    first = asyncio.create_task(engine.generate(make_job("first", steps=1)))
    await until(lambda: bool(threads))
    before = engine.stats().steps_done
    second = asyncio.create_task(engine.generate(make_job("second", steps=3)))
    await until(lambda: engine.stats().steps_done == before + 3)
    release.set()
    await asyncio.gather(first, second)
    assert all(name.startswith("flux-image") for name in threads)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"width": 72}, "size"),
        ({"height": 0}, "size"),
        ({"steps": 0}, "num_inference_steps"),
        ({"seeds": ()}, "n"),
        ({"seeds": (-1,)}, "seed"),
        ({"seeds": (2**64,)}, "seed"),
    ],
)
async def test_a_job_that_the_model_cannot_do_is_refused(
    make_engine: MakeEngine, changes: dict[str, object], param: str
) -> None:
    with pytest.raises(InvalidValue) as refusal:
        await make_engine().generate(make_job(**changes))
    assert refusal.value.param == param


async def test_warming_up_draws_each_size_once(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine(budget_measure_s=0)
    await engine.warm_up([(64, 64), (96, 64)])
    assert gate.calls == 2
    assert is_empty(engine)


async def test_one_engine_serves_two_event_loops(make_engine: MakeEngine) -> None:
    engine = make_engine()
    here = engine.generate(make_job("here", steps=2))
    there = asyncio.to_thread(lambda: asyncio.run(engine.generate(make_job("there", steps=2))))
    first, second = await asyncio.gather(here, there)
    difference = pixels(first.images[0].image).astype(int) - pixels(second.images[0].image)
    assert abs(difference).max() <= 1  # one may have been alone for a step
