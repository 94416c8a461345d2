"""The loop survives everything: failing samples, no memory, wedged devices, crowds that leave."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import Gate, MakeEngine, is_empty, make_job, pixels, remembers_nothing, until

from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine import memory
from serve_app.engine.board import JobRun, SampleRun
from serve_app.engine.engine import Engine
from serve_app.engine.job import Finished, GenerationJob, JobCancelled
from serve_app.engine.load import load_pipeline
from serve_app.engine.retry import Retrying
from serve_app.engine.sampler import NonFiniteLatents, Pixels, Sample, Sampler
from serve_app.engine.schedule import Shape
from serve_app.engine.text import PromptVectors
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import AppError, GenerationFailed

JOBS = 10_000
VISITORS = 10  # in flight at once: more than two full batches
# A fake model does what a job's guidance says.
WELL, POISON, HUNGRY, STARVED, BLACK, TORN = (float(n) for n in range(6))
FATES = (WELL, POISON, HUNGRY, STARVED, BLACK, TORN)
DOOMED = {POISON, STARVED, BLACK, TORN}


class FakeModel:
    """Stands in for a sampler's model; every sample it starts is watched until it is gone."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.alive: weakref.WeakSet[Sample] = weakref.WeakSet()

    def take_over(self, sampler: Sampler) -> None:
        for name in ("start", "step", "decode"):
            setattr(sampler, name, getattr(self, name))

    def start(
        self, vectors: PromptVectors, width: int, height: int, steps: int, guidance: float, _: int
    ) -> Sample:
        nothing = torch.zeros(1)
        sample = Sample(vectors, width, height, steps, guidance, nothing, nothing, None, nothing)
        self.alive.add(sample)
        return sample

    def step(self, samples: list[Sample]) -> None:
        self.calls.append(len(samples))
        fates = [sample.guidance for sample in samples]
        if STARVED in fates or (HUNGRY in fates and len(samples) > 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        for sample in samples:
            if sample.guidance == POISON:
                raise RuntimeError("a secret of the machine")
            sample.steps_done += 1

    def decode(self, sample: Sample) -> Pixels:
        if sample.guidance == BLACK:
            raise NonFiniteLatents
        if sample.guidance == TORN:
            raise RuntimeError("the VAE is torn")
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    logging.disable(logging.CRITICAL)  # thousands of failures are meant to happen
    yield
    logging.disable(logging.NOTSET)


def start(model: FakeModel, *fates: float) -> list[Sample]:
    vectors = PromptVectors("", torch.zeros(1), torch.zeros(1))
    return [model.start(vectors, 64, 64, 3, fate, 0) for fate in fates]


def retrying(model: FakeModel, limits: list[tuple[Shape, int]] | None = None) -> Retrying:
    def limit(shape: Shape, samples: int) -> None:
        if limits is not None:
            limits.append((shape, samples))

    return Retrying(model, limit)  # type: ignore[arg-type]


def test_a_healthy_batch_costs_one_call(model: FakeModel) -> None:
    assert retrying(model).step(start(model, *[WELL] * 4)) == []
    assert model.calls == [4]


def test_of_a_failing_batch_only_the_culprit_fails(model: FakeModel) -> None:
    samples = start(model, WELL, WELL, POISON, WELL)
    assert retrying(model).step(samples) == [samples[2]]
    assert [sample.steps_done for sample in samples] == [1, 1, 0, 1]
    assert model.calls == [4, 1, 1]  # those before the culprit had stepped already


def test_out_of_memory_halves_the_batch_and_the_limit(model: FakeModel) -> None:
    samples = start(model, WELL, WELL, WELL, HUNGRY)
    limits: list[tuple[Shape, int]] = []
    contained = retrying(model, limits)
    assert contained.step(samples) == []
    assert [sample.steps_done for sample in samples] == [1, 1, 1, 1]
    assert model.calls == [4, 2, 2, 1, 1]
    assert limits == [((64, 64), 2), ((64, 64), 1)]
    assert contained.out_of_memory == 2


def test_a_sample_too_large_for_the_memory_fails_after_a_second_try(model: FakeModel) -> None:
    samples = start(model, STARVED)
    assert retrying(model).step(samples) == samples
    assert model.calls == [1, 1]


def test_a_decode_is_tried_again_after_running_out_of_memory(model: FakeModel) -> None:
    decoded, tries = model.decode, []

    def tight(sample: Sample) -> Pixels:
        tries.append(sample)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decoded(sample)

    model.decode = tight  # type: ignore[method-assign]
    [sample] = start(model, WELL)
    assert retrying(model).decode(sample).shape == (8, 8, 3)
    with pytest.raises(NonFiniteLatents):
        retrying(model).decode(start(model, BLACK)[0])


async def test_out_of_memory_in_a_crowd_fails_nobody_and_is_not_repeated(
    make_engine: MakeEngine, pipeline: FluxPipeline, gate: Gate
) -> None:
    engine = make_engine(step_batch_max_samples=4)

    def small_memory(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["hidden_states"].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    pipeline.transformer.register_forward_pre_hook(small_memory, with_kwargs=True)
    result = await engine.generate(make_job(seeds=(1, 2, 3, 4), steps=3))
    assert len({pixels(image.image).tobytes() for image in result.images}) == 4
    assert engine.stats().out_of_memory == 1
    assert sorted(gate.batches[1:]) == [2] * 6
    assert engine.healthy()


@pytest.mark.parametrize("compile_transformer", ["off", "static"])
async def test_a_warm_up_that_runs_out_of_memory_finds_the_limit(
    schnell_folder: Path, compile_transformer: str
) -> None:
    optimize = OptimizeConfig(compile_transformer=compile_transformer)
    config = EngineConfig(
        torch_threads=1, step_batch_max_samples=8, budget_measure_s=600, optimize=optimize
    )
    pipeline = load_pipeline(str(schnell_folder), "cpu", "fp32")
    batches: list[int] = []

    def small_memory(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        batches.append(kwargs["hidden_states"].shape[0])
        if batches[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    pipeline.transformer.register_forward_pre_hook(small_memory, with_kwargs=True)
    async with Engine(pipeline, config, text_tokens_max=8, compile_backend="eager") as engine:
        await engine.warm_up([(64, 64)])
        batches.clear()
        await engine.generate(make_job(seeds=tuple(range(6))))
        assert max(batches) <= 2 or compile_transformer == "off"
        assert engine.stats().out_of_memory <= 1


async def test_a_failing_sample_harms_none_of_its_batch_mates(
    make_engine: MakeEngine, pipeline: FluxPipeline, gate: Gate
) -> None:
    engine = make_engine(step_batch_max_samples=4)
    model = FakeModel()
    model.take_over(engine._sampler)
    jobs = [make_job(f"{fate}", guidance=fate) for fate in (WELL, POISON, WELL, HUNGRY)]
    outcomes = await asyncio.gather(*map(engine.generate, jobs), return_exceptions=True)
    assert [isinstance(one, GenerationFailed) for one in outcomes] == [False, True, False, False]
    assert "secret" not in str(outcomes[1])
    assert engine.healthy()


def test_a_stage_may_take_several_times_what_it_usually_takes() -> None:
    now_s = 0.0
    dog = Watchdog(first_s=60, factor=10, floor_s=30, clock=lambda: now_s)

    def stage(kind: object, seconds: float, *, learn: bool = True) -> bool:
        """Whether it was overdue at its end."""
        nonlocal now_s
        dog.begin(kind)
        assert dog.overdue() is None
        now_s += seconds
        found = dog.overdue()
        assert found is None or str(kind) in found
        dog.end(learn=learn)
        assert dog.overdue() is None
        return found is not None

    assert stage("step", 61)  # more than a first use may take
    assert not stage("step", 609)  # ten times what it took
    assert stage("decode", 61, learn=False)
    assert stage("decode", 61, learn=False)  # a failed one teaches nothing
    assert not stage("text", 1)
    assert not stage("text", 30)  # a host's hiccup, below the floor
    assert stage("text", 69)  # the usual is 0.8 x 1 s + 0.2 x 30 s


async def test_a_wedged_device_is_noticed_by_what_its_steps_usually_take(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine(stall_first_s=600, stall_factor=2)
    engine._device._watchdog.floor_s = 0.2
    await engine.generate(make_job(steps=6))
    gate.close()
    task = asyncio.create_task(engine.generate(make_job(steps=1)))
    await until(lambda: not engine.healthy())
    with pytest.raises(RuntimeError, match="no progress"):
        engine.check()
    gate.open()
    await task
    engine.check()


@dataclass(frozen=True)
class Visit:
    """One job with a random fate, and a client that may leave at any event."""

    job: GenerationJob
    leaves_after: int
    how: int

    async def to(self, engine: Engine) -> tuple[float, str]:
        fate, left, images = self.job.guidance, self.leaves_after, 0
        try:
            async with aclosing(engine.submit(self.job)) as events:
                async for event in events:
                    images += isinstance(event, Finished)
                    left -= 1
                    if left == 0 and self.how == 1:
                        engine.cancel(self.job.job_id)
                    elif left == 0 and self.how == 2:
                        return fate, "left"
        except (AppError, JobCancelled) as error:
            return fate, type(error).__name__
        assert images == len(self.job.seeds)
        return fate, "finished"


def visits(count: int) -> Iterator[Visit]:
    """All drawn at once: numpy is slow for one at a time."""
    random = np.random.default_rng(11)
    fates = random.choice(FATES, count, p=[0.7, 0.08, 0.06, 0.04, 0.06, 0.06]).tolist()
    widths = random.choice([64, 96, 128, 160], count).tolist()
    steps, samples = random.integers(1, 3, (2, count)).tolist()
    late = (random.random(count) < 0.03).tolist()
    leaves, how = random.integers(1, 10, count).tolist(), random.integers(0, 3, count).tolist()
    for n in range(count):
        job = make_job(
            f"{n}",
            prompt=f"prompt {n % 7}",
            width=widths[n],
            steps=steps[n],
            guidance=fates[n],
            seeds=tuple(range(samples[n])),
            timeout_s=0.0 if late[n] else 3600.0,
            account=f"{n % 3}",
        )
        yield Visit(job, leaves[n], how[n])


async def crowd(engine: Engine) -> list[tuple[float, str]]:
    to_come, outcomes = visits(JOBS), []

    async def visitor() -> None:
        for visit in to_come:
            outcomes.append(await visit.to(engine))

    await asyncio.gather(*(visitor() for _ in range(VISITORS)))
    return outcomes


async def test_ten_thousand_jobs_that_come_leave_and_fail_leave_nothing_behind(
    make_engine: MakeEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "release", lambda: None)  # a tenth of a second, a thousand times
    engine = make_engine(step_batch_max_samples=4)
    model = FakeModel()
    model.take_over(engine._sampler)
    tasks = len(asyncio.all_tasks())
    threads = threading.active_count()

    outcomes = await crowd(engine)

    seen = {name for _, name in outcomes}
    assert seen == {"finished", "left", "JobCancelled", "GenerationFailed", "DeadlineExceeded"}
    assert len(outcomes) == JOBS
    assert not [fate for fate, name in outcomes if name == "GenerationFailed" and fate == WELL]
    assert not [fate for fate, name in outcomes if name == "finished" and fate in DOOMED]
    board = engine._board
    await until(lambda: is_empty(engine) and remembers_nothing(engine))
    await engine.close()
    gc.collect()
    assert not list(model.alive)
    assert not [one for one in gc.get_objects() if type(one) in (JobRun, SampleRun)]
    assert not board.planner.shares._jobs
    assert not board.planner.shares._accounts
    assert len(asyncio.all_tasks()) == tasks
    assert threading.active_count() <= threads
    assert len(engine.stats().sizes) <= 4
