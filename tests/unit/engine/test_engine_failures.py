"""What fails, fails its own job: no neighbour in its step batch, and not the engine."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import Gate, MakeEngine, is_empty, make_job, pixels, until

from serve_app.config import EngineConfig
from serve_app.engine.device import FAILURES_IN_A_ROW_MAX
from serve_app.engine.engine import Engine
from serve_app.engine.job import GenerationJob
from serve_app.errors import GenerationFailed, Unavailable


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


async def test_an_image_that_cannot_be_encoded_fails_its_job(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(GenerationFailed):
        await engine.generate(make_job(output_format="bmp"))
    assert is_empty(engine)
    await engine.generate(make_job())


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
