"""Figures: percentiles, integrals and windows against independent calculations."""

import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_kit import outcome, run, sample

from serve_app.loadtest.figures import (
    cumulative,
    integral,
    latency_figures,
    percentile,
    summarise,
    windows,
)

values = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(values, st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0]))
def test_percentiles_are_nearest_rank(found: list[float], share: float) -> None:
    expected = numpy.percentile(found, share * 100, method="inverted_cdf")
    assert percentile(sorted(found), share) == expected


def test_latency_counts_from_the_schedule_not_from_the_sending() -> None:
    late = outcome(0, at_s=1.0, sent_s=5.0, done_s=6.0)
    assert latency_figures([late])["max"] == 5.0


def test_a_quick_refusal_does_not_make_the_server_fast() -> None:
    refused = [outcome(i, 0.001, code="server_is_overloaded", status=503) for i in range(99)]
    found = summarise([*refused, outcome(99, 7.0)], [])
    assert found.latency["p50"] == 7.0
    assert found.errors == 0.99


def test_a_request_that_timed_out_counts_with_the_time_it_waited() -> None:
    found = latency_figures([outcome(0, 1.0), outcome(1, 30.0, code="client_timeout")])
    assert found["p99"] == 30.0


def test_nothing_measured_is_no_zero() -> None:
    found = summarise([], [])
    assert set(found.latency.values()) == {None}
    assert (found.errors, found.gpu_seconds, found.send_lag_p99_s) == (None, None, None)


def test_retry_after_is_counted_by_code() -> None:
    refused = [
        outcome(i, code="server_is_overloaded", status=503, retry_after_s=stated)
        for i, stated in enumerate([5.0, 5.0, None])
    ]
    limited = outcome(3, code="rate_limit_exceeded", status=429, retry_after_s=1.0)
    assert summarise([*refused, limited], []).retry_after == {
        "503 server_is_overloaded": {"5": 2, "none": 1},
        "429 rate_limit_exceeded": {"1": 1},
    }


def test_gpu_seconds_count_every_replica_that_holds_a_gpu() -> None:
    samples = [sample(0, 1), sample(10, 1, starting=1), sample(20, 2)]
    found = summarise([outcome()], samples)
    assert found.gpu_seconds == 10 * 1.5 + 10 * 2
    assert found.replica_seconds == 35
    assert summarise([], [sample(0, 2, num_gpus=0.5), sample(4, 2, num_gpus=0.5)]).gpu_seconds == 4


def test_the_cost_of_an_image_is_the_gpus_time_over_the_delivered_images() -> None:
    outcomes = [outcome(i, images=2) for i in range(5)] + [outcome(5, code="client_timeout")]
    found = summarise(outcomes, [sample(0, 1), sample(36, 1)])
    assert found.cost_per_image(10.0) == pytest.approx(36 / 3600 * 10 / 10)
    assert summarise([], [sample(0, 1), sample(36, 1)]).cost_per_image(10.0) is None


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 100)), min_size=2, max_size=30))
def test_the_running_area_ends_at_the_whole_area(steps: list[tuple[float, float]]) -> None:
    at_s, points = 0.0, []
    for step_s, value in steps:
        at_s += step_s
        points.append((at_s, value))
    expected = numpy.trapezoid([v for _, v in points], [t for t, _ in points])
    assert integral(points) == pytest.approx(expected)
    assert cumulative(points)[-1] == (points[-1][0], pytest.approx(expected))


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 60)), min_size=1, max_size=100))
def test_every_request_is_in_exactly_one_window(found: list[tuple[float, float]]) -> None:
    outcomes = [outcome(i, latency, at_s=at_s) for i, (at_s, latency) in enumerate(found)]
    lasted_s = max(one.done_s for one in outcomes)
    parts = windows(outcomes, lasted_s)
    assert sum(part.scheduled for part in parts) == len(outcomes)
    assert sum(part.finished for part in parts) == len(outcomes)
    assert sum(sum(part.codes.values()) for part in parts) == len(outcomes)
    assert len(parts) <= 60
    assert math.isclose(parts[0].length_s, round(parts[0].length_s))


def test_a_runs_books_and_figures_agree() -> None:
    made = run([outcome(0), outcome(1)], [])
    assert made.books.delivered_units == made.figures.units
