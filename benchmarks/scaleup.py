"""How soon Serve answers a burst with replicas: `python -m benchmarks.scaleup [--quick]`.

Data flow: configs/loadtest.yaml served for real (simulated GPUs, whose load takes 5 s) -> a burst
of large images on one idle replica -> `/admin/v1/status` -> seconds until the target rose, until it
stood at its end, and until the first new and all replicas ran. The counts are up to 1 s old. The
burst starts when its first request is sent.
"""

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks.loadtest_serve import Server

REPLICAS = {True: 4, False: 8}  # on two cores eight processes take long to start
IMAGES = 64
BODY = {"prompt": "a burst", "size": "1024x1024", "num_inference_steps": 28}
"""3.5 device seconds each: 224 in all."""
SEND_TIMEOUT_S = 300
DEADLINE_S = 180
POLL_S = 0.1


def main() -> None:
    """Serve, burst, watch, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="up to 4 replicas instead of 8")
    most = REPLICAS[parser.parse_args().quick]

    def change(application: Any) -> None:
        application["deployments"][0]["autoscaling_config"]["max_replicas"] = most

    with (
        tempfile.TemporaryDirectory(prefix="su-", ignore_cleanup_errors=True) as name,
        Server(Path(name) / "s", change) as server,
    ):
        seen = _burst(server, most)
    rows = [{"event": event, "after the burst s": seconds} for event, seconds in seen.items()]
    summary = {f"{event.replace(' ', '_')}_s": seconds for event, seconds in seen.items()}
    notes = [f"{IMAGES} images of 3.5 device seconds at once, 1 to {most} replicas that load 5 s"]
    _report.finish("scaleup", rows, summary, notes=notes)


def _burst(server: Server, most: int) -> dict[str, float]:
    senders = [threading.Thread(target=_send, args=(server,), daemon=True) for _ in range(IMAGES)]
    started = time.monotonic()
    for sender in senders:
        sender.start()
    seen: dict[str, float] = {}
    while len(seen) < 4 and time.monotonic() - started < DEADLINE_S:
        replicas = _replicas(server)
        now_s = time.monotonic() - started
        for event, happened in {
            "target raised": replicas["target"] > 1,
            "target at most": replicas["target"] == most,
            "first new running": replicas["running"] > 1,
            "all running": replicas["running"] == most,
        }.items():
            if happened:
                seen.setdefault(event, round(now_s, 1))
        time.sleep(POLL_S)
    if len(seen) < 4:
        raise SystemExit(f"not all replicas came within {DEADLINE_S} s: {seen}")
    return seen


def _replicas(server: Server) -> dict[str, int]:
    request = urllib.request.Request(
        f"{server.url}/admin/v1/status", headers={"authorization": f"Bearer {server.key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
        found: dict[str, int] = json.load(reply)["models"][0]["replicas"]
        return found


def _send(server: Server) -> None:
    """The picture is not what is measured; the server is stopped under the last ones."""
    request = urllib.request.Request(
        f"{server.url}/v1/images/generations",
        data=json.dumps(BODY).encode(),
        headers={
            "authorization": f"Bearer {server.key}",
            "content-type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=SEND_TIMEOUT_S):
            pass
    except OSError:
        return


if __name__ == "__main__":
    main()
