from pathlib import Path

import pytest
from engine_kit import Gate, MakeEngine, make_job
from hypothesis import given
from hypothesis import strategies as st
from schedule_kit import make_planner

from serve_app.engine.budget import GAIN_MIN, Budget, ladder
from serve_app.engine.cost import TRUSTED, CostModel

SHAPE = (512, 512)


def budget(times: dict[int, float], samples_max: int = 8, **limits: object) -> Budget:
    costs = CostModel(token_px=16, text_tokens=256)
    for samples, seconds in times.items():
        for _ in range(TRUSTED):
            costs.record_step(SHAPE, samples, seconds)
    return Budget(costs, samples_max, **limits)


@pytest.mark.parametrize(
    ("times", "limit"),
    [
        ({1: 1.0, 2: 1.36, 4: 2.2, 8: 3.92}, 8),  # 256x256 on an H100: 1.47, 1.82, 2.04
        ({1: 1.0, 2: 1.79, 4: 3.28, 8: 6.45}, 4),  # 512x512: 1.12, 1.22, 1.24
        ({1: 1.0, 2: 1.92, 4: 3.67, 8: 7.27}, 1),  # 768x768: 1.04, 1.09, 1.10
        ({1: 1.0, 2: 3.5, 4: 7.0, 8: 15.0}, 1),  # a CPU that loses by it
    ],
)
def test_the_limit_is_the_largest_batch_that_still_pays(
    times: dict[int, float], limit: int
) -> None:
    assert budget(times).limit(SHAPE) == limit


def test_operators_and_memory_have_the_last_word() -> None:
    times = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}
    assert budget(times).limit(SHAPE) == 8
    assert budget(times, 3).limit(SHAPE) == 3
    assert budget(times, tokens_max=1280 * 5).limit(SHAPE) == 5
    assert budget(times, tokens_max=1).limit(SHAPE) == 1
    assert budget(times, samples_by_shape={SHAPE: 2}).limit(SHAPE) == 2
    assert budget({1: 1.0, 2: 9.0}, samples_by_shape={SHAPE: 4}).limit(SHAPE) == 4
    short_of_memory = budget(times)
    short_of_memory.forbid(SHAPE, 4)
    assert short_of_memory.limit(SHAPE) == 3
    short_of_memory.forbid(SHAPE, 8)
    assert short_of_memory.limit(SHAPE) == 3


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0.001, 100)),
    st.integers(1, 8),
    st.integers(1, 20_000),
)
def test_no_limit_and_no_trial_is_above_what_is_allowed(
    times: dict[int, float], samples_max: int, tokens_max: int
) -> None:
    found = budget(times, samples_max, tokens_max=tokens_max)
    allowed = max(1, min(samples_max, tokens_max // 1280))
    assert 1 <= found.limit(SHAPE) <= allowed
    for _ in range(600):
        trial = found.probe(SHAPE)
        assert trial is None or 1 <= trial <= allowed


def test_the_ladder_ends_with_the_largest() -> None:
    assert [ladder(most) for most in (1, 2, 3, 4, 6, 8)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6], [1, 2, 4, 8],
    ]  # fmt: skip
    assert GAIN_MIN > 1


async def test_warming_up_measures_which_batches_pay(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine(step_batch_max_samples=4)
    await engine.warm_up([(64, 64)])
    costs = engine._planner.costs
    assert costs.measurements((64, 64), 1) >= TRUSTED
    assert max(gate.batches) <= 4
    assert engine._planner.limit((64, 64)) in (1, 2, 4)
    assert engine.stats().samples_running == engine.stats().samples_queued == 0
    await engine.generate(make_job())


async def test_what_was_measured_survives_a_restart(
    make_engine: MakeEngine, gate: Gate, tmp_path: Path
) -> None:
    cache = tmp_path / "cache" / "costs.json"
    first = make_engine(cost_cache=cache, step_batch_max_samples=2)
    await first.warm_up([(64, 64)])
    known = first._planner.costs.dump()["steps"]
    gate.batches.clear()
    second = make_engine(cost_cache=cache, step_batch_max_samples=2)
    assert second._planner.costs.dump()["steps"] == known
    await second.warm_up([(64, 64)])
    assert gate.batches == [1]  # the picture, nothing to measure
    cache.write_text("[]")
    make_engine(cost_cache=cache)
    cache.write_text("{")
    make_engine(cost_cache=cache)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"": 3}', '{"": {"steps": {"x": {"a": "b"}}}}',
                                  '{"": {"steps": 5}}'])  # fmt: skip
def test_a_cache_that_makes_no_sense_is_ignored(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "costs.json"
    cache.write_text(text)
    planner = make_planner(cost_cache=cache)
    assert not planner.costs.measured
    planner.costs.record_step(SHAPE, 1, 1.0)
    planner.keep()
    assert make_planner(cost_cache=cache)
