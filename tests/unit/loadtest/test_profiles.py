"""Profiles: arrivals follow the rate, and the seed decides them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import ConfigError
from serve_app.loadtest.plan import require_bounded
from serve_app.loadtest.profiles import PROFILES, Segment, arrival_times, segments

MEANS = {"ramp": 0.5, "step": 0.625, "burst": 0.28, "soak": 1.0}
"""Mean rate as a share of the peak, worked out by hand."""


def between(times: list[float], start: float, end: float) -> int:
    return sum(start <= at < end for at in times)


@pytest.mark.parametrize("profile", PROFILES)
def test_as_many_requests_arrive_as_the_rate_says(profile: str) -> None:
    times = arrival_times(segments(profile, 1000, 20), seed=7)
    expected = 1000 * 20 * MEANS[profile]
    assert abs(len(times) - expected) < 5 * math.sqrt(expected)
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= 1000


@pytest.mark.parametrize("profile", PROFILES)
def test_the_seed_decides_the_schedule(profile: str) -> None:
    parts = segments(profile, 60, 10)
    assert arrival_times(parts, 1) == arrival_times(parts, 1)
    assert arrival_times(parts, 1) != arrival_times(parts, 2)


def test_a_ramp_is_symmetric_with_its_peak_in_the_middle() -> None:
    times = arrival_times(segments("ramp", 1000, 20), 3)
    assert between(times, 400, 600) > 2.5 * between(times, 0, 200)
    assert between(times, 400, 600) > 2.5 * between(times, 800, 1000)


def test_steps_go_up_by_quarters() -> None:
    times = arrival_times(segments("step", 1000, 20), 3)
    found = [between(times, start, start + 250) for start in (0, 250, 500, 750)]
    for quarters, count in enumerate(found, start=1):
        assert abs(count - quarters * 1250) < 5 * math.sqrt(quarters * 1250)


def test_bursts_stand_ten_times_above_the_rest() -> None:
    times = arrival_times(segments("burst", 1000, 20), 3)
    assert between(times, 200, 300) > 7 * between(times, 300, 400)
    assert between(times, 600, 700) > 7 * between(times, 500, 600)


def test_gaps_of_a_soak_are_those_of_a_poisson_process() -> None:
    times = arrival_times(segments("soak", 5000, 2), 3)
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.5, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)  # of an exponential: equal


@given(
    st.floats(0.01, 100), st.floats(0, 50), st.floats(0, 50), st.floats(0, 0.999), st.floats(0, 99)
)
def test_the_time_of_an_arrival_inverts_the_area_under_the_rate(
    length_s: float, start_rps: float, end_rps: float, share: float, start_s: float
) -> None:
    part = Segment(start_s, start_s + length_s, start_rps, end_rps)
    wanted = share * part.arrivals
    if part.arrivals < 1e-6:
        return
    at_s = part.time_of(wanted)
    area = (at_s - start_s) * (start_rps + part.rate_at(at_s)) / 2
    assert start_s <= at_s <= start_s + length_s * (1 + 1e-9)
    assert area == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_more_requests_than_can_be_kept_are_refused() -> None:
    require_bounded("soak", 100, 10_000)
    with pytest.raises(ConfigError, match="at most 1,000,000"):
        require_bounded("soak", 101, 10_000)


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--profile: 'spike' is none of ramp"):
        require_bounded("spike", 1, 1)
