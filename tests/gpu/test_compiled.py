"""Compilation belongs to the start: no client ever waits for it."""

import pytest
from gpu_kit import COMPILED, draw, engine, make_job, true_size, warm_up

SIZES = [(256, 256), (512, 256), (512, 512)]


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize(
    "source", ["random:tiny-dev", pytest.param("random:schnell", marks=true_size)]
)
def test_nothing_is_compiled_after_the_warm_up(source: str, mode: str) -> None:
    switches = {**COMPILED, "compile_transformer": mode}
    with engine(source, step_batch_max_samples=4, optimize=switches) as made:
        warm_up(made, *SIZES)
        jobs = [
            make_job(f"{n}-{width}x{height}", width=width, height=height, seeds=tuple(range(n)))
            for n in (1, 2, 3, 4)
            for width, height in SIZES
        ]
        draw(made, *jobs)
        stats = made.stats()
    assert stats.recompiles == 0
    assert stats.eager_calls == 0


def test_a_size_that_was_not_warmed_up_waits_for_no_compiler() -> None:
    with engine(optimize={"compile_transformer": "static"}) as made:
        warm_up(made, (256, 256))
        draw(made, make_job(width=384, height=320))
        stats = made.stats()
    assert stats.recompiles == 0
    assert stats.eager_calls > 0
