"""Previews: where they lie, what they show, and that they change nothing else."""

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from engine_kit import TEXT_TOKENS, Gate, MakeEngine, make_job, patience_s, pixels, until
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import EngineConfig
from serve_app.engine import codec
from serve_app.engine.engine import Engine
from serve_app.engine.job import Event, Finished, GenerationJob, Preview, preview_steps
from serve_app.engine.sampler import Sampler
from serve_app.engine.text import PromptEncoder
from tools.flux_mini.judge import describe


def test_previews_are_evenly_spaced() -> None:
    assert preview_steps(4, 0) == ()
    assert preview_steps(4, 1) == (2,)
    assert preview_steps(4, 2) == (1, 3)
    assert preview_steps(4, 3) == (1, 2, 3)
    assert preview_steps(28, 3) == (7, 14, 21)


def test_few_steps_give_fewer_previews() -> None:
    assert preview_steps(1, 3) == ()
    assert preview_steps(2, 3) == (1,)
    assert preview_steps(3, 3) == (1, 2)


@given(st.integers(1, 200), st.integers(0, 3))
def test_every_preview_has_a_step_of_its_own_before_the_last(steps: int, previews: int) -> None:
    found = preview_steps(steps, previews)
    assert len(found) == min(previews, steps - 1)
    assert len(set(found)) == len(found)
    assert all(1 <= step < steps for step in found)
    gaps = np.diff([0, *found, steps])
    assert gaps.max() - gaps.min() <= 1


async def events_of(engine: Engine, job: GenerationJob) -> list[Event]:
    async with aclosing(engine.submit(job)) as events:
        return [event async for event in events]


def order(events: list[Event], index: int) -> list[int | str]:
    """The previews' numbers and the image of one sample, as they came."""
    return [
        event.number if isinstance(event, Preview) else "image"
        for event in events
        if isinstance(event, Preview | Finished) and event.index == index
    ]


async def test_previews_come_in_order_before_their_image(make_engine: MakeEngine) -> None:
    job = make_job(steps=4, previews=3, seeds=(1, 2), width=96, output_format="webp")
    events = await events_of(make_engine(), job)
    assert order(events, 0) == order(events, 1) == [0, 1, 2, "image"]
    for event in events:
        if isinstance(event, Preview):
            assert event.image[8:12] == b"WEBP"
            assert pixels(event.image).shape == (64, 96, 3)


async def test_previews_leave_the_image_of_a_sample_alone_bitwise_as_it_is(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(step_batch_max_samples=1)
    plain = await engine.generate(make_job(steps=5, seeds=(7, 8)))
    watched = await engine.generate(make_job(steps=5, seeds=(7, 8), previews=3))
    assert [one.image for one in watched.images] == [one.image for one in plain.images]


def test_previews_leave_a_step_batch_bitwise_as_it_is(pipeline: FluxPipeline) -> None:
    """The same two samples in the same batches: an engine would choose batches by their times."""
    [vectors] = PromptEncoder(pipeline, TEXT_TOKENS, 0).encode(["a red circle"])
    sampler = Sampler(pipeline, "cpu")

    def drawn(steps_shown: tuple[int, ...]) -> tuple[list[torch.Tensor], list[np.ndarray], int]:
        samples = [sampler.start(vectors, 64, 64, 5, 2.0, seed) for seed in (7, 8)]
        shown = 0
        for sample in samples:
            sample.preview_steps = steps_shown
        while not samples[0].done:
            sampler.step(samples)
            for sample in samples:
                if sample.preview is not None:
                    sampler.decode_latents(sample.preview, 64, 64)
                    shown += 1
        return [one.latents for one in samples], [sampler.decode(one) for one in samples], shown

    plain, images, none = drawn(())
    watched, same_images, previews = drawn(preview_steps(5, 3))
    assert (none, previews) == (0, 6)
    assert all(map(torch.equal, plain, watched))
    assert all(map(np.array_equal, images, same_images))


async def test_previews_move_the_image_of_a_sample_in_company_by_a_rounding_at_most(
    make_engine: MakeEngine,
) -> None:
    """Which samples share a batch depends on how long steps took, previews or not."""
    engine = make_engine()
    plain = await engine.generate(make_job(steps=5, seeds=(7, 8)))
    watched = await engine.generate(make_job(steps=5, seeds=(7, 8), previews=3))
    for one, other in zip(plain.images, watched.images, strict=True):
        difference = pixels(one.image).astype(int) - pixels(other.image)
        assert abs(difference).max() <= 1


async def test_nobody_pays_for_previews_that_nobody_wants(
    make_engine: MakeEngine, pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodes = 0
    decode = pipeline.vae.decode

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal decodes
        decodes += 1
        return decode(*args, **options)

    monkeypatch.setattr(pipeline.vae, "decode", counting)
    engine = make_engine()
    await asyncio.gather(
        engine.generate(make_job("plain", steps=4)),
        engine.generate(make_job("watched", steps=4, previews=2)),
    )
    assert decodes == 1 + 3


async def test_a_preview_is_where_its_step_points(
    make_engine: MakeEngine, pipeline: FluxPipeline
) -> None:
    """An Euler step goes from sigma to the next sigma; the preview goes on to zero."""
    engine = make_engine()
    job = make_job(steps=3)
    (handle,) = await engine.encode_prompts([job.prompt])
    await engine.generate(job, handle)
    assert handle.vectors is not None
    sampler = Sampler(pipeline, "cpu")
    sample = sampler.start(handle.vectors, 64, 64, job.steps, job.guidance, job.seeds[0])
    sample.preview_steps = (2,)
    sampler.step([sample])
    assert sample.preview is None
    before = sample.latents
    sampler.step([sample])
    now, then = sample.scheduler.sigmas[1], sample.scheduler.sigmas[2]
    velocity = (sample.latents - before) / (then - now)
    assert sample.preview is not None
    torch.testing.assert_close(sample.preview, before - now * velocity, rtol=1e-4, atol=1e-4)
    sampler.step([sample])
    assert sample.done


async def test_a_preview_that_cannot_be_decoded_costs_nobody_the_image(
    make_engine: MakeEngine, pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, failures = pipeline.vae.decode, [RuntimeError("out of memory")]

    def failing_once(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return decode(*args, **options)

    monkeypatch.setattr(pipeline.vae, "decode", failing_once)
    events = await events_of(make_engine(), make_job(steps=4, previews=3))
    assert order(events, 0) == [0, 1, "image"]


async def test_a_preview_that_cannot_be_encoded_costs_nobody_the_image(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, failures = codec.encode, [RuntimeError("no such format")]

    def failing_once(*args: Any) -> bytes:
        if failures:
            raise failures.pop()
        return encode(*args)

    monkeypatch.setattr(codec, "encode", failing_once)
    events = await events_of(make_engine(), make_job(steps=2, previews=1))
    assert order(events, 0) == ["image"]


async def test_a_slow_preview_is_not_overtaken(
    make_engine: MakeEngine, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads encode; the second has the image ready while the first has the preview yet."""
    encode, may_finish, calls = codec.encode, threading.Event(), 0

    def slow_first(*args: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert may_finish.wait(patience_s())
        return encode(*args)

    monkeypatch.setattr(codec, "encode", slow_first)
    engine = make_engine(encode_threads=2)
    job = asyncio.create_task(events_of(engine, make_job(steps=2, previews=1)))
    await until(lambda: calls == 2)
    may_finish.set()
    assert order(await job, 0) == [0, "image"]


async def test_a_consumer_that_leaves_at_a_preview_stops_the_device(
    make_engine: MakeEngine, gate: Gate
) -> None:
    engine = make_engine()
    job = make_job(steps=40, previews=3)
    gate.close()  # before the job comes: each step waits until an event lets it through
    async with aclosing(engine.submit(job)) as events:
        async for event in events:
            if isinstance(event, Preview):
                break
            gate.let_one_through()
    await until(lambda: engine.stats().samples_running == 0)
    assert gate.calls <= 12  # the preview lies at step 10, and one more may be under way


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


async def test_flux_minis_previews_show_the_image_and_come_closer_to_it() -> None:
    """From the first preview on the scene is there; from preview to preview noise has its say."""
    engine = await asyncio.to_thread(
        Engine.load, "embedded:flux-mini", EngineConfig(torch_threads=1)
    )
    closeness = []
    async with engine:
        for seed in (3, 4, 5):
            job = make_job(
                prompt="a red circle on a blue background",
                width=256, height=256, steps=8, guidance=0.0, seeds=(seed,), previews=3,
            )  # fmt: skip
            events = await events_of(engine, job)
            pictures = [pixels(e.image) for e in events if isinstance(e, Preview | Finished)]
            *previews, image = pictures
            assert len(previews) == 3
            assert {str(describe(picture)) for picture in pictures} == {"1 red circle on blue"}
            closeness.append([psnr(preview, image) for preview in previews])
    first, _, last = np.mean(closeness, axis=0)
    assert first > 20
    assert last > first + 1
