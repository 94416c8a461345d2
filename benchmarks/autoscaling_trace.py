"""The traffic of `benchmarks.autoscaling`: thumbnails and large images, ramps and bursts.

Data flow: seed -> phases -> Poisson arrivals, and bursts at once. Rates are in images a second; on
a simulated H200 a thumbnail takes 0.1 device seconds and a large image 3.5.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.autoscaling_sim import Arrival

THUMBNAIL = (256, 4)
LARGE = (1024, 28)


@dataclass(frozen=True)
class Phase:
    """Rates that move from one end to the other in a straight line."""

    name: str
    seconds: float
    thumbnails: tuple[float, float]
    large: tuple[float, float]
    burst: tuple[int, int] = (0, 0)
    """Thumbnails and large images that come at once, at its start."""


AT_ONCE = ("large images ramp down",)
"""Phases that no calm comes before."""
CALM = ((0.3, 0.3), (0.1, 0.1))
CALM_S = 900.0
EVENTS = (
    Phase("thumbnails surge", 180, (15.0, 15.0), (0.1, 0.1)),
    Phase("large images ramp up", 180, (0.3, 0.3), (0.1, 1.5)),
    Phase("large images ramp down", 180, (0.3, 0.3), (1.5, 0.1)),
    Phase("24 large images at once", 60, *CALM, burst=(0, 24)),
    Phase("200 thumbnails at once", 60, *CALM, burst=(200, 0)),
    Phase("both at once", 60, *CALM, burst=(100, 24)),
    Phase("both surge", 120, (5.0, 5.0), (0.8, 0.8)),
)
QUIET = Phase("next to nothing", CALM_S, (0.1, 0.1), (0.02, 0.02))


def phases() -> list[Phase]:
    """All of the trace: a calm before each event, and hardly anything at its end."""
    calm = Phase("calm", CALM_S, *CALM)
    pairs = [[event] if event.name in AT_ONCE else [calm, event] for event in EVENTS]
    return [*(phase for pair in pairs for phase in pair), QUIET]


def mixed(seed: int, stretch: float = 1.0) -> list[Arrival]:
    """The whole trace; `stretch` shortens or lengthens its phases."""
    random = np.random.default_rng(seed)
    arrivals: list[Arrival] = []
    begin_s = 0.0
    for phase in phases():
        seconds = phase.seconds * stretch
        kinds = ((THUMBNAIL, phase.thumbnails), (LARGE, phase.large))
        for (kind, rates), count in zip(kinds, phase.burst, strict=True):
            arrivals += [Arrival(begin_s, *kind)] * count
            times = poisson(random, seconds, rates)
            arrivals += [Arrival(begin_s + float(time), *kind) for time in times]
        begin_s += seconds
    return sorted(arrivals, key=lambda one: one.at_s)


def poisson(random: np.random.Generator, seconds: float, rates: tuple[float, float]) -> np.ndarray:
    """Arrival times of a rate that moves in a straight line, by thinning."""
    highest = max(rates)
    times = np.sort(random.uniform(0, seconds, random.poisson(highest * seconds)))
    wanted = np.interp(times, (0, seconds), rates)
    return times[random.uniform(0, highest, len(times)) < wanted]
