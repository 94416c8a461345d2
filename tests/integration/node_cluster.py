"""Ray nodes on one machine, ordered from outside: add, deploy, look, kill.

Data flow: one JSON order a line on stdin -> `Nodes` -> one JSON answer a line on stdout; the end of
stdin ends the cluster. A process of its own: pytest's holds the session's cluster, and Ray adds
nodes from a main thread only.
"""

import json
import sys
from collections import Counter
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from tests.conftest import free_port

ANSWER = "ANSWER "
STORE_BYTES = 80_000_000
"""Nearly the least that Ray accepts: pictures go past it."""
QUICK_DEATHS = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""Ray gives a silent node 10 s and more by default."""


class Nodes:
    """The cluster; its methods are the orders."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.nodes: dict[str, Any] = {}
        self.cluster.add_node(
            num_cpus=0,
            object_store_memory=STORE_BYTES,
            # Another Ray on this machine may hold the usual port.
            dashboard_port=free_port(),
            include_dashboard=False,
            _system_config=QUICK_DEATHS,
        )
        ray.init(address=self.cluster.address, log_to_driver=False)

    def add(self, name: str, **options: Any) -> None:
        """A node; `options` are those of `ray start`."""
        store = {"object_store_memory": STORE_BYTES}
        self.nodes[name] = self.cluster.add_node(num_cpus=1, **store, **options)

    def kill(self, name: str) -> None:
        """As when its power fails."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def deploy(self, document: dict[str, Any]) -> None:
        """What `serve deploy` does, without waiting."""
        serve.start(
            proxy_location=document["proxy_location"],
            http_options=document["http_options"],
            controller_options=document["controller_options"],
        )
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(document))

    def running(self) -> dict[str, int]:
        """Replicas that serve, by deployment."""
        (application,) = serve.status().applications.values()
        return {
            name: deployment.replica_states.get("RUNNING", 0)
            for name, deployment in application.deployments.items()
        }

    def placed(self) -> dict[str, list[str]]:
        """The nodes of each deployment's replicas."""
        names = {node.node_id: name for name, node in self.nodes.items()}
        found: dict[str, list[str]] = {}
        for actor in ray._private.state.actors().values():
            kind, _, deployment = actor["ActorClassName"].rpartition(":")
            if kind.startswith("ServeReplica") and actor["State"] == "ALIVE":
                node = names.get(actor["Address"]["NodeID"], "head or dead")
                found.setdefault(deployment, []).append(node)
        return {deployment: sorted(nodes) for deployment, nodes in found.items()}

    def busy(self) -> dict[str, int]:
        """Requests inside the replicas, by deployment and replica."""
        ongoing: Counter[str] = Counter()
        for entry in ray.util.list_named_actors(all_namespaces=True):
            if entry["name"].startswith("SERVE_REPLICA::"):
                try:
                    actor = ray.get_actor(entry["name"], namespace=entry["namespace"])
                    count = ray.get(actor.get_num_ongoing_requests.remote(), timeout=5)
                except (ray.exceptions.RayError, ValueError):
                    continue  # it died meanwhile
                ongoing[entry["name"].partition("#")[2]] = count
        return dict(ongoing)

    def stop(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def main() -> None:
    """Take orders until there are no more."""
    nodes = Nodes()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            answer = getattr(nodes, order.pop("do"))(**order)
            sys.stdout.write(ANSWER + json.dumps(answer) + "\n")
            sys.stdout.flush()
    finally:
        nodes.stop()


if __name__ == "__main__":
    main()
