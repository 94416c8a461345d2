"""Figures: counts, percentiles, GPU-seconds of a finished test. Pure.

Data flow: outcomes + samples -> `Figures` (totals) and `windows` (over time) -> report, objectives.
Latency figures are of requests that were delivered or waited out their time limit: a refusal in
2 ms must not make a server look fast. A request that timed out counts with the time it waited,
which is less than it would have taken.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from serve_app.loadtest.outcome import Outcome
from serve_app.loadtest.target import Sample

WINDOWS = 60
"""Points of a plot over time, at most; a window lasts at least one second."""


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of the ascending values do not exceed (nearest rank)."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Figures:
    """Totals of a test. Latencies in seconds from the scheduled time."""

    requests: int
    delivered: int
    images: int
    units: int
    codes: dict[str, int]
    latency: dict[str, float | None]
    retry_after: dict[str, dict[str, int]]
    """Error code -> stated `Retry-After` in seconds, or `none` -> how often."""
    lasted_s: float
    """From time 0 to the last reply."""
    send_lag_p99_s: float | None
    """How late this side sent: above some milliseconds it was the limit, not the server."""
    gpu_seconds: float | None
    replica_seconds: float | None
    """None without samples of the replicas."""

    @property
    def errors(self) -> float | None:
        """Share of the requests that brought no images."""
        return (self.requests - self.delivered) / self.requests if self.requests else None

    @property
    def images_per_s(self) -> float:
        return self.images / self.lasted_s if self.lasted_s > 0 else 0.0

    def objectives(self) -> dict[str, float | None]:
        """What objectives may name."""
        return {**self.latency, "errors": self.errors}

    def cost_per_image(self, gpu_hour_price: float) -> float | None:
        """In the price's currency; None without GPUs, samples or images."""
        if not self.gpu_seconds or not self.images:
            return None
        return self.gpu_seconds / 3600 * gpu_hour_price / self.images


def latency_figures(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """p50, p90, p95, p99, max and mean; each None where nothing was measured."""
    ordered = sorted(outcome.latency_s for outcome in outcomes if outcome.waited_out)
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    found = {name: percentile(ordered, share) for name, share in shares.items()}
    return {**found, "mean": math.fsum(ordered) / len(ordered) if ordered else None}


def summarise(outcomes: Sequence[Outcome], samples: Sequence[Sample]) -> Figures:
    """The totals."""
    delivered = [outcome for outcome in outcomes if outcome.delivered]
    retry_after: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        if outcome.status in (429, 503):
            stated = outcome.retry_after_s
            shown = "none" if stated is None else f"{stated:g}"
            retry_after.setdefault(f"{outcome.status} {outcome.code}", Counter())[shown] += 1
    return Figures(
        requests=len(outcomes),
        delivered=len(delivered),
        images=sum(outcome.images for outcome in delivered),
        units=sum(outcome.units for outcome in delivered),
        codes=dict(Counter(outcome.code for outcome in outcomes).most_common()),
        latency=latency_figures(outcomes),
        retry_after={code: dict(sorted(found.items())) for code, found in retry_after.items()},
        lasted_s=max((outcome.done_s for outcome in outcomes), default=0.0),
        send_lag_p99_s=percentile(
            sorted(outcome.sent_s - outcome.scheduled_s for outcome in outcomes), 0.99
        ),
        gpu_seconds=integral([(sample.at_s, sample.gpus) for sample in samples]),
        replica_seconds=integral(
            [(one.at_s, float(sum(model.replicas for model in one.models))) for one in samples]
        ),
    )


def integral(points: Sequence[tuple[float, float]]) -> float | None:
    """Area under straight lines through (seconds, value); None for fewer than two points."""
    if len(points) < 2:
        return None
    return math.fsum(
        (end - start) * (low + high) / 2 for (start, low), (end, high) in pairwise(points)
    )


def cumulative(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The area up to each point."""
    total, found = 0.0, [(points[0][0], 0.0)] if points else []
    for (start, low), (end, high) in pairwise(points):
        total += (end - start) * (low + high) / 2
        found.append((end, total))
    return found


@dataclass(frozen=True)
class Window:
    """A piece of the test's time: what was scheduled in it, and what of that came back how."""

    start_s: float
    length_s: float
    scheduled: int
    finished: int
    """Replies that arrived in this window, whenever they were scheduled."""
    latency: dict[str, float | None]
    codes: dict[str, int]


def windows(outcomes: Sequence[Outcome], lasted_s: float) -> list[Window]:
    """The test in equal pieces; latencies and codes belong to the window of the scheduled time."""
    length_s = max(1.0, math.ceil(lasted_s / WINDOWS))
    count = max(1, math.ceil(lasted_s / length_s))
    parts: list[list[Outcome]] = [[] for _ in range(count)]
    finished = [0] * count
    for outcome in outcomes:
        parts[min(count - 1, int(outcome.scheduled_s / length_s))].append(outcome)
        finished[min(count - 1, int(outcome.done_s / length_s))] += 1
    return [
        Window(
            start_s=number * length_s,
            length_s=length_s,
            scheduled=len(part),
            finished=finished[number],
            latency=latency_figures(part),
            codes=dict(Counter(outcome.code for outcome in part)),
        )
        for number, part in enumerate(parts)
    ]
