"""A simulated device for `benchmarks.scheduling`: the real planner, with time that costs nothing.

Data flow: workload (Poisson arrivals) -> sealed static batches, or the engine's `Planner` turn by
turn -> latency and slowdown of each job. Step times are those of FLUX.1 on an H100 in bf16 as
computed in the project's notes on inference (within 15 % of what is published); the planner does
not know them, it learns from the times it is shown, which scatter. One job is one image.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.config import EngineConfig
from serve_app.engine.planner import Planner
from serve_app.engine.schedule import Candidate, PolicyName

# Milliseconds of a step alone, and throughput gained by 2, 4 and 8 samples.
STEP_MS = {256: 24.0, 512: 36.0, 768: 67.0, 1024: 122.0}
GAINS = {
    256: (1.0, 1.47, 1.82, 2.04),
    512: (1.0, 1.12, 1.22, 1.24),
    768: (1.0, 1.04, 1.09, 1.12),
    1024: (1.0, 1.05, 1.09, 1.10),
}
DECODE_S_AT_1024 = 0.090  # published for an H200 without compilation; falls with the pixels
SCATTER = 0.03  # of measured times: standard deviation of their logarithm
TEXT_TOKENS = 256
TOKEN_PX = 16
SAMPLES_MAX = 8


@dataclass(frozen=True)
class Job:
    """One image of a workload."""

    edge: int
    steps: int
    account: str
    arrived_s: float

    @property
    def alone_s(self) -> float:
        return self.steps * step_s(self.edge, 1) + decode_s(self.edge)


@dataclass(frozen=True)
class Outcome:
    """What became of a workload."""

    jobs: Sequence[Job]
    latency_s: np.ndarray
    expected_s: np.ndarray | None = None
    """Latency that was foretold on arrival; NaN before the first step was timed."""

    @property
    def slowdown(self) -> np.ndarray:
        return self.latency_s / np.array([job.alone_s for job in self.jobs])


def step_s(edge: int, samples: int) -> float:
    """True seconds of a step batch; between the sizes of the table by straight lines."""
    known = [STEP_MS[edge] * n / gain for n, gain in zip((1, 2, 4, 8), GAINS[edge], strict=True)]
    return float(np.interp(samples, (1, 2, 4, 8), known)) / 1000


def decode_s(edge: int) -> float:
    return DECODE_S_AT_1024 * (edge / 1024) ** 2


def workload(
    kinds: Sequence[tuple[int, int]], load: float, jobs: int, accounts: int, seed: int
) -> list[Job]:
    """Poisson arrivals of (edge, steps), each kind as likely as any, at a load of batch 1."""
    random = np.random.default_rng(seed)
    mean_s = float(np.mean([Job(edge, steps, "", 0).alone_s for edge, steps in kinds]))
    times = np.cumsum(random.exponential(mean_s / load, jobs))
    picks = random.integers(0, len(kinds), jobs)
    owners = random.integers(0, accounts, jobs)
    return [
        Job(*kinds[pick], f"account-{owner}", float(time))
        for pick, owner, time in zip(picks, owners, times, strict=True)
    ]


def flood(load: float, jobs: int, seed: int) -> list[Job]:
    """Four quiet accounts, and a fifth that sends 100 jobs at once, every now and then."""
    quiet = workload([(512, 4), (1024, 4)], load, jobs, 4, seed)
    every_s = 150.0
    bursts = int(quiet[-1].arrived_s / every_s)
    loud = [Job(1024, 4, "flood", every_s * (n + 0.5)) for n in range(bursts) for _ in range(100)]
    return sorted([*quiet, *loud], key=lambda job: job.arrived_s)


def static_batches(jobs: Sequence[Job], batch_max: int, seed: int = 0) -> Outcome:
    """`@serve.batch` around `FluxPipeline`: a batch is sealed, runs to its end, returns as a whole.

    One call takes equal sizes and steps only, so a mixed batch makes several calls.
    """
    random = np.random.default_rng(seed)
    done_s = np.zeros(len(jobs))
    now, first = 0.0, 0
    while first < len(jobs):
        now = max(now, jobs[first].arrived_s)
        batch = [first]
        while (
            len(batch) < batch_max
            and batch[-1] + 1 < len(jobs)
            and jobs[batch[-1] + 1].arrived_s <= now
        ):
            batch.append(batch[-1] + 1)
        calls: dict[tuple[int, int], int] = {}
        for index in batch:
            kind = (jobs[index].edge, jobs[index].steps)
            calls[kind] = calls.get(kind, 0) + 1
        for (edge, steps), count in calls.items():
            took_s = steps * step_s(edge, count) + count * decode_s(edge)
            now += took_s * float(np.exp(random.normal(0, SCATTER)))
        done_s[batch] = now
        first = batch[-1] + 1
    return Outcome(jobs, done_s - np.array([job.arrived_s for job in jobs]))


def planned(jobs: Sequence[Job], policy: PolicyName, seed: int = 0, **config: object) -> Outcome:
    """The engine's own planner, turn by turn, as the device thread uses it."""
    settings = {"schedule": policy, "step_batch_max_samples": SAMPLES_MAX, **config}
    planner = Planner(EngineConfig.model_validate(settings), TOKEN_PX, TEXT_TOKENS)
    scatter = np.random.default_rng(seed)
    coming = deque(enumerate(jobs))
    inside: list[tuple[int, int]] = []  # (job, steps left) in order of arrival
    done_s = np.zeros(len(jobs))
    expected_s = np.full(len(jobs), np.nan)
    now = 0.0

    def spend(seconds: float) -> float:
        nonlocal now
        seconds *= float(np.exp(scatter.normal(0, SCATTER)))
        now += seconds
        return seconds

    def candidate(number: int, left: int) -> Candidate:
        job = jobs[number]
        return Candidate(job.edge, job.edge, left, job.account, number, job.arrived_s)

    while coming or inside:
        if not inside:
            now = max(now, coming[0][1].arrived_s)
        while coming and coming[0][1].arrived_s <= now:
            number, job = coming.popleft()
            if planner.costs.measured:
                others = [candidate(*one) for one in inside]
                estimate = planner.estimate(others, [candidate(number, job.steps)])
                expected_s[number] = now - job.arrived_s + estimate.finish_s
            inside.append((number, job.steps))
            planner.shares.enter(number, job.account)
        candidates = [candidate(*one) for one in inside]
        chosen = planner.choose(candidates)
        batch = [candidates[index] for index in chosen]
        planner.stepped(batch, spend(step_s(batch[0].width, len(batch))))
        for index in chosen:
            inside[index] = (inside[index][0], inside[index][1] - 1)
        for number, left in [inside[index] for index in chosen]:
            if left == 0:
                planner.decoded(candidate(number, 0), spend(decode_s(jobs[number].edge)))
                planner.shares.leave(number)
                done_s[number] = now
        inside = [one for one in inside if one[1]]
    return Outcome(jobs, done_s - np.array([job.arrived_s for job in jobs]), expected_s)
