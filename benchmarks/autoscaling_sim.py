"""A simulated fleet for `benchmarks.autoscaling`: real policies and planners, time that is free.

Data flow: trace -> handle (waiting jobs, the replica with fewest jobs gets the next) -> replicas,
each with the engine's own `Planner` and the cost table of simulated GPUs -> what Serve's controller
would see -> a policy, wrapped as Serve wraps it (factors, delays, bounds) -> replicas start and
drain. One job is one image. No Ray process runs; its policy code is called.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.serve._private.common import TimeStampedValue
from ray.serve.autoscaling_policy import (
    _apply_delay_logic,
    _apply_scaling_factors,
    _get_cold_start_scale_up_replicas,
)
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.config import EngineConfig
from serve_app.deployments.autoscaling import BACKLOG_S, BUSY_S, JOB_S, JOBS
from serve_app.deployments.workmeter import WorkMeter
from serve_app.engine.cost import TRUSTED
from serve_app.engine.planner import Planner
from serve_app.engine.schedule import Candidate
from serve_app.engine.simulated_cost import SimulatedCost

REPORT_EVERY_S = 0.5  # metrics_interval_s
TICK_S = REPORT_EVERY_S  # Serve decides more often, but nothing new comes in between
TEXT_TOKENS, TOKEN_PX = 256, 16

Policy = Callable[[AutoscalingContext], tuple[float, dict[str, Any]]]


@dataclass(frozen=True)
class Arrival:
    """One image that somebody asks for."""

    at_s: float
    edge: int
    steps: int


@dataclass(eq=False)
class Replica:
    """A GPU that is paid for from `since_s` on."""

    name: str
    since_s: float
    ready_s: float
    planner: Planner
    meter: WorkMeter = field(default_factory=WorkMeter)
    jobs: dict[int, int] = field(default_factory=dict)
    """Steps left by job."""
    busy: bool = False
    draining: bool = False
    busy_s: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """What does not depend on the policy."""

    cost: SimulatedCost
    start_s: float
    """From the decision until a replica serves."""
    max_ongoing: int


@dataclass
class Outcome:
    """What a policy made of a trace."""

    latency_s: np.ndarray
    gpu_seconds: float
    replicas: list[tuple[float, int]]
    """(time, GPUs paid for) whenever it changed."""


class Simulation:
    """One trace under one policy."""

    def __init__(
        self, trace: Sequence[Arrival], fleet: Fleet, policy: Policy, config: AutoscalingConfig
    ) -> None:
        self.trace = trace
        self.fleet = fleet
        self.policy = policy
        self.config = config
        self.now_s = 0.0
        self.done_s = np.full(len(trace), np.nan)
        self.waiting: deque[int] = deque()
        self.replicas: list[Replica] = []
        self.stopped_s = 0.0
        self.history: list[tuple[float, int]] = []
        self.seen: deque[tuple[float, float, float]] = deque()
        """(time, requests, of these waiting): what Serve averages over its look-back period."""
        self.reported: dict[str, dict[str, list[TimeStampedValue]]] = {}
        self.state: dict[str, Any] = {}
        self.target = config.min_replicas
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._names = itertools.count()

    def run(self) -> Outcome:
        """Play it to its end, until the fleet is back at its minimum."""
        for number, arrival in enumerate(self.trace):
            self._at(arrival.at_s, lambda number=number: self._arrive(number))
        for _ in range(self.target):
            self._start(0.0)
        self._at(0.0, self._report)
        self._at(0.0, self._tick)
        end_s = self.trace[-1].at_s
        while self._events:
            self.now_s, _, act = heapq.heappop(self._events)
            if self.now_s > end_s and not np.isnan(self.done_s).any():
                break
            act()
        paid_s = self.stopped_s + sum(self.now_s - one.since_s for one in self.replicas)
        arrived_s = np.array([one.at_s for one in self.trace])
        return Outcome(self.done_s - arrived_s, paid_s, self.history)

    def _at(self, when_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), act))

    def _arrive(self, number: int) -> None:
        self.waiting.append(number)
        self._route()

    def _route(self) -> None:
        """Hand waiting jobs to the replicas with fewest, while any has room."""
        while self.waiting:
            open_ones = [
                one
                for one in self.replicas
                if one.ready_s <= self.now_s
                and not one.draining
                and len(one.jobs) < self.fleet.max_ongoing
            ]
            if not open_ones:
                return
            replica = min(open_ones, key=lambda one: len(one.jobs))
            number = self.waiting.popleft()
            job = self.trace[number]
            replica.jobs[number] = job.steps
            shape = (job.edge, job.edge)
            replica.meter.admitted(
                job.steps * replica.planner.step_s(shape, 1) + replica.planner.decode_s(shape)
            )
            replica.planner.shares.enter(number, "")
            self._turn(replica)

    def _turn(self, replica: Replica) -> None:
        """The device thread: choose a step batch, and be back when it is done."""
        if replica.busy or not replica.jobs:
            return
        numbers = list(replica.jobs)
        candidates = self._candidates(replica)
        batch = [numbers[index] for index in replica.planner.choose(candidates)]
        edge = self.trace[batch[0]].edge
        step_s = self.fleet.cost.step_s((edge, edge), len(batch))
        ending = [number for number in batch if replica.jobs[number] == 1]
        took_s = step_s + len(ending) * self.fleet.cost.decode_s((edge, edge))
        replica.busy = True
        self._at(self.now_s + took_s, lambda: self._done(replica, batch, ending, took_s))

    def _done(self, replica: Replica, batch: list[int], ending: list[int], took_s: float) -> None:
        replica.busy = False
        replica.busy_s += took_s
        for number in batch:
            replica.jobs[number] -= 1
        for number in ending:
            del replica.jobs[number]
            replica.planner.shares.leave(number)
            self.done_s[number] = self.now_s
        if replica.draining and not replica.jobs:
            self._stop(replica)
        self._route()
        self._turn(replica)

    def _candidates(self, replica: Replica) -> list[Candidate]:
        return [
            Candidate(job.edge, job.edge, left, "", number, job.at_s)
            for number, left in replica.jobs.items()
            for job in (self.trace[number],)
        ]

    def _start(self, start_s: float) -> None:
        planner = Planner(EngineConfig(), TOKEN_PX, TEXT_TOKENS)
        for shape in {(one.edge, one.edge) for one in self.trace}:
            for samples in (1, 2, 4, 8):
                for _ in range(TRUSTED):
                    planner.costs.record_step(
                        shape, samples, self.fleet.cost.step_s(shape, samples)
                    )
            planner.costs.record_decode(shape, self.fleet.cost.decode_s(shape))
        ready_s = self.now_s + start_s
        self.replicas.append(Replica(f"r{next(self._names)}", self.now_s, ready_s, planner))
        self._at(ready_s, self._route)

    def _stop(self, replica: Replica) -> None:
        self.stopped_s += self.now_s - replica.since_s
        self.replicas.remove(replica)
        self._note()

    def _note(self) -> None:
        self.history.append((self.now_s, len(self.replicas)))

    def _report(self) -> None:
        """What replicas and handles push to the controller."""
        running = [one for one in self.replicas if one.ready_s <= self.now_s]
        held = sum(len(one.jobs) for one in running)
        self.seen.append((self.now_s, held + len(self.waiting), len(self.waiting)))
        while self.seen[0][0] < self.now_s - self.config.look_back_period_s:
            self.seen.popleft()
        self.reported = {name: {} for name in (BACKLOG_S, BUSY_S, JOB_S, JOBS)}
        for one in running:
            values = {
                BACKLOG_S: one.planner.backlog_s(self._candidates(one)),
                BUSY_S: one.busy_s,
                JOB_S: one.meter.job_s,
                JOBS: float(len(one.jobs)),
            }
            for name, value in values.items():
                self.reported[name][one.name] = [TimeStampedValue(self.now_s, value)]
        self._at(self.now_s + REPORT_EVERY_S, self._report)

    def _tick(self) -> None:
        """One turn of Serve's controller."""
        decided = self._decide()
        wanted = max(self.config.min_replicas, min(self.config.max_replicas, decided))
        serving = [one for one in self.replicas if not one.draining]
        for _ in range(wanted - len(serving)):
            self._start(self.fleet.start_s)
            self._note()
        newest_first = sorted(serving, key=lambda one: (one.ready_s <= self.now_s, len(one.jobs)))
        for one in newest_first[: max(0, len(serving) - wanted)]:
            one.draining = True
            if not one.jobs:
                self._stop(one)
        self.target = wanted
        self._at(self.now_s + TICK_S, self._tick)

    def _decide(self) -> int:
        """As Serve's `_apply_autoscaling_config`, on the simulation's clock."""
        requests, waiting = np.mean([one[1:] for one in self.seen], axis=0)
        running = [one for one in self.replicas if one.ready_s <= self.now_s and not one.draining]
        ctx = AutoscalingContext(
            deployment_id=None, deployment_name="model", app_name="flux-serve",
            current_num_replicas=len(running), target_num_replicas=self.target,
            running_replicas=[], total_num_requests=float(requests),
            total_queued_requests=float(waiting), aggregated_metrics={},
            raw_metrics=self.reported,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self.state, last_scale_up_time=None, last_scale_down_time=None,
            current_time=self.now_s, config=self.config,
        )  # fmt: skip
        cold = _get_cold_start_scale_up_replicas(ctx)
        if cold is not None:
            return cold
        desired, _ = self.policy(ctx)
        scaled = _apply_scaling_factors(desired, len(running), self.config)
        replicas, self.state = _apply_delay_logic(
            max(0, scaled), self.target, self.config, self.state, _now=self.now_s
        )
        return replicas
