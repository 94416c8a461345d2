"""What a gateway knows about its outstanding work, and what it tells those it cannot serve."""

import dataclasses
from contextlib import ExitStack

import pytest
from scripted import pictures

from serve_app.deployments.pace import RATE_WINDOW_S, RETRY_AFTER_MAX_S, Pace, retry_after_s
from serve_app.engine.job import Finished, GenerationJob

LARGE = GenerationJob("large", "p", 1024, 1024, 28, 3.5, (1,), timeout_s=60.0)
SMALL = GenerationJob("small", "p", 256, 256, 4, 0.0, (1,), timeout_s=60.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def image_of(job: GenerationJob, device_s: float) -> Finished:
    [image] = pictures(job, 1).images
    return dataclasses.replace(image, timings=dataclasses.replace(image.timings, device_s=device_s))


def several(job: GenerationJob, count: int) -> list[GenerationJob]:
    return [dataclasses.replace(job, job_id=f"{job.job_id}-{n}") for n in range(count)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    """A pace that has seen an image of each kind, long ago."""
    pace = Pace(clock)
    pace.drawn(SMALL, image_of(SMALL, 0.1))
    pace.drawn(LARGE, image_of(LARGE, 3.5))
    clock.now_s += 2 * RATE_WINDOW_S
    return pace


def test_jobs_weigh_by_what_their_size_has_cost(pace: Pace) -> None:
    assert pace.cost_s(LARGE) == pytest.approx(3.5)
    assert pace.cost_s(dataclasses.replace(LARGE, steps=14, seeds=(1, 2))) == pytest.approx(3.5)
    assert pace.cost_s(SMALL) == pytest.approx(0.1)


def test_a_size_never_seen_weighs_by_its_pixels(pace: Pace) -> None:
    unseen = dataclasses.replace(LARGE, width=512)
    assert pace.cost_s(unseen) == pytest.approx(3.5 / 2)


def test_before_any_image_nothing_is_known_and_nobody_is_refused() -> None:
    pace = Pace()
    with ExitStack() as out:
        for job in several(LARGE, 1000):
            out.enter_context(pace.sent(job))
        assert not pace.hopeless(LARGE, 1)
        assert pace.drain_s() == 0.0


def test_a_job_is_hopeless_only_when_all_replicas_together_come_too_late(pace: Pace) -> None:
    with ExitStack() as out:
        for job in several(LARGE, 40):
            out.enter_context(pace.sent(job))
        assert pace.out_s() == pytest.approx(140)
        assert pace.hopeless(LARGE, 1)
        assert pace.hopeless(LARGE, 2)
        assert not pace.hopeless(LARGE, 3)
    assert pace.out_s() == 0.0


def test_without_a_rate_the_replicas_that_run_are_taken_to_work_for_us(pace: Pace) -> None:
    with ExitStack() as out:
        for job in several(LARGE, 8):
            out.enter_context(pace.sent(job))
        assert pace.drain_s(4) == pytest.approx(7.0)
        assert pace.drain_s(0) == pytest.approx(28.0)


def test_with_a_rate_the_wait_is_outstanding_work_over_that_rate(pace: Pace, clock: Clock) -> None:
    """Two large images each 3.5 s: two replicas' worth, whatever the number that runs."""
    with ExitStack() as out:
        for job in several(LARGE, 8):
            out.enter_context(pace.sent(job))
        for _ in range(5):
            clock.now_s += 1.75
            pace.drawn(LARGE, image_of(LARGE, 3.5))
        assert pace.drain_s(1) == pytest.approx(28.0 / 2)
        clock.now_s += RATE_WINDOW_S + 1
        assert pace.drain_s(1) == pytest.approx(28.0)


def test_a_job_that_failed_or_was_cancelled_is_not_out_any_more(pace: Pace) -> None:
    with pytest.raises(RuntimeError), pace.sent(LARGE):
        raise RuntimeError
    assert pace.out_s() == 0.0


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, 1), (0.2, 1), (3.2, 4), (1e9, RETRY_AFTER_MAX_S)]
)
def test_clients_get_whole_seconds_that_they_heed(seconds: float, told: int) -> None:
    assert retry_after_s(seconds) == told
