from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.schedule import Candidate, choose_step_batch

candidates = st.lists(
    st.builds(
        Candidate,
        width=st.sampled_from([256, 512]),
        height=st.sampled_from([256, 512, 1024]),
        steps_left=st.integers(1, 50),
        account=st.sampled_from(["a", "b"]),
    ),
    max_size=40,
)
limits = st.integers(1, 9)


@given(candidates, limits)
def test_a_batch_has_one_shape_and_never_more_than_the_limit(
    waiting: list[Candidate], limit: int
) -> None:
    batch = choose_step_batch(waiting, limit)
    assert len({waiting[index].shape for index in batch}) <= 1
    assert len(batch) <= limit


@given(candidates, limits)
def test_the_oldest_runs_and_younger_ones_join_in_order_of_arrival(
    waiting: list[Candidate], limit: int
) -> None:
    batch = choose_step_batch(waiting, limit)
    same = [n for n, other in enumerate(waiting) if other.shape == waiting[0].shape]
    assert batch == same[:limit]


@given(candidates, limits)
def test_the_device_never_idles_while_samples_wait(waiting: list[Candidate], limit: int) -> None:
    batch = choose_step_batch(waiting, limit)
    fitting = [other for other in waiting if other.shape == waiting[0].shape]
    assert len(batch) == min(limit, len(fitting))


@given(candidates.filter(bool), limits)
def test_every_sample_finishes_in_as_many_turns_as_there_are_steps(
    waiting: list[Candidate], limit: int
) -> None:
    left = [candidate.steps_left for candidate in waiting]
    order = list(range(len(waiting)))
    for _ in range(sum(left)):
        if not order:
            break
        batch = choose_step_batch([waiting[n] for n in order], limit)
        done = [order[index] for index in batch]
        for n in done:
            left[n] -= 1
        order = [n for n in order if left[n] > 0]
    assert not order


def test_portrait_and_landscape_of_equal_area_do_not_share_a_call() -> None:
    waiting = [Candidate(768, 1024, 4), Candidate(1024, 768, 4), Candidate(768, 1024, 4)]
    assert choose_step_batch(waiting, 4) == [0, 2]
