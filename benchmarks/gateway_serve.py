"""One Ray cluster with the applications of `benchmarks.gateway`, in a process of its own.

Data flow: `Cluster` starts `python -m benchmarks.gateway_serve FOLDER PORT`, which deploys, prints
`ready` and serves until its stdin ends. Serve reads its mode from the environment when it is
imported, so each mode needs a process and a cluster of its own.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
KEY = "sk-gateway-benchmark"
STOP_S = 60
HOST = "127.0.0.1"
CALLBACK = "serve_app.deployments.proxy.middlewares"
MODEL = {"id": "flux-mini"}
APPLICATIONS = ("bare", "loop", "base64", "store")


def haproxy_environment(folder: Path) -> dict[str, str]:
    """What puts Serve into HAProxy mode, with its files and ports away from any other's."""
    state = folder / "haproxy"
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",  # else shutdown takes 30 s
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(state / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(state / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(state),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(state / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(state / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


class Cluster:
    """A running cluster; `url` of each application by name."""

    def __init__(self, folder: Path, mode: Mapping[str, str]) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = {
            name: f"http://{HOST}:{self.port}/{name}"
            for name in ("bare", "loop", "base64", "store")
        }
        folder.mkdir()
        environment = {**os.environ, **mode, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gateway_serve", str(folder), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=environment,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Block until everything is deployed."""
        assert self._process.stdout is not None
        if "ready" not in (line.strip() for line in self._process.stdout):
            text = (self.folder / "log").read_text()[-4000:]
            raise SystemExit(f"the cluster did not start:\n{text}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def account(self, name: str) -> dict[str, int]:
        """Balance of the benchmark's account in one application."""
        headers = {"authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{self.url[name]}/v1/account", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, int] = json.load(answer)
            return found


def _args(folder: Path, name: str, store: object) -> dict[str, object]:
    return {
        "models": [MODEL],
        "ledger": {
            "url": f"sqlite+aiosqlite:///{folder}/{name}.db",
            "migrate_on_start": True,
        },
        "store": store,
        # More than a quick machine uses up: else the last rounds are refused, and end the run.
        "development": {"key": KEY, "granted_units": 10**15},
    }


def main() -> None:
    """Serve until stdin ends."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    import ray
    from ray import serve

    from benchmarks import gateway_apps

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=str(folder / "r"),
        log_to_driver=False,
    )
    callback = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": HOST, "port": port},
        controller_options={"runtime_env": {"env_vars": callback}},
    )
    store = {"url": f"file://{folder}/images", "signing_key_file": str(folder / "key")}
    quiet = {"enable_access_log": False}  # as in our configs: the gateway writes its own
    targets = [
        serve.RunTarget(app, name=name, route_prefix=f"/{name}", logging_config=quiet)
        for name, app in {
            "bare": gateway_apps.bare({"num_cpus": 0}),
            "loop": gateway_apps.bare(gateway_apps.ACTOR_OPTIONS),
            "base64": gateway_apps.ours(_args(folder, "base64", None)),
            "store": gateway_apps.ours(_args(folder, "store", store)),
        }.items()
    ]
    serve.run_many(targets)  # all at once: one after the other takes as many starts
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
