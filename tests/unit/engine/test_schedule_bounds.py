"""What the planner promises over time: nobody starves, shares hold, limits hold, order holds."""

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_kit import Arrival, candidate, make_planner, simulate, step_s, taught

from serve_app.engine.schedule import RIDE_SLOWDOWN_MAX

EDGES = (256, 512, 1024)
SHAPES = [(edge, edge) for edge in EDGES]
arrivals = st.lists(
    st.builds(
        Arrival,
        edge=st.sampled_from(EDGES),
        steps=st.integers(1, 12),
        account=st.sampled_from(["a", "b", "c"]),
        at_s=st.floats(0, 200),
    ),
    min_size=1,
    max_size=40,
).map(lambda found: sorted(found, key=lambda one: one.at_s))
schedules = st.sampled_from(["fair", "srpt", "fcfs"])


@given(arrivals, schedules, st.booleans())
@settings(deadline=None, max_examples=60)
def test_the_device_idles_only_when_nobody_is_inside(
    jobs: list[Arrival], schedule: str, knows: bool
) -> None:
    planner = make_planner(schedule=schedule)
    run = simulate(taught(planner, SHAPES) if knows else planner, jobs)
    assert len(run.done_s) == len(jobs)
    work_s = sum(step_s(shape, samples) for shape, samples in run.batches)
    decodes_s = sum(one.alone_s - one.steps * step_s(one.shape, 1) for one in jobs)
    assert max(run.done_s.values()) <= run.idle_s + work_s + decodes_s + 1e-6
    assert run.idle_s <= jobs[-1].at_s + 1e-6


@given(arrivals, schedules, st.integers(1, 9), st.one_of(st.none(), st.integers(50, 20_000)))
@settings(deadline=None, max_examples=60)
def test_no_batch_is_ever_above_the_limits_not_even_to_learn(
    jobs: list[Arrival], schedule: str, most: int, tokens: int | None
) -> None:
    planner = make_planner(
        schedule=schedule,
        step_batch_max_samples=most,
        step_batch_max_tokens=tokens,
        step_batch_samples={"256x256": 3},
    )
    for shape, samples in simulate(planner, jobs).batches:
        assert samples <= most
        assert shape != (256, 256) or samples <= 3
        if tokens is not None:
            assert samples == 1 or samples * planner.costs.tokens(shape) <= tokens


@given(st.data(), st.integers(1, 30), st.sampled_from(EDGES))
@settings(deadline=None, max_examples=30)
def test_a_long_job_is_done_in_bounded_time_whatever_comes_after_it(
    data: st.DataObject, steps: int, edge: int
) -> None:
    """Others arrive as fast as the device can serve them, each as nasty as can be, forever."""
    ageing = 0.1
    planner = taught(make_planner(ageing=ageing), SHAPES)
    victim = Arrival(edge, steps, "victim", 0.0)
    limit_s = victim.alone_s / ageing + 2 * victim.alone_s
    nasty = data.draw(
        st.lists(st.tuples(st.sampled_from(EDGES), st.integers(1, 8)), min_size=1, max_size=5)
    )
    given_s = 0.0
    count = 0

    def more(now: float) -> list[Arrival]:
        nonlocal given_s, count
        new: list[Arrival] = []
        while given_s <= now < 3 * limit_s:
            one = Arrival(*nasty[count % len(nasty)], f"other-{count}", now)
            count += 1
            given_s += one.alone_s
            new.append(one)
        return new

    run = simulate(planner, [victim], more)
    longest_s = max(Arrival(*one).alone_s for one in nasty)
    assert run.done_s[0] <= RIDE_SLOWDOWN_MAX * limit_s + 8 * longest_s


@given(st.integers(1, 60), st.integers(1, 12), st.sampled_from(EDGES), st.sampled_from(EDGES),
       st.floats(0, 5), st.sampled_from([1.0, 2.0, 5.0]))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_a_flood_delays_another_accounts_job_by_no_more_than_the_share(
    flood: int, steps: int, edge: int, flood_edge: int, burst_s: float, weight: float
) -> None:
    planner = taught(make_planner(share_burst_s=burst_s, account_weights={"guest": weight}), SHAPES)
    jobs = [Arrival(flood_edge, 4, "flood", 0.0) for _ in range(flood)]
    guest = Arrival(edge, steps, "guest", 7.0)
    run = simulate(planner, [*jobs, guest])
    waited_s = run.done_s[flood] - guest.at_s
    own_s = steps * step_s(guest.shape, 1) + guest.alone_s
    in_work_s = 4 * step_s((flood_edge, flood_edge), 8) + 8 * jobs[0].alone_s
    fair_s = (own_s + burst_s + in_work_s) * (1 + 1 / weight)
    assert waited_s <= RIDE_SLOWDOWN_MAX * fair_s
    assert len(run.done_s) == flood + 1


def test_one_guest_need_not_wait_for_a_hundred_queued_samples() -> None:
    jobs = [Arrival(512, 4, "flood", 0.0) for _ in range(100)]
    guest = Arrival(512, 4, "guest", 20.0)
    run = {
        schedule: simulate(
            taught(make_planner(schedule=schedule), SHAPES), [*jobs, guest]
        ).done_s[100] - 20
        for schedule in ("fair", "fcfs")
    }  # fmt: skip
    assert run["fair"] < 5 * guest.alone_s
    assert run["fcfs"] > 30 * guest.alone_s


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 60)), min_size=2, max_size=30),
       st.sampled_from(EDGES), st.integers(1, 8), st.booleans())  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_an_accounts_equal_jobs_are_done_in_order(
    who: list[tuple[str, float]], edge: int, steps: int, knows: bool
) -> None:
    jobs = [Arrival(edge, steps, name, at_s) for name, at_s in sorted(who, key=lambda one: one[1])]
    planner = make_planner()
    run = simulate(taught(planner, SHAPES) if knows else planner, jobs)
    for name in "ab":
        order = [number for number in run.done_s if jobs[number].account == name]
        assert all(first < second for first, second in pairwise(order))


@given(arrivals)
@settings(deadline=None)
def test_an_estimate_lies_between_the_job_alone_and_everything_inside(
    jobs: list[Arrival],
) -> None:
    *before, last = [Arrival(one.edge, one.steps, one.account) for one in jobs]
    planner = taught(make_planner(), SHAPES)
    inside = [candidate(one, number, one.steps) for number, one in enumerate(before)]
    expected = planner.estimate(inside, [candidate(last, 99, last.steps)])
    everything_s = sum(one.alone_s for one in before)
    assert expected.own_s == last.alone_s
    assert 0 <= expected.ahead_s <= everything_s + last.steps * step_s(last.shape, 8)


@given(st.integers(0, 30), st.integers(1, 12), st.sampled_from(EDGES), st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_an_estimate_comes_true_among_equals_when_nobody_comes_after(
    ahead: int, steps: int, edge: int, most: int
) -> None:
    """Deadlines are judged by it."""
    planner = taught(make_planner(step_batch_max_samples=most), SHAPES)
    jobs = [Arrival(edge, steps) for _ in range(ahead + 1)]
    inside = [candidate(one, number, steps) for number, one in enumerate(jobs)]
    expected = planner.estimate(inside[:-1], inside[-1:])
    took_s = simulate(planner, jobs).done_s[ahead]
    assert 0.6 * took_s <= expected.finish_s <= 1.3 * took_s


def test_learning_tries_other_batch_sizes_now_and_then_and_settles() -> None:
    planner = make_planner(step_batch_max_samples=8)
    jobs = [Arrival(512, 4, f"{n}", 0.0) for n in range(400)]
    counts = Counter(samples for _, samples in simulate(planner, jobs).batches)
    # 1.5 s alone, 1.25 s each of two, 1.125 of four, 1.0625 of eight: all gain 5 % or more
    assert planner.limit((512, 512)) == 8
    assert all(planner.costs.measurements((512, 512), samples) >= 3 for samples in (1, 2, 4, 8))
    assert counts[8] > 0.6 * sum(counts.values())
