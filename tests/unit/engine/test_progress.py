"""Steps on their way to a client: all that a person can follow, for every image alike."""

from dataclasses import replace

from serve_app.engine.job import Finished, GenerationJob, Preview, Queued, Step, Timings
from serve_app.engine.progress import STEPS_PER_S_MAX, EventFilter

JOB = GenerationJob("job", "x", 256, 256, 1000, 0.0, (1,), progress=True)


def told(job: GenerationJob, step_s: float) -> list[tuple[float, int, int]]:
    """When, of which sample and which step is told, if a step batch takes so long."""
    now = 0.0
    leaving = EventFilter(job, lambda: now)
    found = []
    for number in range(job.steps):
        now = number * step_s
        for index in range(len(job.seeds)):
            if leaving.passes(Step(job.job_id, index, number + 1, job.steps)):
                found.append((now, index, number + 1))
    return found


def test_without_being_asked_no_step_is_told() -> None:
    assert told(replace(JOB, progress=False), 1.0) == []


def test_what_is_no_step_passes() -> None:
    leaving = EventFilter(JOB, lambda: 0.0)
    for event in (Queued("job", 0), Preview("job", 0, 0, b"")):
        assert leaving.passes(event)
        assert leaving.passes(event)


def test_of_a_job_that_is_waited_for_as_a_whole_only_images_leave() -> None:
    leaving = EventFilter(replace(JOB, images_only=True), lambda: 0.0)
    image = Finished("job", 0, 1, b"", Timings(0, 0, 0, 0, 0))
    others = (Queued("job", 0), Step("job", 0, 1, 4), Preview("job", 0, 0, b""))
    assert [leaving.passes(event) for event in (*others, image)] == [False, False, False, True]


def test_slow_steps_are_all_told() -> None:
    assert [step for _, _, step in told(replace(JOB, steps=5), 0.2)] == [1, 2, 3, 4, 5]


def test_fast_steps_are_thinned_out_to_the_limit() -> None:
    found = told(JOB, 0.01)  # ten seconds
    assert found[0] == (0.0, 0, 1)
    assert 9 * STEPS_PER_S_MAX <= len(found) <= 10 * STEPS_PER_S_MAX + 1


def test_the_limit_is_for_all_images_together_and_none_is_left_out() -> None:
    found = told(replace(JOB, seeds=(1, 2, 3, 4)), 0.01)
    assert len(found) <= 10 * STEPS_PER_S_MAX + 4
    per_image = [sum(1 for _, index, _ in found if index == image) for image in range(4)]
    assert min(per_image) > 20
    assert max(per_image) - min(per_image) <= 1
