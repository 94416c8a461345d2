"""What a person sees while a load test runs: a table on a terminal, plain lines elsewhere.

Data flow: `conductor.Progress` -> `Display.show`, called now and then -> the terminal.
"""

import sys
import time
from collections import Counter
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from serve_app.loadtest.conductor import Progress
from serve_app.loadtest.figures import latency_figures

RECENT_S = 10.0
"""Rates and latencies shown are of the replies of so long."""
LINE_EVERY_S = 5.0
"""Plain lines go into logs: not too many of them."""


def seconds(value: float | None) -> str:
    """A latency for people."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def facts(progress: Progress) -> list[tuple[str, str]]:
    """Name and value of each line of the display."""
    now_s, outcomes = progress.now_s, list(progress.outcomes)
    recent = [outcome for outcome in outcomes if outcome.done_s > now_s - RECENT_S]
    span_s = max(1.0, min(RECENT_S, now_s))
    latency = latency_figures(recent)
    codes = Counter(outcome.code for outcome in outcomes if not outcome.delivered)
    found = [
        ("time", f"{max(0.0, now_s):.0f} of {progress.plan.duration_s:.0f} s, {progress.note}"),
        ("replies", f"{len(outcomes):,} of {progress.planned:,}, {len(recent) / span_s:.1f}/s"),
        ("latency", " ".join(f"{name} {seconds(latency[name])}" for name in ("p50", "p95", "p99"))),
        ("errors", ", ".join(f"{code} {n:,}" for code, n in codes.most_common()) or "none"),
    ]
    if progress.samples:
        for model in progress.samples[-1].models:
            target = "-" if model.target is None else model.target
            found.append(
                (
                    model.id,
                    f"replicas {model.running} of {target} (+{model.starting} starting, "
                    f"{model.stopping} stopping), {model.open_holds:,} jobs, "
                    f"{model.held_units:,} CU queued or running",
                )
            )
    return found


class Display:
    """Use as a context; `show` may be called as often as one likes."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._live: Live | None = None
        self._next_line = 0.0
        if self._out.isatty():
            self._live = Live(console=Console(file=self._out), refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.update(table(progress))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY_S
            line = "; ".join(f"{name}: {value}" for name, value in facts(progress))
            print(line, file=self._out, flush=True)


def table(progress: Progress) -> Table:
    grid = Table(title=f"load test {progress.plan.profile} -> {progress.plan.target}")
    grid.add_column("what")
    grid.add_column("now")
    for name, value in facts(progress):
        grid.add_row(name, value)
    return grid
