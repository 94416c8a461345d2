"""Who is let in: what cannot be finished in time is refused at once, with an honest Retry-After."""

import asyncio
from typing import Any

import pytest
from engine_kit import Gate, MakeEngine, make_job, until
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_kit import make_planner, taught

from serve_app.engine.board import RETRY_AFTER_MAX_S, Board
from serve_app.engine.sampler import Sample
from serve_app.engine.schedule import Candidate
from serve_app.errors import DeadlineExceeded, Overloaded

SHAPE = (512, 512)  # 1.5 s a step, 0.25 s the decode


def board(**config: Any) -> Board:
    return Board(1000, taught(make_planner(**config), [SHAPE]))


def job(**changes: Any) -> Any:
    return make_job(**{"width": 512, "height": 512, "steps": 4, **changes})


def test_a_job_that_cannot_be_done_in_time_is_refused_with_an_estimate() -> None:
    full = board(step_batch_max_samples=1)
    for number in range(10):
        full.admit(job(job_id=f"{number}"), lambda _: None, None)
    expected = full.estimate(job())
    assert expected is not None
    assert expected.ahead_s == pytest.approx(10 * 6.25)
    assert expected.finish_s == pytest.approx(11 * 6.25)
    with pytest.raises(Overloaded) as refusal:
        full.admit(job(timeout_s=60.0), lambda _: None, None)
    assert refusal.value.retry_after_s == 62
    full.admit(job(timeout_s=70.0), lambda _: None, None)
    assert full.stats().backlog_s == pytest.approx(11 * 6.25)


def test_a_job_is_told_who_is_before_it_and_when_it_will_be_done() -> None:
    queue = board(step_batch_max_samples=1)
    queue.admit(job(job_id="first"), lambda _: None, None)
    _, told = queue.admit(job(job_id="second"), lambda _: None, None)
    assert (told.job_id, told.ahead) == ("second", 1)
    assert told.estimated_s == pytest.approx(2 * 6.25)


def test_a_shorter_job_that_will_overtake_is_let_in() -> None:
    full = board(step_batch_max_samples=1)
    for number in range(10):
        full.admit(job(job_id=f"{number}", steps=28), lambda _: None, None)
    full.admit(job(timeout_s=20.0), lambda _: None, None)
    assert full.estimate(job(steps=50)).finish_s > 400  # type: ignore[union-attr]


def test_one_accounts_queue_does_not_shut_others_out() -> None:
    full = board(step_batch_max_samples=1, share_burst_s=1.0)
    for number in range(50):
        full.admit(job(job_id=f"{number}", account="flood"), lambda _: None, None)
    guest = full.estimate(job(account="guest"))
    assert guest is not None
    assert guest.ahead_s == pytest.approx(6.25 + 1)
    full.admit(job(account="guest", timeout_s=20.0), lambda _: None, None)
    with pytest.raises(Overloaded):
        full.admit(job(account="flood", timeout_s=20.0), lambda _: None, None)


def test_retry_after_is_capped() -> None:
    full = board(step_batch_max_samples=1)
    for number in range(50):
        full.admit(job(job_id=f"{number}"), lambda _: None, None)
    with pytest.raises(Overloaded) as refusal:
        full.admit(job(timeout_s=60.0), lambda _: None, None)
    assert refusal.value.retry_after_s == RETRY_AFTER_MAX_S


def test_a_job_too_long_even_alone_is_not_asked_to_come_back() -> None:
    with pytest.raises(DeadlineExceeded):
        board().admit(job(steps=50, timeout_s=10.0), lambda _: None, None)


def test_nobody_is_refused_before_anything_was_measured() -> None:
    new = Board(1000, make_planner())
    for number in range(100):
        _, told = new.admit(job(job_id=f"{number}", timeout_s=1.0), lambda _: None, None)
        assert (told.ahead, told.estimated_s) == (number, None)
    assert new.estimate(job()) is None
    assert new.stats().backlog_s == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 28), st.integers(1, 4), st.floats(1, 300), st.sampled_from("ab")),
        max_size=40,
    )
)
@settings(deadline=None)
def test_whoever_is_let_in_was_expected_in_time(
    jobs: list[tuple[int, int, float, str]],
) -> None:
    full = board()
    for steps, count, timeout_s, account in jobs:
        one = job(steps=steps, seeds=tuple(range(count)), timeout_s=timeout_s, account=account)
        expected = full.estimate(one)
        assert expected is not None
        try:
            full.admit(one, lambda _: None, None)
        except (Overloaded, DeadlineExceeded):
            assert expected.finish_s > timeout_s * 0.99
        else:
            assert expected.finish_s <= timeout_s * 1.01


async def test_the_engine_refuses_and_estimates(make_engine: MakeEngine, gate: Gate) -> None:
    engine = make_engine(step_batch_max_samples=1)
    assert engine.estimate(make_job()) is None
    await engine.generate(make_job())
    gate.close()
    crowd = [asyncio.create_task(engine.generate(make_job(f"{n}", steps=50))) for n in range(3)]
    await until(lambda: engine.stats().samples_queued == 2)
    short_s, long_s = engine.estimate(make_job(steps=1)), engine.estimate(make_job(steps=50))
    assert short_s is not None
    assert long_s is not None
    assert 0 < short_s < long_s
    calls = gate.calls
    with pytest.raises((Overloaded, DeadlineExceeded)):
        await engine.generate(make_job("late", steps=50, timeout_s=1e-9))
    assert gate.calls == calls  # at once: the device has not gone on yet, nor could it
    gate.open()
    await asyncio.gather(*crowd)


def test_previews_are_in_the_estimate_and_leave_it_as_they_are_done() -> None:
    """A preview is a decode: 0.25 s each, beside 4 steps of 1.5 s and the image's own decode."""
    new = board(step_batch_max_samples=1)
    costs = [new.estimate(job(previews=previews)).own_s for previews in range(4)]  # type: ignore[union-attr]
    assert costs == pytest.approx([6.25, 6.5, 6.75, 7.0])
    assert new.estimate(job(previews=3, steps=1)).own_s == pytest.approx(1.75)  # type: ignore[union-attr]
    run, _ = new.admit(job(previews=3, seeds=(1, 2)), lambda _: None, None)
    assert new.stats().backlog_s == pytest.approx(2 * 7.0)
    assert new.estimate(job(previews=3, seeds=(1, 2))).ahead_s == pytest.approx(2 * 7.0)  # type: ignore[union-attr]
    done = new.samples[0]
    done.sample = Sample(*[None] * 9)  # type: ignore[arg-type]
    done.sample.steps_done = 2  # two of its previews lie behind it
    assert new.stats().backlog_s == pytest.approx(7.0 + 2 * 1.5 + 2 * 0.25)
    assert run is done.run


def test_a_deadline_that_the_previews_would_miss_is_refused() -> None:
    quick = board(step_batch_max_samples=1)
    with pytest.raises(DeadlineExceeded):
        quick.admit(job(previews=3, timeout_s=6.9), lambda _: None, None)
    quick.admit(job(previews=3, timeout_s=7.1), lambda _: None, None)
    with pytest.raises(Overloaded) as refusal:
        quick.admit(job(previews=3, timeout_s=10.0), lambda _: None, None)
    assert refusal.value.retry_after_s == 7


def test_accounts_pay_for_the_time_of_their_previews() -> None:
    planner = taught(make_planner(share_burst_s=0.0), [SHAPE])
    planner.shares.enter(1, "watcher")
    planner.shares.enter(2, "other")
    watcher = Candidate(512, 512, 1, "watcher", 1, 0.0, decodes=2)
    planner.decoded(watcher, 0.25)
    planner.shares.leave(1)
    assert planner.past_share("watcher")
    assert not planner.past_share("other")
