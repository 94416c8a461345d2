"""A device made of numbers: the engine's planner with time that a test decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.config import EngineConfig
from serve_app.engine.planner import Planner
from serve_app.engine.schedule import Candidate, Shape

OVERHEAD_S = 0.5  # of a step, whatever is in it
TOKEN_PX = 16
TEXT_TOKENS = 64


@dataclass(frozen=True)
class FixedPrices:
    """Prices that a test knows by heart."""

    most: int = 4
    overhead_s: float = OVERHEAD_S
    past: frozenset[str] = frozenset()

    def step_s(self, shape: Shape, samples: int) -> float:
        return step_s(shape, samples, self.overhead_s)

    def decode_s(self, shape: Shape) -> float:
        return decode_s(shape)

    def limit(self, _shape: Shape) -> int:
        return self.most

    def past_share(self, account: str) -> bool:
        return account in self.past


def step_s(shape: Shape, samples: int, overhead_s: float = OVERHEAD_S) -> float:
    return overhead_s + samples * shape[0] * shape[1] / 2**18  # a second per 512x512


def decode_s(shape: Shape) -> float:
    return shape[0] * shape[1] / 2**20


@dataclass(frozen=True)
class Arrival:
    """A job of one sample."""

    edge: int = 512
    steps: int = 4
    account: str = "a"
    at_s: float = 0.0

    @property
    def shape(self) -> Shape:
        return (self.edge, self.edge)

    @property
    def alone_s(self) -> float:
        return self.steps * step_s(self.shape, 1) + decode_s(self.shape)


@dataclass
class Run:
    """What a device did."""

    done_s: dict[int, float] = field(default_factory=dict)
    """When each job was finished, in the order of finishing."""
    batches: list[tuple[Shape, int]] = field(default_factory=list)
    idle_s: float = 0.0


def make_planner(**config: Any) -> Planner:
    return Planner(EngineConfig(**config), TOKEN_PX, TEXT_TOKENS)


def taught(planner: Planner, shapes: Sequence[Shape], most: int = 8) -> Planner:
    """A planner that knows what everything costs."""
    for shape in shapes:
        for _ in range(3):
            planner.costs.record_decode(shape, decode_s(shape))
            for samples in range(1, most + 1):
                planner.costs.record_step(shape, samples, step_s(shape, samples))
    return planner


def simulate(
    planner: Planner,
    arrivals: Sequence[Arrival],
    more: Callable[[float], Sequence[Arrival]] = lambda _now: (),
) -> Run:
    """Serve arrivals (sorted by time), and those that `more` thinks of at each step boundary."""
    run = Run()
    jobs = list(arrivals)
    waiting = list(range(len(jobs)))
    inside: dict[int, int] = {}
    now = 0.0
    while waiting or inside:
        for late in more(now):
            jobs.append(late)
            waiting.append(len(jobs) - 1)
        if not inside and (coming := jobs[waiting[0]].at_s) > now:
            run.idle_s += coming - now
            now = coming
        while waiting and jobs[waiting[0]].at_s <= now:
            number = waiting.pop(0)
            inside[number] = jobs[number].steps
            planner.shares.enter(number, jobs[number].account)
        numbers = list(inside)
        candidates = [candidate(jobs[number], number, inside[number]) for number in numbers]
        chosen = planner.choose(candidates)
        batch = [candidates[index] for index in chosen]
        run.batches.append((batch[0].shape, len(batch)))
        assert len({one.shape for one in batch}) == 1
        took_s = step_s(batch[0].shape, len(batch))
        now += took_s
        planner.stepped(batch, took_s)
        for number in (numbers[index] for index in chosen):
            inside[number] -= 1
        for number in [number for number in numbers if inside[number] == 0]:
            job = jobs[number]
            now += decode_s(job.shape)
            planner.decoded(candidate(job, number, 0), decode_s(job.shape))
            planner.shares.leave(number)
            run.done_s[number] = now
            del inside[number]
    return run


def candidate(job: Arrival, number: int, left: int) -> Candidate:
    return Candidate(job.edge, job.edge, left, job.account, number, job.at_s)
