"""A shipped configuration served for one load test: own port, own folder, own cluster.

Data flow: config file + changes -> `Server` (`flux-serve serve` as a process) -> `flux-serve
loadtest` -> its `results.json`. Only what this starts is stopped, by its process id.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "loadtest.yaml"
FLUX_SERVE = [sys.executable, "-m", "serve_app.cli"]
START_S = 240
STOP_S = 120
POLL_S = 0.5


class Server:
    """Use as a context: serves while inside."""

    def __init__(self, folder: Path, change: Callable[[Any], None] = lambda application: None):
        document = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        port, application = free_port(), document["applications"][0]
        self.url = f"http://127.0.0.1:{port}"
        self.key: str = application["args"]["development"]["key"]
        document["http_options"]["port"] = port
        application["args"]["public_url"] = self.url
        change(application)
        folder.mkdir(parents=True)
        self._folder = folder
        (folder / "config.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    def __enter__(self) -> "Server":
        self._log = (self._folder / "serve.log").open("wb")
        self._process = subprocess.Popen(
            [*FLUX_SERVE, "serve", "config.yaml"],
            cwd=self._folder,  # the configuration's relative paths
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "RAY_ADDRESS": "local",
                "RAY_TMPDIR": str(self._folder / "r"),
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def load(self, out: Path, *options: str) -> tuple[int, Any]:
        """Run one load test; returns its exit status and results."""
        command = [*FLUX_SERVE, "loadtest", "--target", self.url, "--out", str(out), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLUX_SERVE_API_KEY": self.key}
        status = subprocess.run(command, env=environment).returncode
        results = out / "results.json"
        if not results.exists():
            raise SystemExit(f"the load test did not run: exit status {status}")
        return status, json.loads(results.read_text(encoding="utf-8"))

    def wait_for_replicas(self, count: int) -> None:
        """Until so many replicas of the first model run."""
        deadline = time.monotonic() + START_S
        request = urllib.request.Request(
            f"{self.url}/admin/v1/status", headers={"authorization": f"Bearer {self.key}"}
        )
        while time.monotonic() < deadline:
            with urllib.request.urlopen(request, timeout=30) as reply:
                if json.load(reply)["models"][0]["replicas"]["running"] == count:
                    return
            time.sleep(POLL_S)
        raise SystemExit(f"{count} replicas did not start: see {self._folder}/serve.log")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                    return
            except OSError:
                time.sleep(POLL_S)
        raise SystemExit(f"the server did not start: see {self._folder}/serve.log")

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()


def replicas_seen(rows: Sequence[dict[str, str]]) -> tuple[int, int, int]:
    """Running replicas at the start, at most, and at the end of `replicas.csv`."""
    running = [int(row["running"]) for row in rows]
    return running[0], max(running), running[-1]
