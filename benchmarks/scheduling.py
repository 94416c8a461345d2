"""What the schedule is worth: `python -m benchmarks.scheduling [--quick] [--no-engine]`.

Data flow: workloads -> static batches (what `@serve.batch` around `FluxPipeline` gives, at the one
of four batch sizes that is best for its mean) and the engine's planner under three policies, on a
simulated H100; then on the real engine with flux-mini -> table, plot, JSON. `mean_ratio` and
`p99_slowdown_ratio` are FCFS static batching / ours, simulated, load 0.85, 4 and 28 steps. One
image at a time would just sustain a load of 1. Slowdown: latency / time of the job alone.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks import _report
from benchmarks.scheduling_plot import plot
from benchmarks.scheduling_sim import Job, Outcome, flood, planned, static_batches, workload
from serve_app.engine.schedule import PolicyName

MIXES: dict[str, tuple[tuple[int, int], ...]] = {
    "4 and 28 steps, 512 and 1024": ((512, 4), (512, 28), (1024, 4), (1024, 28)),
    "4 steps, 512 and 1024": ((512, 4), (1024, 4)),
    "4 steps, 256, 512 and 1024": ((256, 4), (512, 4), (1024, 4)),
}
TARGET_MIX, TARGET_LOAD = next(iter(MIXES)), 0.85
LOADS = (0.5, 0.8, 0.85, 0.95)
POLICIES: tuple[PolicyName, ...] = ("fcfs", "srpt", "fair")
BATCH_SIZES = (1, 2, 4, 8)
ACCOUNTS = 8
FLOOD_LOAD = 0.3  # of the quiet accounts; the flood brings as much again

Figures = dict[str, str | float | int]


def main() -> None:
    """Simulate, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs: under 60 s")
    parser.add_argument("--no-engine", action="store_true", help="leave the real engine out")
    options = parser.parse_args()
    seeds, jobs = (1, 1000) if options.quick else (2, 3000)
    target_seeds, target_jobs = (2, 5000) if options.quick else (3, 8000)
    rows: list[Figures] = []
    notes = [
        f"simulated, step times of an H100, {ACCOUNTS} accounts: {seeds} x {jobs} jobs; "
        f"{target_seeds} x {target_jobs} for {TARGET_MIX} at {TARGET_LOAD}"
    ]
    for mix, kinds in MIXES.items():
        for load in LOADS:
            count, length = seeds, jobs
            if (mix, load) == (TARGET_MIX, TARGET_LOAD):
                count, length = target_seeds, target_jobs
            many = [workload(kinds, load, length, ACCOUNTS, seed) for seed in range(count)]
            rows += _simulate(mix, load, many, notes)
    many = [flood(FLOOD_LOAD, jobs // 2, seed) for seed in range(seeds)]
    rows += _simulate("quiet accounts beside a flood", FLOOD_LOAD, many, notes, _quiet)
    target = {
        str(row["policy"]): row
        for row in rows
        if row["mix"] == TARGET_MIX and row["load"] == TARGET_LOAD
    }
    summary = _ratios(target["static"], target["fair"], "")
    if not options.no_engine:
        real = _real_engine(options.quick, notes)
        rows += real.values()
        summary = {**_ratios(real["static"], real["fair"], "engine_"), **summary}
    plot(rows, TARGET_MIX)
    _report.finish("scheduling", rows, summary, notes=notes)


def _simulate(
    mix: str,
    load: float,
    many: Sequence[Sequence[Job]],
    notes: list[str],
    whose: Callable[[Job], bool] = lambda _: True,
) -> list[Figures]:
    """One row per policy."""
    static = {most: [static_batches(jobs, most) for jobs in many] for most in BATCH_SIZES}
    best = min(static, key=lambda most: _mean(static[most], whose))
    means = ", ".join(f"{most}: {_mean(static[most], whose):.3g} s" for most in BATCH_SIZES)
    notes.append(f"{mix}, load {load}: best static batches up to {best} (mean of {means})")
    found = {"static": static[best]}
    for policy in POLICIES:
        found[policy] = [planned(jobs, policy) for jobs in many]
    if mix == TARGET_MIX:
        ratios = np.concatenate([one.latency_s / one.expected_s for one in found["fair"]])
        ratios = ratios[np.isfinite(ratios)]
        low, middle, high = np.percentile(ratios, (10, 50, 90))
        notes.append(
            f"{mix}, load {load}: latency / estimate on arrival: "
            f"median {middle:.2f}, p10 {low:.2f}, p90 {high:.2f}"
        )
    return [_figures("simulated", mix, load, name, runs, whose) for name, runs in found.items()]


def _quiet(job: Job) -> bool:
    return job.account != "flood"


def _mean(runs: Sequence[Outcome], whose: Callable[[Job], bool]) -> float:
    return float(np.mean(np.concatenate([run.latency_s[_mask(run, whose)] for run in runs])))


def _mask(run: Outcome, whose: Callable[[Job], bool]) -> np.ndarray:
    return np.array([whose(job) for job in run.jobs])


def _figures(
    where: str,
    mix: str,
    load: float,
    policy: str,
    runs: Sequence[Outcome],
    whose: Callable[[Job], bool] = lambda _: True,
) -> Figures:
    latency = np.concatenate([run.latency_s[_mask(run, whose)] for run in runs])
    slowdown = np.concatenate([run.slowdown[_mask(run, whose)] for run in runs])
    return {
        "where": where,
        "mix": mix,
        "load": load,
        "policy": policy,
        "mean s": float(latency.mean()),
        "p95 s": float(np.percentile(latency, 95)),
        "p99 s": float(np.percentile(latency, 99)),
        "mean slowdown": float(slowdown.mean()),
        "p99 slowdown": float(np.percentile(slowdown, 99)),
    }


def _ratios(theirs: Figures, ours: Figures, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}mean_ratio": float(theirs["mean s"]) / float(ours["mean s"]),
        f"{prefix}p99_slowdown_ratio": float(theirs["p99 slowdown"]) / float(ours["p99 slowdown"]),
    }


def _real_engine(quick: bool, notes: list[str]) -> dict[str, Figures]:
    """flux-mini on this machine: static batches, and the engine under each policy."""
    from benchmarks import scheduling_engine  # torch and diffusers load here

    sizes, policies = ((4,), ("fair",)) if quick else ((1, 4), POLICIES)
    rounds, seconds = (1, 6.0) if quick else (3, 10.0)
    runs = scheduling_engine.measure(TARGET_LOAD, seconds, rounds, sizes, policies)
    static = min((name for name in runs if name.startswith("static")),
                 key=lambda name: float(runs[name].latency_s.mean()))  # fmt: skip
    count = len(runs[static].jobs)
    notes.append(f"engine: flux-mini, {count} jobs per policy, {static} is the best static one")
    mix = "4 and 28 steps, 128 and 256"
    named = {"static": runs[static], **{policy: runs[policy] for policy in policies}}
    return {
        name: _figures("flux-mini", mix, TARGET_LOAD, name, [run]) for name, run in named.items()
    }


if __name__ == "__main__":
    main()
