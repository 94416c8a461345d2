"""Jobs that end before their images are there, and engines that close: nothing stays behind."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest
from engine_kit import Gate, MakeEngine, is_empty, make_job, patience_s, remembers_nothing, until

from serve_app.engine.job import JobCancelled, Step
from serve_app.errors import AppError, DeadlineExceeded, Draining


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
    job = make_job(timeout_s=3600.0, steps=50)
    task = asyncio.create_task(engine.generate(job))
    await until(lambda: gate.calls == 1)
    [run] = engine._board.runs.values()
    run.admitted_at -= job.timeout_s  # in the middle of the first step
    assert run.late
    gate.open()
    with pytest.raises(DeadlineExceeded):
        await task
    assert gate.calls == 1
    assert is_empty(engine)


async def test_closing_finishes_what_runs_and_refuses_what_is_new(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    gate.close()
    running = asyncio.create_task(engine.generate(make_job("running")))
    await until(lambda: gate.calls == 1)
    closing = asyncio.create_task(engine.close(drain_s=patience_s()))
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
    assert remembers_nothing(engine)
    gate.batches.clear()
    await engine.generate(make_job("after", steps=1))
    assert len(gate.batches) <= 2
