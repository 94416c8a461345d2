"""Ray puts gateways and models where cluster.yaml means them to be: seen on real Ray nodes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray

from tests.cluster import HEAD, Cluster
from tests.integration.test_nodes import placed
from tests.kubernetes.cluster_kit import CONTAINER, GATEWAYS, MODELS, at, load, serve_config

pytestmark = pytest.mark.serve

NAME = "placement"


def pods() -> dict[str, dict[str, Any]]:
    """Nodes as KubeRay starts them at first: `minReplicas` gateway pods, and one GPU pod."""
    objects = load()
    resources = at(objects, f"{GATEWAYS}:resources")
    custom = {name: float(value) for name, value in resources.items() if name != "CPU"}
    limits = at(objects, f"{MODELS}:{CONTAINER}:resources:limits")
    gateway = {"num_cpus": int(resources["CPU"]), "resources": custom}
    count = at(objects, f"{GATEWAYS}:minReplicas")
    return {
        **{f"gateway-pod-{number}": gateway for number in range(count)},
        "model-pod": {"num_cpus": int(limits["cpu"]), "num_gpus": int(limits["nvidia.com/gpu"])},
    }


def small_application(cluster: Cluster) -> dict[str, Any]:
    """The one of `serveConfigV2`, with flux-mini in the place of FLUX."""
    (application,) = serve_config(load())["applications"]
    args = application["args"]
    (model,) = args["models"]
    asks = {name: model[name] for name in ("num_gpus", "num_cpus")}
    args["models"] = [{"id": "flux-mini", **asks}]
    url = f"sqlite+aiosqlite:///{cluster.folder}/{NAME}.db"
    args["ledger"] = {"url": url, "migrate_on_start": True}
    args["store"] = None
    for one in application["deployments"]:
        one["name"] = one["name"].replace("FLUX.1-schnell", "flux-mini")
    return {**application, "name": NAME, "route_prefix": f"/{NAME}"}


@contextmanager
def a_head_without_gpus() -> Iterator[None]:
    """The head of a KubeRay cluster has none; that of the tests has, so they are taken."""

    @ray.remote(num_cpus=0, num_gpus=HEAD["num_gpus"])
    class Taken:
        def here(self) -> str:
            return ray.get_runtime_context().get_node_id()

    taken = Taken.remote()
    ray.get(taken.here.remote())
    yield
    ray.kill(taken)


def test_gateways_go_to_cpu_pods_and_models_to_gpu_pods(cluster: Cluster) -> None:
    # Other applications have GPUs of the head.
    cluster.remove(*(set(cluster.applications) - {"flux-serve"}))
    nodes = pods()
    with a_head_without_gpus():
        for name, options in nodes.items():
            cluster.nodes.add(name, **options)
        cluster.deploy(small_application(cluster))
        found = placed(cluster, NAME)
        cluster.remove(NAME)
        for name in nodes:
            cluster.nodes.kill(name)
    assert found == {
        "Gateway": [name for name in nodes if name.startswith("gateway")],
        "FluxModel-flux-mini": ["model-pod"],
    }
