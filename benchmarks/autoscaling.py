"""What the autoscaling policy is worth: `python -m benchmarks.autoscaling [--quick]`.

Data flow: traces of thumbnails and large images -> a simulated fleet (`autoscaling_sim.py`) under
Serve's default policy as it comes, under the same with every setting of a grid, and under ours ->
table, JSON. `p95_ratio` and `gpu_seconds_ratio` are Serve's default / ours. `tuned_*` compare with
the best p95 of the grid among those that cost no more than ours: found with the traces at hand,
which nobody has who sets a server up. `dense` is the same trace in a third of the time.
`--slow-start` instead compares settings of ours where replicas are pods that take long to start.
"""

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks import _report
from benchmarks.autoscaling_sim import Arrival, Fleet, Outcome, Policy, Simulation
from benchmarks.autoscaling_trace import LARGE, mixed
from serve_app.deployments.autoscaling import ComputeBacklogPolicy
from serve_app.engine.simulated_cost import SimulatedCost

REPLICAS = {"min_replicas": 1, "max_replicas": 8}
DEFAULT: dict[str, Any] = {"target_ongoing_requests": 2}
"""Serve's own: up after 30 s, down after 600 s, mean over 30 s, reports every 10 s."""
QUICK_REPORTS = {"metrics_interval_s": 0.5, "look_back_period_s": 2}
OURS = {"upscale_delay_s": 0, "downscale_delay_s": 0, "metrics_interval_s": 0.5,
        "look_back_period_s": 1}  # fmt: skip
GRID = {
    "target_ongoing_requests": (1, 2, 4),
    "upscale_delay_s": (0,),
    "downscale_delay_s": (10, 30, 60, 120),
}
START_S = (
    20.0  # from the decision until a replica serves: weights in the page cache, compiled blocks
)
MAX_ONGOING = (16, 8, 64)  # of configs with autoscaling, half of it, the graph's default
SLO_S = {True: 15.0, False: 2.0}  # of a large image, of a thumbnail
DENSE = 1 / 3  # of the trace's length: events come before Serve's default has scaled down
QUICK_GRID = ((1, 0, 30), (2, 0, 30), (2, 0, 60))
TRACES = 2
SLOW_START_S = 75.0  # a pod on a node that is there: its start, the weights, warm-up
SLOW_REPLICAS = {"min_replicas": 1, "max_replicas": 4}  # those of configs/cluster.yaml
SLOW_GRID: tuple[dict[str, float], ...] = (
    {"target_queue_s": 4, "hold_s": 300},
    {"target_queue_s": 4, "hold_s": 60},
    {"target_queue_s": 15, "hold_s": 300},
    {"target_queue_s": 30, "hold_s": 300},
    {"target_queue_s": 15, "hold_s": 300, "demand_window_s": 60},
)
"""The first is what configs/cluster.yaml sets."""

Figures = dict[str, str | float | int]


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one trace, a small grid: under 60 s")
    parser.add_argument("--slow-start", action="store_true", help="settings for slow starts only")
    options = parser.parse_args()
    if options.slow_start:
        _compare_slow_starts()
        return
    seeds = 1 if options.quick else TRACES
    traces = [mixed(seed) for seed in range(seeds)]
    most = MAX_ONGOING[0]
    default, ours = rows = _pair(traces, most, "")
    tuned = []
    for values in QUICK_GRID if options.quick else itertools.product(*GRID.values()):
        config = {**REPLICAS, **dict(zip(GRID, values, strict=True)), **QUICK_REPORTS}
        tuned.append(_run("tuned {}/{}/{} s".format(*values), traces, most, None, config))
    rows += tuned
    summary = _ratios(default, ours, "")
    cheap = [row for row in tuned if float(row["GPU s"]) <= float(ours["GPU s"])]
    if cheap:
        summary |= _ratios(min(cheap, key=lambda row: float(row["p95 s"])), ours, "tuned_")
    dense = _pair([mixed(seed, DENSE) for seed in range(seeds)], most, "dense: ")
    summary |= _ratios(*dense, "dense_")
    rows += dense
    if not options.quick:
        for other in MAX_ONGOING[1:]:
            rows += _pair(traces, other, "")
    _report.finish("autoscaling", rows, summary, notes=_notes(traces))


def _compare_slow_starts() -> None:
    traces = [mixed(0)]
    rows = [
        _run(
            ", ".join(f"{name} {value:g}" for name, value in kwargs.items()),
            traces,
            MAX_ONGOING[0],
            kwargs,
            {**SLOW_REPLICAS, **OURS},
            SLOW_START_S,
        )
        for kwargs in SLOW_GRID
    ]
    chosen, others = rows[0], rows[1:]
    summary = {
        "best_other_p95_ratio": min(float(row["p95 s"]) for row in others) / float(chosen["p95 s"])
    }
    note = f"replicas start in {SLOW_START_S:.0f} s, 1 to {SLOW_REPLICAS['max_replicas']} of them"
    _report.finish("autoscaling-slow-start", rows, summary, notes=[note])


def _pair(traces: Sequence[Sequence[Arrival]], most: int, prefix: str) -> list[Figures]:
    """Serve's default and ours."""
    default = {**REPLICAS, **DEFAULT}
    return [
        _run(f"{prefix}Serve's default", traces, most, None, default),
        _run(f"{prefix}compute backlog", traces, most, {}, {**REPLICAS, **OURS}),
    ]


def _run(
    name: str,
    traces: Sequence[Sequence[Arrival]],
    most: int,
    kwargs: dict[str, float] | None,
    config: dict[str, Any],
    start_s: float = START_S,
) -> Figures:
    """All traces under one policy; without `kwargs` it is Serve's own."""
    fleet = Fleet(SimulatedCost("h200", 256), start_s, most)
    outcomes: list[Outcome] = []
    for trace in traces:
        policy: Policy = replica_queue_length_autoscaling_policy
        if kwargs is not None:
            policy = ComputeBacklogPolicy(**kwargs)
        outcomes.append(Simulation(trace, fleet, policy, AutoscalingConfig(**config)).run())
    latency = np.concatenate([one.latency_s for one in outcomes])
    large = np.array([job.edge == LARGE[0] for trace in traces for job in trace])
    late = latency > np.where(large, SLO_S[True], SLO_S[False])
    return {
        "policy": name,
        "max ongoing": most,
        "GPU s": sum(one.gpu_seconds for one in outcomes) / len(outcomes),
        "mean s": float(latency.mean()),
        "p95 s": float(np.percentile(latency, 95)),
        "p99 s": float(np.percentile(latency, 99)),
        "thumbnail p95 s": float(np.percentile(latency[~large], 95)),
        "large p95 s": float(np.percentile(latency[large], 95)),
        "late %": float(100 * late.mean()),
    }


def _ratios(theirs: Figures, ours: Figures, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}p95_ratio": float(theirs["p95 s"]) / float(ours["p95 s"]),
        f"{prefix}gpu_seconds_ratio": float(theirs["GPU s"]) / float(ours["GPU s"]),
    }


def _notes(traces: Sequence[Sequence[Arrival]]) -> list[str]:
    jobs = sum(len(trace) for trace in traces)
    hours = sum(trace[-1].at_s for trace in traces) / 3600
    large = sum(job.edge == LARGE[0] for trace in traces for job in trace)
    return [
        f"simulated H200s, {len(traces)} traces, {hours:.1f} h, {jobs} images, {large} large; "
        f"a replica starts in {START_S:.0f} s; 1 to 8 replicas; Ray's policy code, simulated clock",
        f"late: above {SLO_S[False]:.0f} s for a thumbnail, {SLO_S[True]:.0f} s for a large image",
        "tuned A/B/C s: target_ongoing_requests, upscale_delay_s, downscale_delay_s",
    ]


if __name__ == "__main__":
    main()
