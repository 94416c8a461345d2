"""Objectives: `p95=2s,errors=0.1%` parsed strictly, and judged against what was measured.

Data flow: command line -> `parse_slos` -> `Objective`s -> `judge` by the test's figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.errors import ConfigError
from serve_app.loadtest.quantities import parse_duration, parse_share

LATENCIES = ("p50", "p90", "p95", "p99", "max", "mean")
"""Latency figures that an objective may name; in seconds from the scheduled time."""
ERRORS = "errors"
"""Share of the scheduled requests that brought no images."""


@dataclass(frozen=True)
class Objective:
    """`name` may be at most `limit`: seconds, or a share for `errors`. `text` is as written."""

    name: str
    limit: float
    text: str


@dataclass(frozen=True)
class Verdict:
    """An objective and what was measured; None where nothing could be: that is a miss."""

    objective: Objective
    measured: float | None

    @property
    def met(self) -> bool:
        return self.measured is not None and self.measured <= self.objective.limit


def parse_slos(text: str) -> tuple[Objective, ...]:
    """Objectives of a comma-separated list; `ConfigError` names the one at fault."""
    found: dict[str, Objective] = {}
    for part in text.split(","):
        name, equals, limit = part.strip().partition("=")
        if not equals or name not in (*LATENCIES, ERRORS):
            known = ", ".join((*LATENCIES, ERRORS))
            raise ConfigError(f"--slo: {part!r} is not NAME=LIMIT with NAME one of {known}")
        if name in found:
            raise ConfigError(f"--slo: {name} is given twice")
        parse = parse_share if name == ERRORS else parse_duration
        found[name] = Objective(name, parse(limit, f"--slo {name}"), f"{name}={limit}")
    return tuple(found.values())


def judge(
    objectives: tuple[Objective, ...], measured: Mapping[str, float | None]
) -> tuple[Verdict, ...]:
    """One verdict for each objective, in order."""
    return tuple(Verdict(objective, measured[objective.name]) for objective in objectives)
