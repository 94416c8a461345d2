"""What a job costs on average: the weight of jobs that wait in handles."""

import pytest

from serve_app.deployments.workmeter import WorkMeter


def test_it_starts_with_the_first_job_and_follows_a_change() -> None:
    meter = WorkMeter()
    meter.admitted(0.0)
    assert meter.job_s == 0.0
    meter.admitted(3.5)
    assert meter.job_s == 3.5
    for _ in range(60):
        meter.admitted(0.1)
    assert meter.job_s == pytest.approx(0.1, rel=0.1)
