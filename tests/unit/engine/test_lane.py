"""Decoding beside the steps: who waits for whom, and that no fate of a decode touches another."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import Gate, MakeEngine, make_job, patience_s, pixels, remembers_nothing, until

from serve_app.config import EngineConfig, OptimizeConfig
from serve_app.engine.engine import Engine
from serve_app.engine.job import Finished, JobCancelled, Preview
from serve_app.engine.lane import AHEAD_MAX
from serve_app.engine.optimize import Compiled
from serve_app.errors import Draining, GenerationFailed, Unavailable

BESIDE = OptimizeConfig(overlap_decode=True)


class Vae:
    """Stands before every decode: notes its thread, holds it, or has it fail."""

    def __init__(self, pipeline: FluxPipeline) -> None:
        self.threads: list[str] = []
        self.failures: list[BaseException] = []
        self.working = 0
        self._decode: Callable[..., Any] = pipeline.vae.decode
        self._open = threading.Event()
        self._open.set()
        pipeline.vae.decode = self._pass

    def hold(self) -> None:
        self._open.clear()

    def let_go(self) -> None:
        self._open.set()

    def _pass(self, *args: Any, **options: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        self.working += 1
        try:
            assert self._open.wait(patience_s())
            if self.failures:
                raise self.failures.pop()
            return self._decode(*args, **options)
        finally:
            self.working -= 1


@pytest.fixture
def vae(pipeline: FluxPipeline) -> Iterator[Vae]:
    vae = Vae(pipeline)
    yield vae
    vae.let_go()


async def test_steps_go_on_while_an_image_is_decoded(
    make_engine: MakeEngine, vae: Vae, gate: Gate
) -> None:
    engine = make_engine(optimize=BESIDE)
    vae.hold()
    first = asyncio.create_task(engine.generate(make_job("first", steps=1)))
    await until(lambda: vae.working == 1)
    second = asyncio.create_task(engine.generate(make_job("second", steps=5)))
    await until(lambda: engine.stats().steps_done == 6)
    assert not first.done()
    assert vae.threads == ["flux-decode"]
    assert engine.stats().samples_running == 2
    vae.let_go()
    await asyncio.gather(first, second)
    assert gate.batches == [1] * 6
    await until(lambda: remembers_nothing(engine))
    assert engine.stats().decodes_alone == 0


async def test_without_the_switch_the_device_decodes_between_steps(
    make_engine: MakeEngine, vae: Vae
) -> None:
    await make_engine().generate(make_job())
    assert vae.threads == ["flux-device"]


async def test_images_and_previews_are_bitwise_those_decoded_between_steps(
    make_engine: MakeEngine, pipeline: FluxPipeline
) -> None:
    async def drawn(engine: Engine) -> dict[tuple[object, ...], bytes]:
        found: dict[tuple[object, ...], bytes] = {}

        async def draw(name: str, **changes: Any) -> None:
            async with aclosing(engine.submit(make_job(name, **changes))) as events:
                async for event in events:
                    if isinstance(event, Preview):
                        found[name, event.index, event.number] = event.image
                    elif isinstance(event, Finished):
                        found[name, event.index, "image"] = event.image

        await asyncio.gather(
            *(draw(f"{n}", width=64 + 32 * (n % 2), seeds=(n, 9), previews=n) for n in range(4))
        )
        return found

    plain = await drawn(make_engine(step_batch_max_samples=1))
    beside = await drawn(make_engine(step_batch_max_samples=1, optimize=BESIDE))
    assert len(plain) == 2 * 4 + 2 * (0 + 1 + 2 + 2)
    assert beside == plain


async def test_previews_come_in_order_before_their_image(make_engine: MakeEngine) -> None:
    engine = make_engine(optimize=BESIDE)
    async with aclosing(engine.submit(make_job(steps=4, previews=3))) as events:
        found = [event async for event in events if isinstance(event, Preview | Finished)]
    assert [one.number for one in found if isinstance(one, Preview)] == [0, 1, 2]
    assert isinstance(found[-1], Finished)


async def test_steps_wait_for_a_lane_that_lags_but_prompts_do_not(
    make_engine: MakeEngine, vae: Vae
) -> None:
    engine = make_engine(optimize=BESIDE, step_batch_max_samples=1)
    vae.hold()
    jobs = [asyncio.create_task(engine.generate(make_job(f"{n}", steps=1))) for n in range(12)]
    await until(lambda: engine.stats().steps_done == AHEAD_MAX + 1)
    [handle] = await engine.encode_prompts(["a prompt that comes late"])
    await until(lambda: not handle.pending)
    assert engine.stats().steps_done == AHEAD_MAX + 1
    vae.let_go()
    await asyncio.gather(*jobs)
    assert engine.stats().steps_done == 12


async def test_a_failing_decode_fails_its_own_job_only(make_engine: MakeEngine, vae: Vae) -> None:
    engine = make_engine(optimize=BESIDE, step_batch_max_samples=1)
    vae.failures.append(RuntimeError("a secret of the machine"))
    jobs = [engine.generate(make_job(f"{n}", steps=1)) for n in range(4)]
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    [failed] = [one for one in outcomes if isinstance(one, BaseException)]
    assert isinstance(failed, GenerationFailed)
    assert "secret" not in failed.message
    assert engine.healthy()
    await until(lambda: remembers_nothing(engine))


async def test_a_decode_without_memory_beside_a_step_is_done_between_two(
    make_engine: MakeEngine, vae: Vae
) -> None:
    engine = make_engine(optimize=BESIDE)
    vae.failures.append(torch.OutOfMemoryError("CUDA out of memory"))
    result = await engine.generate(make_job(seeds=(1, 2)))
    assert len(result.images) == 2
    assert sorted(vae.threads) == ["flux-decode", "flux-decode", "flux-device"]
    stats = engine.stats()
    assert (stats.out_of_memory, stats.decodes_alone) == (1, 1)


async def test_a_size_too_large_to_be_decoded_beside_a_step_is_decoded_between_two(
    make_engine: MakeEngine, vae: Vae
) -> None:
    engine = make_engine(optimize=BESIDE, memory_limit_gib=0.01)
    small, large = (64, 64), (192, 128)
    assert engine.memory.fits_beside(small)
    assert not engine.memory.fits_beside(large)
    await engine.generate(make_job(width=large[1], height=large[0], previews=1))
    assert vae.threads == ["flux-device"] * 2
    assert engine.stats().decodes_alone == 2
    await engine.generate(make_job())
    assert vae.threads[2:] == ["flux-decode"]


async def test_a_step_without_memory_beside_a_decode_is_tried_again_alone(
    make_engine: MakeEngine, vae: Vae, pipeline: FluxPipeline
) -> None:
    """What the decode took for a while says nothing about the batches that fit."""
    engine = make_engine(optimize=BESIDE)

    def tight(*_: object) -> None:
        if vae.working:
            vae.let_go()
            raise torch.OutOfMemoryError("CUDA out of memory")

    vae.hold()
    first = asyncio.create_task(engine.generate(make_job("first", steps=1)))
    await until(lambda: vae.working == 1)
    pipeline.transformer.register_forward_pre_hook(tight)
    crowd = engine.generate(make_job("crowd", steps=2, seeds=(1, 2, 3, 4)))
    await asyncio.gather(first, crowd)
    assert engine.stats().out_of_memory == 1
    assert engine._planner.budget.most((64, 64)) == 8


async def test_cancelling_a_job_that_is_being_decoded_frees_its_place(
    make_engine: MakeEngine, vae: Vae
) -> None:
    engine = make_engine(optimize=BESIDE)
    vae.hold()
    held = asyncio.create_task(engine.generate(make_job("held", steps=1)))
    await until(lambda: vae.working == 1)
    waiting = asyncio.create_task(engine.generate(make_job("waiting", steps=1)))
    await until(lambda: engine.stats().steps_done == 2)
    assert engine.cancel("held")
    assert engine.cancel("waiting")
    for task in (held, waiting):
        with pytest.raises(JobCancelled):
            await task
    assert remembers_nothing(engine)
    vae.let_go()
    assert len((await engine.generate(make_job("after"))).images) == 1
    assert len(vae.threads) == 2  # the one that waited was never decoded


async def test_closing_does_not_wait_for_what_waits_in_the_lane(
    make_engine: MakeEngine, vae: Vae
) -> None:
    engine = make_engine(optimize=BESIDE)
    vae.hold()
    jobs = [asyncio.create_task(engine.generate(make_job(f"{n}", steps=1))) for n in range(3)]
    await until(lambda: engine.stats().steps_done == 3 and vae.working == 1)
    closing = asyncio.create_task(engine.close(drain_s=0))
    for job in jobs:
        with pytest.raises(Draining):
            await job
    vae.let_go()
    await closing
    assert len(vae.threads) == 1
    assert not engine.healthy()


async def test_closing_drains_what_is_being_decoded(make_engine: MakeEngine, vae: Vae) -> None:
    engine = make_engine(optimize=BESIDE)
    vae.hold()
    job = asyncio.create_task(engine.generate(make_job(steps=1)))
    await until(lambda: vae.working == 1)
    closing = asyncio.create_task(engine.close(drain_s=patience_s()))
    await until(lambda: engine._board.refusal is not None)
    vae.let_go()
    assert len((await job).images) == 1
    await closing


async def test_a_wedged_decode_is_noticed(make_engine: MakeEngine, vae: Vae) -> None:
    engine = make_engine(optimize=BESIDE, stall_first_s=0.05)
    vae.hold()
    job = asyncio.create_task(engine.generate(make_job(steps=1)))
    await until(lambda: vae.working == 1 and not engine.healthy())
    with pytest.raises(RuntimeError, match=r"no progress .*decode"):
        engine.check()
    vae.let_go()
    await job
    engine.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_jobs_of_a_dead_lane_fail_and_new_ones_are_refused(
    make_engine: MakeEngine, vae: Vae
) -> None:
    engine = make_engine(optimize=BESIDE)
    vae.failures.append(SystemExit("the thread is told to go"))
    with pytest.raises(GenerationFailed):
        await engine.generate(make_job())
    await until(lambda: not engine.healthy())
    with pytest.raises(RuntimeError, match="dead"):
        engine.check()
    with pytest.raises(Unavailable):
        await engine.generate(make_job())


async def test_the_decoder_is_compiled_by_the_thread_that_runs_it(
    pipeline: FluxPipeline, vae: Vae
) -> None:
    optimize = OptimizeConfig(overlap_decode=True, compile_vae=True, channels_last_vae=False)
    config = EngineConfig(torch_threads=1, budget_measure_s=0, optimize=optimize)
    vae_decode, pipeline.vae.decode = pipeline.vae.decode, vae._decode
    async with Engine(pipeline, config, text_tokens_max=8, compile_backend="eager") as engine:
        await engine.warm_up([(64, 64)])
        await asyncio.gather(*(engine.generate(make_job(f"{n}")) for n in range(3)))
        assert (engine.stats().recompiles, engine.stats().eager_calls) == (0, 0)
        [image] = (await engine.generate(make_job(width=96))).images
        assert (engine.stats().recompiles, engine.stats().eager_calls) == (0, 1)
    assert np.ptp(pixels(image.image)) > 0
    assert vae_decode == vae._pass


def test_two_calls_at_once_that_may_not_compile_leave_the_compiler_on() -> None:
    compiled = Compiled("static", vae=True)
    compiled.freeze()
    step, decode = compiled.call(64, 64, 1), compiled.call(64, 64, 0)
    function = torch.compile(lambda x: x * 3, backend="eager")
    step.__enter__()
    decode.__enter__()
    step.__exit__(None, None, None)
    function(torch.ones(2))
    assert compiled.recompiles == 0  # the other one still holds the compiler off
    decode.__exit__(None, None, None)
    function(torch.ones(2))
    assert compiled.recompiles == 1
    assert compiled.eager_calls == 2
