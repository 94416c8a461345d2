"""How many replicas a model needs: by the device seconds of work that wait, not by requests.

Data flow: `FluxModel.record_autoscaling_stats` (work inside each replica) and Serve's count of
requests that wait in handles -> `ComputeBacklogPolicy`, called in Serve's controller several times
a second -> `decide`, a pure function -> replicas. docs/autoscaling.md says how and why. Must not
import torch, nor read a clock: the controller brings the time.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

POLICY_PATH = "serve_app.deployments.autoscaling:ComputeBacklogPolicy"
"""`policy_function` in YAML."""

# What a replica reports; device seconds, but for the number of jobs.
BACKLOG_S = "backlog_s"
BUSY_S = "busy_s"
JOB_S = "job_s"
JOBS = "jobs"

ROUNDING = 1e-6  # of a replica: sums of floats must not ask for one more
DELAY_MAX_S = 3.0  # Serve's own delays come on top of ours


@dataclass(frozen=True)
class Rules:
    """What an operator may set: `policy_kwargs` in YAML."""

    target_queue_s: float = 4.0
    """In how many seconds the replicas should be able to finish all the work that is there."""
    utilization: float = 0.8
    """Share of its time that a replica should be busy: above it, queues grow at random."""
    hold_s: float = 60.0
    """How long fewer replicas must have been enough before any is stopped."""
    idle_to_zero_s: float = 300.0
    """How long nothing may have come before the last one is; matters with `min_replicas: 0`."""
    demand_window_s: float = 20.0
    """Over how many seconds the demand is averaged."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"policy_kwargs.{field.name} must be above 0, not {value!r}")
        if self.utilization > 1:
            raise ValueError("policy_kwargs.utilization is a share: at most 1")


@dataclass(frozen=True)
class Observed:
    """A model's fleet at one moment."""

    now_s: float
    target: int
    """Replicas asked for so far, whether they run yet or not."""
    least: int
    most: int
    work_s: float
    """Device seconds of all jobs, in replicas and in handles."""
    demand: float
    """Device seconds of work that arrive per second: so many replicas it keeps busy."""
    jobs: float
    """In replicas and in handles."""


@dataclass(frozen=True)
class Memory:
    """What the next decision has to know of the past."""

    needs: tuple[tuple[float, int], ...] = ()
    """(time, replicas needed) within `hold_s`, of which none is above an earlier one."""
    idle_since_s: float | None = None


def needed(observed: Observed, rules: Rules) -> int:
    """Replicas that this moment alone asks for, within the bounds."""
    drain = math.ceil(observed.work_s / rules.target_queue_s - ROUNDING)
    sustain = math.ceil(observed.demand / rules.utilization - ROUNDING)
    some = 1 if observed.jobs > 0 else 0
    return max(observed.least, min(observed.most, max(drain, sustain, some)))


def decide(observed: Observed, rules: Rules, memory: Memory) -> tuple[int, Memory]:
    """How many replicas there should be from now on.

    More at once; fewer only as far as has been enough for `hold_s`; none only after
    `idle_to_zero_s` without a job.
    """
    now_s, now_needed = observed.now_s, needed(observed, rules)
    idle_since_s = None
    if observed.jobs <= 0:
        idle_since_s = now_s if memory.idle_since_s is None else memory.idle_since_s
    idle_long = idle_since_s is not None and now_s - idle_since_s >= rules.idle_to_zero_s
    if observed.least == 0 and idle_long:
        return 0, Memory(idle_since_s=idle_since_s)
    now_needed = max(now_needed, min(1, observed.target))  # the last one waits for the long idle
    needs = [one for one in memory.needs if now_s - one[0] < rules.hold_s and one[1] > now_needed]
    if not memory.needs and observed.target > now_needed:
        needs = [(now_s, observed.target)]  # nothing is known of what it was for
    needs.append((now_s, now_needed))
    _, most_lately = needs[0]
    most_needed = max(observed.least, min(observed.most, most_lately))
    replicas = max(now_needed, min(observed.target, most_needed))
    return replicas, Memory(tuple(needs), idle_since_s)


@dataclass(frozen=True)
class Report:
    """What one replica has reported last."""

    backlog_s: float
    busy_s: float
    """Device seconds spent since it started."""
    job_s: float
    """Of a job that it admitted lately, on average; 0.0 before it knows."""
    jobs: float


class ComputeBacklogPolicy:
    """The policy that `autoscaling_config.policy` names; keeps what it learns between calls."""

    def __init__(self, **rules: float) -> None:
        """`rules` are those of `Rules`; Serve passes `policy_kwargs`."""
        self.rules = Rules(**rules)
        self._memory = Memory()
        self._reports: dict[str, Report] = {}
        self._waiting_s = 0.0
        self._job_s = 0.0
        self._demand = 0.0
        self._asked_at_s: float | None = None
        self._warned = False

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Decide from an `AutoscalingContext`; Serve applies its bounds and delays afterwards."""
        self._warn_of_delays(ctx.config)
        reports = reports_of(ctx.raw_metrics or {})
        waiting = float(ctx.total_queued_requests or 0.0)
        observed = Observed(
            now_s=ctx.current_time,
            target=ctx.target_num_replicas,
            least=ctx.capacity_adjusted_min_replicas,
            most=ctx.capacity_adjusted_max_replicas,
            work_s=self._learn(reports, waiting, ctx.current_time),
            demand=self._demand,
            # Serve counts a job from its arrival in a replica, which reports twice a second.
            jobs=max(waiting + sum(one.jobs for one in reports.values()), ctx.total_num_requests),
        )
        replicas, self._memory = decide(observed, self.rules, self._memory)
        return replicas, {}

    def _learn(self, reports: Mapping[str, Report], waiting: float, now_s: float) -> float:
        """Update cost of a job and demand; returns the work that is there, in device seconds."""
        known = [one.job_s for one in reports.values() if one.job_s > 0]
        if known:
            self._job_s = sum(known) / len(known)
        waiting_s = waiting * self._job_s
        came_s = waiting_s - self._waiting_s
        for name, one in reports.items():
            before = self._reports.get(name)
            came_s += one.backlog_s + one.busy_s
            came_s -= before.backlog_s + before.busy_s if before else 0.0
        if self._asked_at_s is not None and (elapsed_s := now_s - self._asked_at_s) > 0:
            weight = 1 - math.exp(-elapsed_s / self.rules.demand_window_s)
            self._demand = max(0.0, self._demand + weight * (came_s / elapsed_s - self._demand))
        self._asked_at_s = now_s
        self._reports, self._waiting_s = dict(reports), waiting_s
        return waiting_s + sum(one.backlog_s for one in reports.values())

    def _warn_of_delays(self, config: Any) -> None:
        delays = {name: getattr(config, name) for name in ("upscale_delay_s", "downscale_delay_s")}
        if not self._warned and max(delays.values()) > DELAY_MAX_S:
            logger.warning("Serve delays every decision of this policy, too; set to 0: %s", delays)
        self._warned = True


def reports_of(metrics: Mapping[str, Mapping[Any, Any]]) -> dict[str, Report]:
    """The newest report of each replica, from Serve's time series."""

    def latest(name: str, replica: Any) -> float:
        series = metrics.get(name, {}).get(replica)
        return float(series[-1].value) if series else 0.0

    return {
        str(replica): Report(
            latest(BACKLOG_S, replica),
            latest(BUSY_S, replica),
            latest(JOB_S, replica),
            latest(JOBS, replica),
        )
        for replica in metrics.get(BACKLOG_S, {})
    }
