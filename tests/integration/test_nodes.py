"""Many nodes: where replicas go, what is said where they cannot, and what a dead node costs.

Nodes for each purpose join the shared cluster, with fake GPUs and simulated models. The tests run
in order: the GPUs that they want come after the first, and nodes die in the last two.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import ceil
from typing import Any

import httpx
import pytest
import ray

from serve_app.deployments.gateway import ACTOR_OPTIONS
from tests.cluster import App, Cluster, app_of, application
from tests.integration.conftest import error_of, eventually
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

TIMEOUT_S = 40.0
"""Two jobs of 12 s on the one GPU that is left, and time to spare."""
HOLD_TTL_S = 41.0
"""When the holds of a dead gateway expire."""
STEPS = 8
JOB = {"model": "fast", "prompt": "x", "size": "1024x1024", "num_inference_steps": STEPS}
"""A device second each."""
UNITS = 1024 * 1024 * STEPS // 4
JOBS = 12
FAST, CHEAP = "FluxModel-fast", "FluxModel-cheap"
CHEAP_ONES = {"cheap_gpu": 1, "cheap_disk": 1}
NODES: dict[str, dict[str, Any]] = {
    "h200-a": {"num_gpus": 1, "resources": {"accelerator_type:H200": 1}},
    "h200-b": {"num_gpus": 1, "resources": {"accelerator_type:H200": 1}},
    "l4": {"num_gpus": 1, "resources": CHEAP_ONES},
}


class Nodes:
    """The nodes of this application, which may be killed, and the application."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        made = _application(cluster)
        self.app: App = app_of(made)
        self.alive: set[str] = set()
        self.add("gateway-a", resources={"gateway": 1})
        cluster.deploy(made, wait=False)

    def add(self, name: str, **options: Any) -> None:
        self.cluster.nodes.add(name, num_cpus=1, **options)
        self.alive.add(name)

    def kill(self, name: str) -> None:
        self.cluster.nodes.kill(name)
        self.alive.discard(name)

    def stop(self) -> None:
        self.cluster.remove(self.app.name)
        for name in set(self.alive):
            self.kill(name)

    def running(self, deployment: str) -> int:
        return self.app.running(deployment)

    def placed(self) -> dict[str, list[str]]:
        """The nodes of each deployment's replicas."""
        return placed(self.cluster, self.app.name)

    def busy(self) -> list[int]:
        """Requests inside each replica of the fast model."""
        asked = [one.get_num_ongoing_requests.remote() for one in self.app.replicas(FAST).values()]
        with contextlib.suppress(ray.exceptions.RayError):  # one died meanwhile
            return list(ray.get(asked, timeout=MACHINE.allow(5)))
        return []

    def log(self) -> str:
        return self.cluster.output()

    def post(self, body: dict[str, Any]) -> httpx.Response:
        url = f"{self.app.url}/v1/images/generations"
        timeout = 2 * MACHINE.allow(TIMEOUT_S)
        return httpx.post(url, json=body, headers=self.app.headers, timeout=timeout)

    def ready(self) -> httpx.Response | None:
        """What `/ready` answers; None while the gateway itself is not up."""
        reply = httpx.get(f"{self.app.url}/ready", timeout=MACHINE.allow(30))
        if reply.status_code == 404:
            return None  # not deployed yet, so the application at "/" answers
        return None if "starting" in reply.json().get("error", {}).get("message", "") else reply


def placed(cluster: Cluster, application: str) -> dict[str, list[str]]:
    """The nodes of each deployment's replicas; `head` is the one that all tests share."""
    found: dict[str, list[str]] = {}
    for actor in ray._private.state.actors().values():
        name = actor["Name"] or ""
        if name.startswith(f"SERVE_REPLICA::{application}#") and actor["State"] == "ALIVE":
            node = cluster.nodes.names.get(actor["Address"]["NodeID"], "head")
            found.setdefault(name.split("#")[1], []).append(node)
    return {deployment: sorted(nodes) for deployment, nodes in found.items()}


def _application(cluster: Cluster) -> dict[str, Any]:
    slow = MACHINE.slowness  # so are the simulated GPUs of a slow machine
    models = [
        {
            "id": "fast",
            "source": "simulated:h200:schnell",
            "num_gpus": 1,
            "num_cpus": 0.1,
            "accelerator_type": "H200",
            "engine": {"simulation": {"time_scale": slow}},
        },
        {
            "id": "cheap",
            "source": "simulated:l4:schnell",
            "num_gpus": 1,
            "num_cpus": 0.1,
            "resources": CHEAP_ONES,
            "engine": {"simulation": {"time_scale": 0.1 * slow}},
        },
    ]
    gateway = {**ACTOR_OPTIONS, "num_cpus": 0.1, "resources": {"gateway": 1}}
    return application(
        cluster.folder,
        "nodes",
        cluster.url,
        {"name": "Gateway", "ray_actor_options": gateway},
        {"name": FAST, "num_replicas": 2},
        models=models,
        limits={"request_timeout_s": MACHINE.allow(TIMEOUT_S)},
        ledger={"hold_ttl_s": ceil(MACHINE.allow(HOLD_TTL_S)), "sweep_interval_s": 1},
    )


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Iterator[Nodes]:
    """A node for the gateway; the application is deployed, and there is no GPU for its models."""
    nodes = Nodes(cluster)
    yield nodes
    nodes.stop()


def test_a_cluster_without_gpus_says_what_it_waits_for(nodes: Nodes) -> None:
    waits = {
        "Model fast waits for 1 GPU of type H200; the cluster has 0.",
        "Model cheap waits for 1 cheap_disk and 1 cheap_gpu; "
        "the cluster has 0 cheap_disk and 0 cheap_gpu.",
    }
    eventually(nodes.ready, "the gateway answers", 120)
    reply = eventually(
        lambda: (r := nodes.ready()) is not None and all(one in r.text for one in waits) and r,
        "both models tell",
    )
    assert reply.status_code == 503
    error = error_of(reply)
    assert error["code"] == "service_unavailable"
    assert set(error["message"].replace(". M", ".\nM").splitlines()) == waits
    log = nodes.log()
    for sentence in waits:
        assert sum(line.endswith(sentence) for line in log.splitlines()) == 1


def test_when_their_nodes_come_each_model_goes_to_its_kind_of_gpu(nodes: Nodes) -> None:
    for name, options in NODES.items():
        nodes.add(name, **options)
    eventually(lambda: nodes.running(FAST) == 2, "both replicas run", 120)
    eventually(lambda: nodes.running(CHEAP) == 1, "the other model runs")
    assert nodes.placed() == {
        "Gateway": ["gateway-a"],
        FAST: ["h200-a", "h200-b"],
        CHEAP: ["l4"],
    }
    eventually(lambda: (r := nodes.ready()) is not None and r.status_code == 200, "ready")
    for model in ("fast", "cheap"):
        # The second of two replicas may have waited again when the first had its node.
        eventually(partial(waits_no_more, nodes, model), "the log says so, too")
        reply = nodes.post({"model": model, "prompt": "x", "size": "256x256"})
        assert (reply.status_code, reply.headers["x-model"]) == (200, model), reply.text


def waits_no_more(nodes: Nodes, model: str) -> bool:
    """Whether that is the last that the log says of it."""
    said = [line for line in nodes.log().splitlines() if f"Model {model} waits" in line]
    return said[-1].endswith("waits no more.")


def tries(nodes: Nodes) -> Counter[int]:
    """How often the log tells of a first or second try that failed."""
    return Counter({number: nodes.log().count(f"(try {number})") for number in (1, 2)})


def in_flight(nodes: Nodes, pool: ThreadPoolExecutor) -> list["Future[httpx.Response]"]:
    """Jobs of which every replica has some and none is done."""
    sent = [pool.submit(nodes.post, JOB) for _ in range(JOBS)]
    eventually(lambda: (busy := nodes.busy()) and all(busy), "every replica draws")
    return sent


def test_a_dead_gpu_node_costs_a_second_try_and_nobody_pays_for_less_than_an_image(
    nodes: Nodes,
) -> None:
    before, tried = nodes.app.ledger_totals()["captured"], tries(nodes)
    with ThreadPoolExecutor(JOBS) as pool:
        sent = in_flight(nodes, pool)
        nodes.kill("h200-a")
        replies = [one.result() for one in sent]
    delivered = [reply for reply in replies if reply.status_code == 200]
    for reply in replies:
        if reply.status_code != 200:
            assert error_of(reply)["code"] in ("generation_failed", "service_unavailable")
    eventually(
        lambda: nodes.app.ledger_totals(verified=False)["held"] == 0, "every hold is resolved"
    )
    assert nodes.app.ledger_totals()["captured"] - before == len(delivered) * UNITS
    assert [int(reply.headers["x-compute-units"]) for reply in delivered] == [UNITS] * len(
        delivered
    )
    now = tries(nodes)
    first, second = (now[number] - tried[number] for number in (1, 2))
    assert first > 0
    assert len(replies) - len(delivered) <= second
    assert len(delivered) >= JOBS - first


def test_a_dead_gateway_node_charges_nothing_and_its_holds_expire(nodes: Nodes) -> None:
    nodes.add("gateway-b", resources={"gateway": 1})
    before = nodes.app.ledger_totals()["captured"]
    started = time.monotonic()
    with ThreadPoolExecutor(JOBS) as pool:
        slow = {**JOB, "num_inference_steps": 50, "n": 2}  # 12 s: none is done when it dies
        sent = [pool.submit(nodes.post, slow) for _ in range(2)]
        held = 2 * 2 * 1024 * 1024 * 50 // 4
        eventually(lambda: nodes.app.ledger_totals(verified=False)["held"] == held, "both are held")
        nodes.kill("gateway-a")
        replies = [one.result() for one in sent]
    for reply in replies:
        assert reply.status_code in (500, 503)
        assert error_of(reply)["type"].endswith("_error")
    eventually(lambda: nodes.placed().get("Gateway") == ["gateway-b"], "a new gateway", 120)
    left_s = HOLD_TTL_S + 60 - (time.monotonic() - started) / MACHINE.slowness
    eventually(
        lambda: nodes.app.ledger_totals(verified=False) == {"captured": before, "held": 0},
        "expired",
        left_s,
    )
    assert nodes.post({**JOB, "model": "cheap", "num_inference_steps": 1}).status_code == 200
