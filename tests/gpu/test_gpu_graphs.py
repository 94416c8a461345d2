"""CUDA graphs: replays draw bit for bit what calls draw, and fit beside everything else."""

from typing import Any

import numpy as np
import pytest
from gpu_kit import COMPILED, draw, engine, make_job, true_size, warm_up

SIZES = {"cuda_graphs": ("256x256",)}
REPLAYS = 10


@pytest.mark.parametrize(
    "switches",
    [{}, COMPILED, {**COMPILED, "compile_transformer": "static"}, {"overlap_decode": True}],
    ids=str,
)
@pytest.mark.parametrize(
    "source",
    ["embedded:flux-mini", "random:tiny-dev", pytest.param("random:schnell", marks=true_size)],
)
def test_replays_draw_what_calls_draw(source: str, switches: dict[str, Any]) -> None:
    """One sample at a time, prompts, seeds and guidances in turn through the same buffers."""
    jobs = [
        make_job(f"{n}", prompt=f"picture {n}", seeds=(n,), guidance=1.0 + n)
        for n in range(REPLAYS)
    ]
    pictures = []
    for more in ({}, SIZES):
        with engine(source, step_batch_max_samples=4, optimize=switches | more) as made:
            warm_up(made, (256, 256))
            pictures.append([draw(made, job)[0][0] for job in jobs])
            stats = made.stats()
    assert all(np.array_equal(one, other) for one, other in zip(*pictures, strict=True))
    assert len({picture.tobytes() for picture in pictures[1]}) == REPLAYS
    assert (stats.graph_replays, stats.graph_misses) == (4 * REPLAYS, 0)
    assert stats.recompiles == 0


def test_every_batch_size_is_replayed_and_others_are_counted() -> None:
    with engine(step_batch_max_samples=4, optimize=SIZES) as made:
        warm_up(made, (256, 256), (512, 256))
        draw(made, *(make_job(f"{n}", seeds=tuple(range(n))) for n in (1, 2, 3, 4)))
        assert made.stats().graph_misses == 0
        assert made.stats().graph_replays > 0
        draw(made, make_job(width=512, steps=3))
        assert made.stats().graph_misses == 3


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_a_batch_replayed_is_the_batch_called(samples: int) -> None:
    """All samples of one job start together, so both sides step the same batches."""
    job = make_job(seeds=tuple(range(samples)))
    pictures = []
    for switches in ({}, SIZES):
        with engine(
            step_batch_max_samples=4, step_batch_samples={"256x256": 4}, optimize=switches
        ) as made:
            warm_up(made, (256, 256))
            pictures.append(draw(made, job)[0])
    assert all(np.array_equal(one, other) for one, other in zip(*pictures, strict=True))
