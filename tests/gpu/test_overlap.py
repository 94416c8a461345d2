"""Decoding beside the steps on a GPU: the same pictures, and both streams at work at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from gpu_kit import COMPILED, draw, engine, make_job, true_size, warm_up

from serve_app.engine.engine import Engine
from serve_app.engine.job import Preview

BESIDE = {"overlap_decode": True}
RESOLUTION_MS = 0.01  # of CUDA's events, and then some
Span = tuple[torch.cuda.Event, torch.cuda.Event]


@pytest.mark.parametrize("switches", [{}, COMPILED], ids=str)
@pytest.mark.parametrize(
    "source", ["embedded:flux-mini", pytest.param("random:schnell", marks=true_size)]
)
def test_the_pictures_are_bitwise_those_decoded_between_steps(
    source: str, switches: dict[str, Any]
) -> None:
    """Batches of one, so that nothing else can differ; many jobs, so that there is overlap."""
    jobs = [
        make_job(f"{n}", prompt=f"picture {n}", seeds=(n, n + 1), steps=2 + n) for n in range(6)
    ]
    pictures = []
    for more in ({}, BESIDE):
        with engine(source, step_batch_max_samples=1, optimize=switches | more) as made:
            warm_up(made, (256, 256))
            pictures.append([picture for result in draw(made, *jobs) for picture in result])
            stats = made.stats()
    assert all(np.array_equal(one, other) for one, other in zip(*pictures, strict=True))
    assert (stats.recompiles, stats.eager_calls, stats.out_of_memory) == (0, 0, 0)


def test_previews_come_beside_the_steps_and_leave_the_image_as_it_is() -> None:
    with engine(optimize=BESIDE) as made:

        async def watched() -> list[int]:
            events = made.submit(make_job(steps=8, previews=3))
            return [one.number async for one in events if isinstance(one, Preview)]

        [[before]] = draw(made, make_job(steps=8))
        assert asyncio.run(watched()) == [0, 1, 2]
        [[after]] = draw(made, make_job(steps=8))
    assert np.array_equal(before, after)


@contextmanager
def timed(made: Engine) -> Iterator[tuple[list[Span], list[Span]]]:
    """Events around every transformer call and every decode, each on the stream of its thread."""
    pipeline = made._sampler._pipeline
    steps: list[Span] = []
    decodes: list[Span] = []

    def around(call: Any, spans: list[Span]) -> Any:
        def measured(*args: Any, **options: Any) -> Any:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            result = call(*args, **options)
            end.record()
            spans.append((begin, end))
            return result

        return measured

    transformer, decode = pipeline.transformer.forward, pipeline.vae.decode
    pipeline.transformer.forward = around(transformer, steps)
    pipeline.vae.decode = around(decode, decodes)
    try:
        yield steps, decodes
    finally:
        pipeline.transformer.forward, pipeline.vae.decode = transformer, decode


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "source", ["random:tiny-dev", pytest.param("random:schnell", marks=true_size)]
)
def test_both_streams_work_at_once_with_the_switch_and_only_with_it(
    source: str, overlap: bool
) -> None:
    edge = 1024
    jobs = [make_job(f"{n}", width=edge, height=edge, seeds=(n,), steps=1 + n) for n in range(8)]
    with engine(source, step_batch_max_samples=1, optimize={"overlap_decode": overlap}) as made:
        draw(made, *jobs)
        start = torch.cuda.Event(enable_timing=True)
        start.record()
        with timed(made) as (steps, decodes):
            draw(made, *jobs)
        torch.cuda.synchronize()

        def spans(found: list[Span]) -> list[tuple[float, float]]:
            return [(start.elapsed_time(begin), start.elapsed_time(end)) for begin, end in found]

        both = [
            min(end, done) - max(begin, began)
            for begin, end in spans(steps)
            for began, done in spans(decodes)
        ]
        assert (len(steps), len(decodes)) == (sum(range(1, 9)), 8)
        assert made.stats().decodes_alone == 0
    together_ms = sum(span for span in both if span > RESOLUTION_MS)
    print(f"{source}, overlap {overlap}: both at work for {together_ms:.1f} ms")
    assert (together_ms > 0) is overlap
