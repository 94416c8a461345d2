"""A Ray cluster with the nodes of cluster.yaml on one machine: where do the replicas go?

Data flow: nodes and a Serve config as JSON on stdin -> Ray nodes, `deploy_apps` -> for each replica
the group of its node, as JSON on stdout. A process of its own: pytest's may hold another cluster.
"""

import json
import sys
import time
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.conftest import free_port

DEADLINE_S = 180
STORE_BYTES = 80_000_000
"""Nearly the least that Ray accepts: nothing is drawn here."""
POLL_S = 0.2


def place(nodes: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, list[str]]:
    """The groups of the nodes that each deployment's replicas are on; nodes carry `group`."""
    cluster = Cluster()
    try:
        groups = {}
        for node in nodes:
            group = node.pop("group")
            # Only the head opens a dashboard's port, and another Ray may hold the usual one.
            head = {} if groups else {"dashboard_port": free_port(), "include_dashboard": False}
            made = cluster.add_node(object_store_memory=STORE_BYTES, **head, **node)
            groups[made.node_id] = group
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options=config.pop("http_options"))
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))
        _wait_until_running()
        found: dict[str, list[str]] = {}
        for actor in ray._private.state.actors().values():
            kind, _, name = actor["ActorClassName"].rpartition(":")
            if kind.startswith("ServeReplica") and actor["State"] == "ALIVE":
                found.setdefault(name, []).append(groups[actor["Address"]["NodeID"]])
        return found
    finally:
        ray.shutdown()
        cluster.shutdown()


def _wait_until_running() -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        states = serve.status().applications.values()
        if any(state.status == "DEPLOY_FAILED" for state in states):
            break
        if states and all(state.status == "RUNNING" for state in states):
            return
        time.sleep(POLL_S)  # polling with a deadline
    raise SystemExit(f"not running: {serve.status()}")


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    sys.stdout.write("PLACED " + json.dumps(place(asked["nodes"], asked["config"])) + "\n")
