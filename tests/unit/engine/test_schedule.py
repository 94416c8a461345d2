from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from schedule_kit import FixedPrices

from serve_app.engine.schedule import (
    RIDE_SLOWDOWN_MAX,
    Candidate,
    PolicyName,
    Rules,
    choose_step_batch,
    rank,
)

policies = st.sampled_from(["fair", "srpt", "fcfs"])
candidates = st.lists(
    st.builds(
        Candidate,
        width=st.sampled_from([256, 512]),
        height=st.sampled_from([256, 512, 1024]),
        steps_left=st.integers(1, 50),
        account=st.sampled_from(["a", "b", "c"]),
        job=st.integers(0, 15),
        arrived_s=st.floats(0, 1000),
    ),
    min_size=1,
    max_size=40,
).map(lambda found: sorted(found, key=lambda one: one.arrived_s))
prices = st.builds(
    FixedPrices,
    most=st.integers(1, 9),
    overhead_s=st.floats(0.01, 20),
    past=st.frozensets(st.sampled_from(["a", "b", "c"])),
)


def many(count: int, **changes: object) -> list[Candidate]:
    one = Candidate(512, 512, 4)
    return [replace(one, job=n, arrived_s=float(n), **changes) for n in range(count)]


@given(candidates, prices, policies)
def test_a_batch_has_one_shape_is_never_empty_and_never_above_the_limit(
    waiting: list[Candidate], costs: FixedPrices, policy: PolicyName
) -> None:
    batch = choose_step_batch(waiting, costs, Rules(policy))
    assert len({waiting[index].shape for index in batch}) == 1
    assert 1 <= len(batch) <= costs.most
    assert batch == sorted(set(batch))


@given(candidates, prices, policies)
def test_whoever_ranks_first_runs_and_nobody_is_passed_over(
    waiting: list[Candidate], costs: FixedPrices, policy: PolicyName
) -> None:
    rules = Rules(policy)
    batch = choose_step_batch(waiting, costs, rules)
    ranks = rank(waiting, costs, rules)
    shape = waiting[batch[0]].shape
    same = [index for index, one in enumerate(waiting) if one.shape == shape]
    same.sort(key=ranks.__getitem__)
    assert ranks.index(min(ranks)) in batch
    assert set(batch) == set(same[: len(batch)])


@given(candidates, prices, policies)
def test_every_sample_finishes_in_as_many_turns_as_there_are_steps(
    waiting: list[Candidate], costs: FixedPrices, policy: PolicyName
) -> None:
    turns = sum(one.steps_left for one in waiting)
    while waiting:
        assert turns > 0
        turns -= 1
        batch = choose_step_batch(waiting, costs, Rules(policy))
        for index in batch:
            waiting[index] = replace(waiting[index], steps_left=waiting[index].steps_left - 1)
        waiting = [one for one in waiting if one.steps_left]


@given(candidates, prices)
def test_a_job_is_never_overtaken_by_those_that_come_once_it_is_old(
    waiting: list[Candidate], costs: FixedPrices
) -> None:
    costs, rules = replace(costs, past=frozenset()), Rules("fair", 0.05)
    victim = waiting[0]
    mine = [replace(one, arrived_s=victim.arrived_s) for one in waiting if one.job == victim.job]
    left_s = sum(
        one.steps_left * costs.step_s(one.shape, 1) + costs.decode_s(one.shape) for one in mine
    )
    newcomer = Candidate(256, 256, 1, "d", 99, victim.arrived_s + 1.001 * left_s / 0.05)
    ranks = rank([*mine, newcomer], costs, rules)
    assert max(ranks[:-1]) < ranks[-1]


@given(st.integers(2, 12), prices)
def test_equal_jobs_run_in_order_of_arrival(count: int, costs: FixedPrices) -> None:
    waiting = many(count)
    batch = choose_step_batch(waiting, costs)
    assert batch == list(range(len(batch)))


@given(candidates, prices)
def test_first_come_first_served_fills_the_batch(
    waiting: list[Candidate], costs: FixedPrices
) -> None:
    batch = choose_step_batch(waiting, costs, Rules("fcfs"))
    same = [n for n, other in enumerate(waiting) if other.shape == waiting[0].shape]
    assert batch == same[: costs.most]


def test_the_shorter_job_goes_first_and_the_older_among_equals() -> None:
    long, short = Candidate(1024, 1024, 28, job=1), Candidate(512, 512, 4, job=2, arrived_s=9)
    assert choose_step_batch([long, short], FixedPrices()) == [1]
    assert choose_step_batch([long, short], FixedPrices(), Rules("fcfs")) == [0]
    patient = replace(short, arrived_s=1e5)  # by then the long one has waited long enough
    assert choose_step_batch([long, patient], FixedPrices()) == [0]
    assert choose_step_batch([long, patient], FixedPrices(), Rules("srpt")) == [1]


def test_all_samples_of_a_job_count_for_its_length() -> None:
    four = [Candidate(512, 512, 4, job=1)] * 4
    assert choose_step_batch([*four, Candidate(512, 512, 8, job=2)], FixedPrices(most=1)) == [4]


def test_samples_join_where_that_is_cheap_and_wait_where_it_is_not() -> None:
    cheap, dear = FixedPrices(most=8, overhead_s=20), FixedPrices(most=8, overhead_s=0.05)
    assert len(choose_step_batch(many(8), cheap)) == 8
    assert len(choose_step_batch(many(3), dear)) == 1
    assert len(choose_step_batch(many(30), dear)) > 1  # a long queue needs throughput
    one_job = [Candidate(512, 512, 4, job=1)] * 8
    assert len(choose_step_batch(one_job, dear)) == 8  # all of them are waited for anyway


def test_who_is_past_the_share_waits_for_others_but_not_for_nothing() -> None:
    busy = Candidate(512, 512, 2, "busy", job=1)
    guest = Candidate(512, 512, 9, "guest", job=2, arrived_s=5)
    costs = FixedPrices(past=frozenset({"busy"}))
    assert choose_step_batch([busy, guest], costs) == [1]
    assert choose_step_batch([busy], costs) == [0]


def test_who_is_past_the_share_may_ride_where_that_costs_others_little() -> None:
    waiting = [*many(6, account="busy"), Candidate(512, 512, 9, "guest", job=9, arrived_s=9)]
    past = frozenset({"busy"})
    cheap = FixedPrices(most=8, overhead_s=20, past=past)
    batch = choose_step_batch(waiting, cheap)
    assert 6 in batch
    assert 2 <= len(batch) < 7
    assert cheap.step_s((512, 512), len(batch)) <= RIDE_SLOWDOWN_MAX * cheap.step_s((512, 512), 1)
    assert choose_step_batch(waiting, FixedPrices(most=8, past=past)) == [6]


def test_portrait_and_landscape_of_equal_area_do_not_share_a_call() -> None:
    waiting = [
        Candidate(768, 1024, 4, job=1),
        Candidate(1024, 768, 4, job=2),
        Candidate(768, 1024, 4, job=3),
    ]
    assert choose_step_batch(waiting, FixedPrices(overhead_s=9)) == [0, 2]


def test_nothing_waiting_nothing_chosen() -> None:
    assert choose_step_batch([], FixedPrices()) == []
