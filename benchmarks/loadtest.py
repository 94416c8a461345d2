"""Load on simulated GPUs: `python -m benchmarks.loadtest [--quick]`, or `--ramp` for a report.

Data flow: configs/loadtest.yaml served with 1, then with 4 fixed replicas -> `flux-serve loadtest`
with more than they can do -> rate at which images come in the second half, when queues are full ->
`scaling_ratio` = rate of 4 / (4 x rate of 1). `--ramp` serves the file as it is, with its
autoscaling, and leaves a report of a ramp up and down in data/loadtest/.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks.loadtest_serve import ROOT, Server, replicas_seen

REPLICAS = (1, 4)
STEPS = 8
"""Eight steps of 1024x1024 take a simulated H200 about a second: four of them finish four images a
second, which leaves processors to those that play gateway, store and client."""
OVERLOAD_RPS_PER_REPLICA = 1.5
SOAK_S, SOAK_QUICK_S = 40, 8
RAMP = ("--profile", "ramp", "--duration", "180s", "--peak-rps", "6")
RAY_FOLDER = "fs-"  # Ray's unix sockets need a short path
PACKAGES = ("ray", "locust", "gevent", "urllib3")


def fixed(replicas: int) -> Callable[[Any], None]:
    """A change of the application: no autoscaling."""

    def change(application: Any) -> None:
        (entry,) = application["deployments"]
        entry.pop("autoscaling_config", None)
        entry["num_replicas"] = replicas

    return change


def measure(folder: Path, replicas: int, soak_s: int) -> _report.Row:
    """Throughput of so many replicas with full queues."""
    mix = folder / "mix.yaml"
    mix.write_text(f"requests: [{{size: 1024x1024, steps: {STEPS}}}]\n", encoding="utf-8")
    out = folder / f"out-{replicas}"
    rate = OVERLOAD_RPS_PER_REPLICA * replicas
    options = ("--profile", "soak", "--duration", f"{soak_s}s", "--peak-rps", str(rate))
    with Server(folder / f"s{replicas}", fixed(replicas)) as server:
        server.wait_for_replicas(replicas)
        status, results = server.load(out, *options, "--mix", str(mix), "--timeout", "280s")
    if status != 0:
        raise SystemExit(f"the load test failed: {results['ledger']['explanation']}")
    with (out / "requests.csv").open(encoding="utf-8") as file:
        done = [float(row["done_s"]) for row in csv.DictReader(file) if row["code"] == "200"]
    full = sorted(at_s for at_s in done if soak_s / 2 <= at_s < soak_s)
    if len(full) < 2:
        raise SystemExit(f"{replicas} replicas finished too little: use a longer test")
    return {
        "replicas": replicas,
        "images_per_s": (len(full) - 1) / (full[-1] - full[0]),
        "offered_per_s": rate,
        "delivered": results["figures"]["delivered"],
        "requests": results["figures"]["requests"],
        "ledger": results["ledger"]["standing"],
        "sent_late_p99_ms": round(results["figures"]["send_lag_p99_s"] * 1000),
    }


def ramp() -> int:
    """Serve the file as it is, ramp up and down, report; the load test's exit status."""
    name = time.strftime("%Y%m%d-%H%M%S")
    out = ROOT / "data" / "loadtest" / f"ramp-{name}"
    mix = ROOT / "configs" / "loadmixes" / "mixed.yaml"
    with (
        tempfile.TemporaryDirectory(prefix=RAY_FOLDER, ignore_cleanup_errors=True) as folder,
        Server(Path(folder) / "s") as server,
    ):
        status, results = server.load(out, *RAMP, "--mix", str(mix), "--gpu-hour-price", "3")
    with (out / "replicas.csv").open(encoding="utf-8") as file:
        first, most, last = replicas_seen(list(csv.DictReader(file)))
    print(f"replicas: {first} at the start, {most} at most, {last} at the end")
    figures = results["figures"]
    print(f"p95_s={figures['latency']['p95']:.3g} images_per_s={figures['images_per_s']:.3g}")
    return status


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter loads")
    parser.add_argument("--ramp", action="store_true", help="a report of a ramp; no figures")
    options = parser.parse_args()
    if options.ramp:
        raise SystemExit(ramp())
    soak_s = SOAK_QUICK_S if options.quick else SOAK_S
    with tempfile.TemporaryDirectory(prefix=RAY_FOLDER, ignore_cleanup_errors=True) as folder:
        rows = [measure(Path(folder), replicas, soak_s) for replicas in REPLICAS]
    one, four = (float(row["images_per_s"] or 0) for row in rows)
    summary = {"scaling_ratio": four / (REPLICAS[1] * one), "images_per_s_4": four}
    notes = [
        f"rate of the images that came in the second half of {soak_s} s at "
        f"{OVERLOAD_RPS_PER_REPLICA} requests a second and replica, 1024x1024 at {STEPS} steps",
        "GPUs are simulated; the load comes from the same machine",
    ]
    _report.finish("loadtest", rows, summary, packages=PACKAGES, notes=notes)


if __name__ == "__main__":
    main()
