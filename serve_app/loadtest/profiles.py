"""Profiles: how the rate of arrivals runs over time, and arrival times drawn from it.

Data flow: name, duration, peak rate -> `segments` (rate as straight lines) -> `arrival_times`, a
Poisson process of that rate. Pure: the same seed gives the same times, in every process.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

PROFILES = ("ramp", "step", "burst", "soak")
ARRIVALS_MAX = 1_000_000
"""Beyond it the results would not fit into a laptop's memory."""


@dataclass(frozen=True)
class Segment:
    """From `start_s` to `end_s` the rate goes in a straight line, in requests a second."""

    start_s: float
    end_s: float
    start_rps: float
    end_rps: float

    @property
    def arrivals(self) -> float:
        """Expected number of arrivals."""
        return (self.end_s - self.start_s) * (self.start_rps + self.end_rps) / 2

    def time_of(self, arrivals: float) -> float:
        """When so many arrivals are expected; the inverse of the area under the line."""
        slope = (self.end_rps - self.start_rps) / (self.end_s - self.start_s)
        root = math.sqrt(max(0.0, self.start_rps**2 + 2 * slope * arrivals))
        # this form of the quadratic's root loses no digits when the slope is small or zero
        return self.start_s + 2 * arrivals / (self.start_rps + root) if arrivals else self.start_s

    def rate_at(self, at_s: float) -> float:
        share = (at_s - self.start_s) / (self.end_s - self.start_s)
        return self.start_rps + share * (self.end_rps - self.start_rps)


# Corners of the rate: (share of the duration, share of the peak). Two corners at one time: a jump.
_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {
    "ramp": ((0, 0), (0.5, 1), (1, 0)),
    "step": (
        *((0, 0.25), (0.25, 0.25), (0.25, 0.5), (0.5, 0.5)),
        *((0.5, 0.75), (0.75, 0.75), (0.75, 1), (1, 1)),
    ),
    "burst": (
        *((0, 0.1), (0.2, 0.1), (0.2, 1), (0.3, 1), (0.3, 0.1)),
        *((0.6, 0.1), (0.6, 1), (0.7, 1), (0.7, 0.1), (1, 0.1)),
    ),
    "soak": ((0, 1), (1, 1)),
}


def segments(profile: str, duration_s: float, peak_rps: float) -> tuple[Segment, ...]:
    """The rate of a profile.

    `ramp`: up to the peak and down again; `step`: a quarter, half, three quarters and all of the
    peak; `burst`: a tenth, twice broken by a tenth of the time at the peak; `soak`: the peak.
    """
    corners = _CORNERS[profile]
    return tuple(
        Segment(start * duration_s, end * duration_s, low * peak_rps, high * peak_rps)
        for (start, low), (end, high) in pairwise(corners)
        if end > start
    )


def arrival_times(parts: Sequence[Segment], seed: int) -> list[float]:
    """Seconds after the start of each arrival, ascending: a Poisson process of the parts' rate."""
    rng = random.Random(f"arrivals {seed}")
    times: list[float] = []
    due = rng.expovariate(1.0)  # in expected arrivals: there the process has rate 1
    for part in parts:
        while due < part.arrivals:
            times.append(part.time_of(due))
            due += rng.expovariate(1.0)
        due -= part.arrivals
    return times
