"""The autoscaling decision: pure, so what must hold of it is tried on many fleets."""

import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.deployments.autoscaling import (
    BACKLOG_S,
    BUSY_S,
    JOB_S,
    JOBS,
    ComputeBacklogPolicy,
    Memory,
    Observed,
    Rules,
    decide,
    needed,
)

RULES = Rules()
START = Memory()
LARGE_S, THUMBNAIL_S = 3.5, 0.1

seconds = st.floats(0, 10_000, allow_nan=False)
fleets = st.builds(
    lambda least, more, target, work_s, demand, jobs: Observed(
        now_s=0.0,
        target=min(target, least + more),
        least=least,
        most=least + more,
        work_s=work_s,
        demand=demand,
        jobs=jobs,
    ),
    least=st.integers(0, 4),
    more=st.integers(1, 20),
    target=st.integers(0, 24),
    work_s=seconds,
    demand=st.floats(0, 50, allow_nan=False),
    jobs=st.integers(0, 500),
)
rules = st.builds(
    Rules,
    target_queue_s=st.floats(0.1, 100),
    utilization=st.floats(0.1, 1),
    hold_s=st.floats(0.1, 1000),
    idle_to_zero_s=st.floats(0.1, 1000),
)


def fleet(**changes: Any) -> Observed:
    fields = {"now_s": 0.0, "target": 1, "least": 0, "most": 100, "work_s": 0.0, "demand": 0.0}
    return Observed(**{**fields, "jobs": 1, **changes})


def play(
    observed: Observed,
    rules: Rules,
    duration_s: float,
    every_s: float,
    memory: Memory = START,
) -> tuple[list[int], Memory]:
    """The decisions while nothing changes but the time, and the target that follows them."""
    found = []
    for tick in range(round(duration_s / every_s) + 1):
        now_s = observed.now_s + tick * every_s
        replicas, memory = decide(dataclasses.replace(observed, now_s=now_s), rules, memory)
        observed_target = replicas
        found.append(observed_target)
        observed = dataclasses.replace(observed, target=observed_target)
    return found, memory


@given(fleets, rules)
def test_the_bounds_always_hold(observed: Observed, rules: Rules) -> None:
    replicas, _ = decide(observed, rules, Memory())
    assert observed.least <= replicas <= observed.most


@given(fleets, rules, seconds, st.floats(0, 50))
def test_more_work_or_demand_never_asks_for_fewer(
    observed: Observed, rules: Rules, work_s: float, demand: float
) -> None:
    more = dataclasses.replace(
        observed,
        work_s=observed.work_s + work_s,
        demand=observed.demand + demand,
        jobs=observed.jobs + 1,
    )
    assert needed(more, rules) >= needed(observed, rules)
    assert decide(more, rules, Memory())[0] >= decide(observed, rules, Memory())[0]


@given(fleets, rules, st.integers(2, 60))
def test_constant_load_never_flaps(observed: Observed, rules: Rules, ticks: int) -> None:
    """It may go up once and later down once, towards what the load needs; then it stays."""
    found, _ = play(observed, rules, ticks * 10.0, 10.0)
    turns = [b - a for a, b in itertools.pairwise(found) if a != b]
    assert all(change < 0 for change in turns)


@given(fleets, rules)
def test_what_is_needed_is_there_at_once(observed: Observed, rules: Rules) -> None:
    assert decide(observed, rules, Memory())[0] >= needed(observed, rules)


@given(fleets, rules)
def test_a_fleet_with_a_job_is_never_stopped(observed: Observed, rules: Rules) -> None:
    busy = dataclasses.replace(observed, jobs=max(1, observed.jobs))
    found, _ = play(busy, rules, 5000, 500)
    assert min(found) >= 1


def test_ten_large_images_weigh_more_than_ten_thumbnails() -> None:
    assert needed(fleet(work_s=10 * THUMBNAIL_S, jobs=10), RULES) == 1
    assert needed(fleet(work_s=10 * LARGE_S, jobs=10), RULES) == math.ceil(35 / 4)


def test_a_busy_fleet_without_a_queue_keeps_its_replicas() -> None:
    """Its backlog is short because they are enough: fewer would not be."""
    assert needed(fleet(target=6, work_s=5.0, demand=4.6), RULES) == 6


def test_fewer_only_after_they_were_enough_for_long() -> None:
    replicas, memory = decide(fleet(work_s=32.0), RULES, Memory())
    assert replicas == 8
    calm = fleet(now_s=1.0, target=8, work_s=4.0)
    found, _ = play(calm, RULES, 70, 1.0, memory)
    assert found[:59] == [8] * 59
    assert found[-1] == 1


def test_a_second_burst_while_holding_starts_the_hold_anew() -> None:
    _, memory = decide(fleet(work_s=32.0), RULES, Memory())
    _, memory = decide(fleet(now_s=50.0, target=8, work_s=24.0), RULES, memory)
    found, _ = play(fleet(now_s=51.0, target=8, work_s=4.0), RULES, 70, 1.0, memory)
    assert found[:9] == [8] * 9
    assert found[20:58] == [6] * 38
    assert found[-1] == 1


def test_it_goes_to_zero_only_after_the_long_idle_and_only_where_allowed() -> None:
    idle = fleet(jobs=0)
    found, _ = play(idle, RULES, 400, 1.0)
    assert found.index(0) == RULES.idle_to_zero_s
    assert set(found[found.index(0) :]) == {0}
    bound, _ = play(dataclasses.replace(idle, least=1), RULES, 400, 1.0)
    assert set(bound) == {1}


def test_a_job_in_between_starts_the_idle_time_anew() -> None:
    _, memory = play(fleet(jobs=0), RULES, 290, 10.0)
    _, memory = decide(fleet(now_s=295.0, jobs=1), RULES, memory)
    found, _ = play(fleet(now_s=300.0, jobs=0), RULES, 290, 10.0, memory)
    assert set(found) == {1}


@pytest.mark.parametrize(
    "kwargs", [{"target_queue_s": 0}, {"utilization": 1.5}, {"hold_s": -1}, {"hold_s": math.nan}]
)
def test_bad_rules_are_refused_by_name(kwargs: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        ComputeBacklogPolicy(**kwargs)
    with pytest.raises(TypeError):
        ComputeBacklogPolicy(target_queue=4)


class Controller:
    """Calls the policy as Serve's controller does, with what it would know."""

    def __init__(self, **kwargs: float) -> None:
        self.policy = ComputeBacklogPolicy(**kwargs)
        self.target = 1

    def tick(
        self, now_s: float, replicas: dict[str, dict[str, float]], waiting: float = 0.0
    ) -> int:
        names = (BACKLOG_S, BUSY_S, JOB_S, JOBS)
        ctx = SimpleNamespace(
            config=AutoscalingConfig(min_replicas=0, max_replicas=8, upscale_delay_s=0,
                                     downscale_delay_s=0),
            raw_metrics={
                name: {
                    replica: [TimeStampedValue(now_s - 9, 1e9), TimeStampedValue(now_s, one[name])]
                    for replica, one in replicas.items()
                }
                for name in names
            },
            total_queued_requests=waiting,
            total_num_requests=waiting + sum(one[JOBS] for one in replicas.values()),
            current_time=now_s,
            target_num_replicas=self.target,
            capacity_adjusted_min_replicas=0,
            capacity_adjusted_max_replicas=8,
        )  # fmt: skip
        self.target, state = self.policy(ctx)
        assert state == {}
        return self.target


def replica(
    backlog_s: float, busy_s: float = 0.0, job_s: float = 1.0, jobs: int = 1
) -> dict[str, float]:
    return {BACKLOG_S: backlog_s, BUSY_S: busy_s, JOB_S: job_s, JOBS: jobs}


def test_the_policy_takes_the_newest_report_of_each_replica() -> None:
    assert Controller().tick(0.0, {"a": replica(8.0), "b": replica(8.0)}) == 4


def test_jobs_that_wait_in_handles_weigh_what_jobs_cost_lately() -> None:
    assert Controller().tick(0.0, {"a": replica(2.0, job_s=3.5)}, waiting=4) == 4
    assert Controller().tick(0.0, {"a": replica(2.0, job_s=0.1)}, waiting=4) == 1


def test_what_jobs_cost_is_remembered_while_no_replica_runs() -> None:
    controller = Controller()
    controller.tick(0.0, {"a": replica(0.0, job_s=4.0)})
    assert controller.tick(1.0, {}, waiting=5) == 5


def test_demand_is_what_arrives_whether_it_waits_or_is_done() -> None:
    """Two replicas, always busy, with a short queue: three are needed to be 80 % busy."""
    controller = Controller()
    for second in range(200):
        busy = {name: replica(1.0, busy_s=second) for name in ("a", "b")}
        replicas = controller.tick(second, busy)
    assert replicas == 3


def test_a_replica_that_leaves_with_its_work_done_is_no_negative_demand() -> None:
    controller = Controller()
    for second in range(100):
        controller.tick(second, {name: replica(0.5, busy_s=0.7 * second) for name in "abc"})
    assert controller.tick(101, {name: replica(0.5, busy_s=70.0) for name in "ab"}) >= 3


def test_serve_takes_it_from_a_config_file() -> None:
    policy = AutoscalingPolicy(
        policy_function="serve_app.deployments.autoscaling:ComputeBacklogPolicy",
        policy_kwargs={"target_queue_s": 8},
    )
    assert policy.get_policy() is ComputeBacklogPolicy


def test_delays_of_serve_on_top_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = ComputeBacklogPolicy()
    for _ in range(2):
        policy._warn_of_delays(AutoscalingConfig())
    assert caplog.text.count("downscale_delay_s") == 1
