import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.metering.pricing import compute_units

GOLDEN = [
    # n, width, height, steps, reference steps -> units
    ((1, 1024, 1024, 4, 4), 1_048_576),
    ((4, 1024, 1024, 4, 4), 4_194_304),
    ((1, 1024, 1024, 2, 4), 524_288),
    ((1, 1024, 1024, 8, 4), 2_097_152),
    ((2, 768, 512, 28, 28), 786_432),
    ((1, 768, 512, 16, 28), 224_695),  # 224694.86 rounded up
    ((1, 256, 256, 1, 50), 1_311),  # 1310.72 rounded up
    ((1, 1, 1, 1, 200), 1),
    ((10, 8192, 8192, 200, 1), 134_217_728_000),
]


@pytest.mark.parametrize(("job", "units"), GOLDEN)
def test_a_price_is_the_one_in_the_golden_table(job, units):
    assert compute_units(*job) == units


POSITIVE = st.integers(1, 10**30)


@given(POSITIVE, POSITIVE, POSITIVE, POSITIVE, POSITIVE)
def test_a_price_is_never_zero_never_short_and_less_than_one_unit_too_high(n, w, h, steps, ref):
    units = compute_units(n, w, h, steps, ref)
    assert units > 0
    assert 0 <= units * ref - n * w * h * steps < ref


@pytest.mark.parametrize("bad", [0, -1, True, 1.0, "1", None])
@pytest.mark.parametrize("position", range(5))
def test_nothing_but_positive_integers_has_a_price(position, bad):
    job = [1, 1024, 1024, 4, 4]
    job[position] = bad
    with pytest.raises(ValueError, match="positive integers"):
        compute_units(*job)
