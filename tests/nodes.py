"""Ray nodes on one machine, without a dashboard, in a process of their own.

Data flow: `Nodes` (test process) -> one JSON order a line on stdin -> this file as a process -> one
JSON answer a line on stdout; the end of stdin ends the cluster. Not in the test process: Ray adds
nodes from a main thread only, and a cluster must not depend on what tests do to theirs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[1]
ANSWER = "ANSWER "
NOTHING: Mapping[str, str] = MappingProxyType({})
STORE_BYTES = 80_000_000
"""Nearly the least that Ray accepts: images go past it."""
SYSTEM = {
    # Ray gives a silent node 10 s and more by default. A slow one answers within 10 s.
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
    "metrics_report_interval_ms": 1000,  # 10 s is long for a test
}
ENVIRONMENT = {
    # Ray's workers are nice by default: beside tests that compute, replicas would stand still.
    "RAY_worker_niceness": "0",
    # Each node would start a worker for each of its CPUs, which these tests never use.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # How often each node looks through all its processes for a dashboard that nobody opens.
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    # Serve gives up a proxy that is not ready after three times 5 s, and starts another: on a busy
    # machine, where one takes longer to start, there is none for minutes, or for ever.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # Serve looks after its proxy every 10 s otherwise: each death would cost as much.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds; 5 s is long for a test
}


class Nodes:
    """A cluster, seen from the test process. `head` holds options of `ray start`."""

    def __init__(
        self, folder: Path, *, environment: Mapping[str, str] = NOTHING, **head: Any
    ) -> None:
        path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
        more = {"RAY_TMPDIR": str(folder), "PYTHONPATH": path}
        self.log = folder / "nodes.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nodes", json.dumps(head)],
                env={**os.environ, **ENVIRONMENT, **more, **environment},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the tests, which then end it
            )
        self.pid = self._process.pid
        self.names: dict[str, str] = {}
        """By the id that Ray gave a node."""
        self.address: str = self._answer("start")

    def add(self, name: str, **options: Any) -> None:
        """Start a node; returns when it has joined."""
        self.names[self._order("add", name=name, options=options)] = name

    def kill(self, name: str) -> None:
        """End a node as when its power fails."""
        self._order("kill", name=name)

    def stop(self) -> None:
        self._process.communicate()

    def _order(self, order: str, **options: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": order, **options}) + "\n")
        self._process.stdin.flush()
        return self._answer(order)

    def _answer(self, order: str) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise AssertionError(f"{order}: {self.log.read_text()[-4000:]}")


def main(head: dict[str, Any]) -> None:
    """Start the head, then follow orders until there are no more."""
    from ray.cluster_utils import Cluster

    cluster, nodes = Cluster(), {}
    cluster.add_node(include_dashboard=False, _system_config=SYSTEM, **head)
    try:
        _tell(cluster.address)
        for line in sys.stdin:
            order = json.loads(line)
            name = order["name"]
            if order["do"] == "add":
                store = {"object_store_memory": STORE_BYTES}
                # One a machine: another would read the same files once more.
                nodes[name] = cluster.add_node(
                    include_log_monitor=False, **store, **order["options"]
                )
                _tell(nodes[name].node_id)
            else:
                cluster.remove_node(nodes.pop(name), allow_graceful=False)
                _tell(None)
    finally:
        cluster.shutdown()


def _tell(answer: Any) -> None:
    sys.stdout.write(ANSWER + json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
