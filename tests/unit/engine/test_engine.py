import asyncio
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import Gate, MakeEngine, make_job, pixels, reference, until

from serve_app.config import EngineConfig
from serve_app.engine import codec
from serve_app.engine.device import FAILURES_IN_A_ROW_MAX
from serve_app.engine.engine import Engine
from serve_app.engine.job import Finished, GenerationJob, JobCancelled, Queued, Step
from serve_app.errors import (
    AppError,
    DeadlineExceeded,
    Draining,
    GenerationFailed,
    InvalidValue,
    Overloaded,
    Unavailable,
)


def is_empty(engine: Engine) -> bool:
    stats = engine.stats()
    return stats.samples_queued == stats.samples_running == stats.compute_units_queued == 0


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
    handles = await asyncio.wait_for(engine.encode_prompts(["a", "b"]), 5)
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


async def test_an_encoder_that_fails_fails_only_the_culprits_job(
    make_engine: MakeEngine, pipeline: FluxPipeline
) -> None:
    engine = make_engine()
    tokenizer = pipeline.tokenizer

    def picky(prompts: list[str], **options: object) -> object:
        if "poison" in prompts:
            raise RuntimeError("a secret of the machine")
        return tokenizer(prompts, **options)

    picky.model_max_length = tokenizer.model_max_length  # type: ignore[attr-defined]
    pipeline.tokenizer = picky
    prompts = ["good", "poison", "fine"]
    handles = await engine.encode_prompts(prompts)
    outcomes = await asyncio.gather(
        *(engine.generate(make_job(handle.prompt), handle) for handle in handles),
        *(engine.generate(make_job(prompt, prompt=prompt)) for prompt in prompts),
        return_exceptions=True,
    )
    assert [isinstance(outcome, GenerationFailed) for outcome in outcomes] == [
        False, True, False, False, True, False,
    ]  # fmt: skip
    assert is_empty(engine)


async def test_cancelling_frees_the_device_at_the_next_step(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(step_batch_max_samples=1)
    gate.close()
    long = asyncio.create_task(engine.generate(make_job("long", steps=40)))
    await until(lambda: gate.calls == 1)
    next_one = asyncio.create_task(engine.generate(make_job("next", steps=2)))
    await until(lambda: engine.stats().samples_queued == 1)
    assert engine.cancel("long")
    with pytest.raises(JobCancelled):
        await long
    gate.open()
    await next_one
    assert gate.calls == 1 + 2
    assert not engine.cancel("long")
    assert is_empty(engine)


async def test_a_consumer_that_is_cancelled_takes_its_job_along(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.close()
    task = asyncio.create_task(engine.generate(make_job(steps=40, seeds=(1, 2))))
    await until(lambda: gate.calls == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_empty(engine)
    gate.open()
    await engine.generate(make_job("after", steps=1))
    assert gate.calls == 2


async def test_closing_the_events_takes_the_job_along(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine()
    async with aclosing(engine.submit(make_job(steps=10_000))) as events:
        async for event in events:
            if isinstance(event, Step):
                break
    assert is_empty(engine)
    calls = gate.calls
    await engine.generate(make_job("after", steps=1))
    assert gate.calls <= calls + 2  # the step that was under way, and the new one


async def test_a_job_past_its_deadline_ends_without_another_step(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    with pytest.raises(DeadlineExceeded):
        await engine.generate(make_job(timeout_s=0.0))
    assert gate.calls == 0

    gate.close()
    job = make_job(timeout_s=0.2, steps=50)
    task = asyncio.create_task(engine.generate(job))
    await until(lambda: gate.calls == 1)
    late = time.monotonic() + job.timeout_s
    await until(lambda: time.monotonic() > late)
    gate.open()
    with pytest.raises(DeadlineExceeded):
        await task
    assert gate.calls == 1
    assert is_empty(engine)


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


async def test_nan_fails_its_own_job_and_no_neighbour(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine()
    [healthy] = (await engine.generate(make_job("healthy", steps=2))).images
    [embedding] = await engine.encode_prompts(["a red circle"])
    assert embedding.vectors  # it was cached, so it is there at once
    nan = torch.full_like(embedding.vectors.states, float("nan"))
    poisoned = replace(embedding, vectors=replace(embedding.vectors, states=nan))
    gate.batches.clear()
    gate.close()
    tasks = [
        asyncio.create_task(engine.generate(make_job("healthy", steps=2), embedding)),
        asyncio.create_task(engine.generate(make_job("poisoned", steps=2), poisoned)),
    ]
    await until(
        lambda: (
            gate.calls > 2 and engine.stats().samples_running + engine.stats().samples_queued == 2
        )
    )
    gate.open()
    good, bad = await asyncio.gather(*tasks, return_exceptions=True)
    assert max(gate.batches) == 2
    assert isinstance(bad, GenerationFailed)
    assert not isinstance(good, BaseException)
    assert abs(pixels(good.images[0].image).astype(int) - pixels(healthy.image)).max() <= 1


async def test_a_failing_step_fails_its_batch_only_and_tells_no_secret(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.close()
    tasks = [
        asyncio.create_task(engine.generate(make_job("small", steps=1))),
        asyncio.create_task(engine.generate(make_job("large", width=96, steps=1))),
    ]
    await until(lambda: gate.calls == 1 and engine.stats().samples_queued == 1)
    gate.failing = True
    gate.let_one_through()
    await until(lambda: gate.calls == 2)
    gate.failing = False
    gate.open()
    small, large = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(small, GenerationFailed)
    assert "secret" not in small.message
    assert not isinstance(large, BaseException)
    assert engine.healthy()


async def test_a_device_that_fails_every_time_is_unhealthy_until_it_works_again(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.failing = True
    for number in range(FAILURES_IN_A_ROW_MAX):
        assert engine.healthy()
        with pytest.raises(GenerationFailed):
            await engine.generate(make_job(f"{number}"))
    with pytest.raises(RuntimeError, match="step batches failed"):
        engine.check()
    gate.failing = False
    await engine.generate(make_job())
    engine.check()


async def test_a_stalled_device_is_unhealthy_and_an_idle_one_is_not(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(stall_first_s=0.05)
    assert engine.healthy()
    gate.close()
    task = asyncio.create_task(engine.generate(make_job(steps=1)))
    await until(lambda: not engine.healthy())
    with pytest.raises(RuntimeError, match="no progress"):
        engine.check()
    gate.open()
    await task
    await until(engine.healthy)


async def test_images_are_encoded_beside_the_device(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    threads: list[str] = []
    release = threading.Event()
    encode = codec.encode

    def slow_encode(*arguments: object) -> bytes:
        threads.append(threading.current_thread().name)
        assert release.wait(20)
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


async def test_an_image_that_cannot_be_encoded_fails_its_job(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(GenerationFailed):
        await engine.generate(make_job(output_format="bmp"))
    assert is_empty(engine)
    await engine.generate(make_job())


async def test_closing_finishes_what_runs_and_refuses_what_is_new(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.close()
    running = asyncio.create_task(engine.generate(make_job("running")))
    await until(lambda: gate.calls == 1)
    closing = asyncio.create_task(engine.close(drain_s=30))
    await until(lambda: engine._board.refusal is not None)
    with pytest.raises(Draining):
        await engine.generate(make_job("new"))
    with pytest.raises(Draining):
        await engine.encode_prompts(["new"])
    gate.open()
    assert len((await running).images) == 1
    await closing
    assert not engine.healthy()


async def test_what_does_not_finish_while_draining_is_told_so(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.close()
    running = asyncio.create_task(engine.generate(make_job(steps=1000)))
    await until(lambda: gate.calls == 1)
    closing = asyncio.create_task(engine.close(drain_s=0))
    with pytest.raises(Draining):
        await running
    gate.open()
    await closing
    assert gate.calls == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_jobs_of_a_dead_device_thread_fail_and_new_ones_are_refused(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def broken(*_: object) -> list[int]:
        raise MemoryError

    monkeypatch.setattr("serve_app.engine.planner.choose_step_batch", broken)
    with pytest.raises(GenerationFailed):
        await engine.generate(make_job())
    await until(lambda: not engine.healthy())
    with pytest.raises(RuntimeError, match="dead"):
        engine.check()
    with pytest.raises(Unavailable):
        await engine.generate(make_job())
    with pytest.raises(Unavailable):
        await engine.encode_prompts(["a"])


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


async def test_a_crowd_that_comes_and_goes_leaves_nothing_behind(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(queue_max_samples=60)
    random = np.random.default_rng(3)

    async def visit(number: int) -> str:
        job = make_job(
            f"{number}",
            prompt=f"prompt {number % 5}",
            width=int(random.choice([64, 96])),
            steps=int(random.integers(1, 5)),
            seeds=tuple(int(seed) for seed in random.integers(0, 99, random.integers(1, 4))),
            timeout_s=float(random.choice([0.0, 60.0], p=[0.1, 0.9])),
        )
        leaves_after = random.integers(0, 12)
        try:
            async with aclosing(engine.submit(job)) as events:
                async for _ in events:
                    leaves_after -= 1
                    if leaves_after == 0 and number % 3 == 0:
                        engine.cancel(job.job_id)
                    elif leaves_after == 0 and number % 3 == 1:
                        return "left"
        except (AppError, JobCancelled) as error:
            return type(error).__name__
        return "finished"

    outcomes = await asyncio.gather(*(visit(number) for number in range(80)))
    assert {"finished", "left", "JobCancelled", "DeadlineExceeded"} <= set(outcomes)
    assert set(outcomes) <= {"finished", "left", "JobCancelled", "DeadlineExceeded", "Overloaded"}
    assert is_empty(engine)
    assert not engine._board.runs
    assert not engine._board.samples
    gate.batches.clear()
    await engine.generate(make_job("after", steps=1))
    assert len(gate.batches) <= 2


async def test_one_engine_serves_two_event_loops(make_engine: MakeEngine) -> None:
    engine = make_engine()
    here = engine.generate(make_job("here", steps=2))
    there = asyncio.to_thread(lambda: asyncio.run(engine.generate(make_job("there", steps=2))))
    first, second = await asyncio.gather(here, there)
    difference = pixels(first.images[0].image).astype(int) - pixels(second.images[0].image)
    assert abs(difference).max() <= 1  # one may have been alone for a step


def test_a_loop_that_died_with_a_job_does_not_harm_the_engine(
    schnell_folder: Path,
) -> None:
    engine = Engine.load(str(schnell_folder), EngineConfig(torch_threads=1), text_tokens_max=8)

    async def leave_it() -> None:
        engine._board.admit(make_job("orphan", steps=50), deliver_to_the_dead, None)

    def deliver_to_the_dead(_: object) -> None:
        raise RuntimeError("Event loop is closed")

    async def afterwards(job: GenerationJob) -> int:
        try:
            return len((await engine.generate(job)).images)
        finally:
            await engine.close()

    asyncio.run(leave_it())
    assert asyncio.run(afterwards(make_job())) == 1
    assert not engine._board.runs
