"""What a start costs, and an idle server: `python -m benchmarks.start [--quick] [--against DIR]`.

Data flow: configs/local.yaml served on a free port in a folder of its own -> poll `/ready` -> CPU
time of the process tree -> idle for a while -> CPU time, memory and number of processes -> stop.
With `--against`, another checkout is served in turn with the same packages; medians and ratios
(this checkout / that one: below 1 is lighter). Must not import the product, which it starts.
"""

import argparse
import contextlib
import http.client
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import _report

ROOT = Path(__file__).parent.parent
IDLE_S, IDLE_QUICK_S = 60.0, 10.0
ROUNDS, ROUNDS_QUICK = 3, 1
SETTLE_S = 3.0
"""From ready until the idle time is measured: what a start leaves to do."""
START_S, STOP_S = 300.0, 120.0
POLL_S = 0.1
PORTS = (20_000, 30_000)
"""Not those that the kernel gives to clients, or Ray to its processes."""
FIGURES = ("ready s", "CPU to ready s", "idle CPU %", "memory MB", "processes")
Figures = dict[str, float]


class Tree:
    """A process and all that it started, also those that have ended or lost their parent."""

    def __init__(self, root: psutil.Process) -> None:
        self._seen = {root.pid: root}
        self._parents: dict[int, int] = {root.pid: 0}
        self._own_s: dict[int, float] = {}
        self._children_s: dict[int, float] = {}
        self._root = root

    def look(self) -> None:
        """Find new processes, and read the clocks of those that live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._root.children(recursive=True):
                self._seen.setdefault(process.pid, process)
        for process in self._seen.values():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if not process.is_running():
                    continue
                self._parents.setdefault(process.pid, process.ppid())
                times = process.cpu_times()
                self._own_s[process.pid] = times.user + times.system
                self._children_s[process.pid] = times.children_user + times.children_system

    def cpu_s(self) -> float:
        """CPU seconds of all so far: also of those that ended between two looks, if waited for."""
        alive = {process.pid for process in self.alive()}
        counted = dict.fromkeys(self._own_s, 0.0)  # of ended children, by parent
        for pid, own_s in self._own_s.items():
            if pid not in alive and self._parents[pid] in counted:
                counted[self._parents[pid]] += own_s + self._children_s[pid]
        missed = (max(0.0, self._children_s[pid] - counted[pid]) for pid in self._own_s)
        return sum(self._own_s.values()) + sum(missed)

    def alive(self) -> list[psutil.Process]:
        """Those that have not ended."""
        return [process for process in self._seen.values() if _lives(process)]

    def memory_mb(self) -> float:
        """Shared pages are counted once, where the system tells (PSS)."""
        total = 0
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.rss)
        return total / 1e6


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one start (of each), 10 s idle")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    parser.add_argument(
        "--rounds", type=int, help=f"starts of each ({ROUNDS}, quick {ROUNDS_QUICK})"
    )
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="measured time after a start")
    options = parser.parse_args()
    rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
    idle_s = options.idle or (IDLE_QUICK_S if options.quick else IDLE_S)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    sides = {"this": ROOT} | ({"against": options.against.resolve()} if options.against else {})
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, checkout in sides.items():
            found[side].append(_serve(checkout, idle_s))
            print(f"round {number + 1}, {side}: {_line(found[side][-1])}", flush=True)
    medians = {side: _medians(figures) for side, figures in found.items()}
    notes = [
        f"{rounds} start(s) of each, in turn; idle for {idle_s:g} s; medians",
        "Ray's workers not nice, for both, so that other work on the machine disturbs less",
    ]
    rows = [{"checkout": side, **figures} for side, figures in medians.items()]
    _report.finish("start", rows, _summary(medians), packages=("ray", "torch"), notes=notes)


def _medians(rounds: Sequence[Figures]) -> Figures:
    return {name: statistics.median(figures[name] for figures in rounds) for name in FIGURES}


def _summary(medians: dict[str, Figures]) -> dict[str, float]:
    this, against = medians["this"], medians.get("against")
    if against is not None:
        keys = ("start_ratio", "cpu_to_ready_ratio", "idle_ratio")
        return {key: this[name] / against[name] for key, name in zip(keys, FIGURES, strict=False)}
    keys = ("ready_s", "cpu_to_ready_s", "idle_cpu_percent", "memory_mb")
    return {key: this[name] for key, name in zip(keys, FIGURES, strict=False)}


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in figures.items())


def _serve(checkout: Path, idle_s: float) -> Figures:
    """Start, measure, stop."""
    with (
        tempfile.TemporaryDirectory(prefix="st-", ignore_cleanup_errors=True) as name,
        _started(checkout, Path(name)) as (tree, url, began),
    ):
        _wait_until_ready(tree, url, Path(name) / "serve.log")
        ready_s = time.monotonic() - began
        to_ready_s = tree.cpu_s()
        _watch(tree, SETTLE_S)
        before_s, began = tree.cpu_s(), time.monotonic()
        _watch(tree, idle_s)
        idle = 100 * (tree.cpu_s() - before_s) / (time.monotonic() - began)
        values = (ready_s, to_ready_s, idle, tree.memory_mb(), float(len(tree.alive())))
        return dict(zip(FIGURES, values, strict=True))


@contextlib.contextmanager
def _started(checkout: Path, folder: Path) -> Iterator[tuple[Tree, str, float]]:
    url = _configure(checkout, folder / "config.yaml")
    environment = {
        "RAY_worker_niceness": "0",  # Ray's 15 measures what else runs on this machine
        **os.environ,
        "PYTHONPATH": str(checkout),
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(folder),
    }
    with (folder / "serve.log").open("wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.cli", "serve", "config.yaml"],
            cwd=folder,  # the configuration's relative paths
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through us
        )
    tree = Tree(psutil.Process(process.pid))
    try:
        yield tree, url, began
    finally:
        _stop(process, tree)


def _configure(checkout: Path, path: Path) -> str:
    """Write its configs/local.yaml with a free port; returns the URL."""
    text = (checkout / "configs" / "local.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    document["http_options"]["port"] = port
    document["applications"][0]["args"]["public_url"] = url
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return url


def _free_port() -> int:
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait_until_ready(tree: Tree, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and tree.alive():
        tree.look()
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                tree.look()
                return
        except (OSError, http.client.HTTPException):  # also an HTTP status that is an error
            time.sleep(POLL_S)
    raise SystemExit(f"the server did not start:\n{log.read_text('utf-8', 'replace')[-4000:]}")


def _watch(tree: Tree, seconds: float) -> None:
    """Look now and then, so that nothing that ends meanwhile is missed."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        tree.look()


def _stop(process: "subprocess.Popen[bytes]", tree: Tree) -> None:
    """By process id, and not broken off by another Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    tree.look()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    _, left = psutil.wait_procs(tree.alive(), timeout=5)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    main()
