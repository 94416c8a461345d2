import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.cost import TRUSTED, WINDOW, CostModel

SHAPES = [(256, 256), (512, 512), (768, 1024), (1024, 1024)]


def model() -> CostModel:
    return CostModel(token_px=16, text_tokens=256)


def learn(costs: CostModel, shape: tuple[int, int], samples: int, seconds: float) -> None:
    for _ in range(TRUSTED):
        costs.record_step(shape, samples, seconds)


@pytest.mark.parametrize(("edge", "milliseconds"), [(256, 24), (512, 36), (768, 67), (1024, 122)])
def test_one_measured_size_foretells_the_others_as_on_an_h100(
    edge: int, milliseconds: float
) -> None:
    """Step times of FLUX.1-schnell in bf16, computed; what is measured is 512x512 alone."""
    costs = model()
    learn(costs, (512, 512), 1, 0.036)
    assert costs.step_s((edge, edge), 1) == pytest.approx(milliseconds / 1000, rel=0.2)


def test_flops_are_those_that_were_counted() -> None:
    costs = model()
    counted = {256: 6.81, 512: 17.69, 768: 37.65, 1024: 69.47, 1536: 185.1, 2048: 408.8}
    overhead = 2 * costs.step_s((512, 512), 1) - costs.step_s((512, 512), 2)
    for edge, tflop in counted.items():
        assert costs.step_s((edge, edge), 1) - overhead == pytest.approx(tflop, rel=0.04)


def test_nothing_is_in_seconds_before_something_was_measured() -> None:
    costs = model()
    assert not costs.measured
    costs.record_step((512, 512), 1, 0.1)
    assert costs.measured
    assert costs.step_s((512, 512), 1) == 0.1


def test_batches_between_measured_ones_are_interpolated_and_others_extrapolated() -> None:
    costs = model()
    learn(costs, (512, 512), 2, 1.0)
    learn(costs, (512, 512), 4, 2.0)
    assert costs.step_s((512, 512), 3) == pytest.approx(1.5)
    assert 2.0 < costs.step_s((512, 512), 8) < 4.0 + 1e-9
    assert 0.5 < costs.step_s((512, 512), 1) < 1.0


def test_a_hiccup_does_not_count_and_a_lasting_change_does() -> None:
    costs = model()
    learn(costs, (512, 512), 1, 0.1)
    costs.record_step((512, 512), 1, 60.0)  # a compile, say
    assert costs.step_s((512, 512), 1) == pytest.approx(0.1)
    for _ in range(WINDOW):
        costs.record_step((512, 512), 1, 0.3)
    assert costs.step_s((512, 512), 1) == pytest.approx(0.3)


def test_one_look_at_a_batch_does_not_outweigh_what_is_known_about_others() -> None:
    costs = model()
    learn(costs, (512, 512), 1, 0.1)
    costs.record_step((512, 512), 2, 60.0)
    assert costs.step_s((512, 512), 2) < 0.2


def test_decodes_are_learned_and_scale_with_pixels() -> None:
    costs = model()
    costs.record_decode((512, 512), 0.2)
    assert costs.decode_s((512, 512)) == 0.2
    assert costs.decode_s((1024, 1024)) == pytest.approx(0.8)


@given(
    st.lists(
        st.tuples(st.sampled_from(SHAPES), st.integers(1, 8), st.floats(1e-4, 1e3)), max_size=30
    )
)
def test_every_cost_is_above_nothing_and_survives_the_cache(
    times: list[tuple[tuple[int, int], int, float]],
) -> None:
    costs = model()
    for shape, samples, seconds in times:
        costs.record_step(shape, samples, seconds)
    for shape in SHAPES:
        for samples in range(1, 9):
            assert costs.step_s(shape, samples) > 0
        assert costs.decode_s(shape) > 0
    again = model()
    again.restore(json.loads(json.dumps(costs.dump())))
    for shape, samples, _ in times:
        if costs.measurements(shape, samples) >= TRUSTED:
            assert again.step_s(shape, samples) == pytest.approx(costs.step_s(shape, samples))
