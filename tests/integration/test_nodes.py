"""Many nodes: where replicas go, what is said where they cannot, and what a dead node costs.

A Ray cluster with a node for each purpose, on one machine with made-up GPUs and simulated models.
The tests run in order: the GPUs come after the first, and nodes die in the last two.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.deployments.gateway import ACTOR_OPTIONS
from tests.conftest import ROOT, free_port
from tests.integration.conftest import KEY, App, application_args, error_of, eventually
from tests.integration.node_cluster import ANSWER

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]  # six Ray nodes on two cores

TIMEOUT_S = 40  # two jobs of 12 s on the one GPU that is left, and time to spare
HOLD_TTL_S = 41
"""When the holds of a dead gateway expire."""
STEPS = 8
JOB = {"model": "fast", "prompt": "x", "size": "1024x1024", "num_inference_steps": STEPS}
"""A device second each."""
UNITS = 1024 * 1024 * STEPS // 4
JOBS = 12
FAST, CHEAP = "FluxModel-fast", "FluxModel-cheap"
NODES: dict[str, dict[str, Any]] = {
    "h200-a": {"num_gpus": 1, "resources": {"accelerator_type:H200": 1}},
    "h200-b": {"num_gpus": 1, "resources": {"accelerator_type:H200": 1}},
    "l4": {"num_gpus": 1, "resources": {"cheap_gpu": 1}},
}


@dataclass
class Nodes:
    """The cluster in its process, and the application on it."""

    process: "subprocess.Popen[str]"
    folder: Path
    app: App
    document: dict[str, Any]

    def __call__(self, order: str, **options: Any) -> Any:
        """Give an order of `node_cluster`; returns its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": order, **options}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise AssertionError(f"{order}: {(self.folder / 'log').read_text()[-4000:]}")

    def log(self) -> str:
        """What all replicas have logged."""
        logs = self.folder.glob("ray/session_2*/logs/worker-*.err")
        return "".join(path.read_text() for path in logs)

    def post(self, body: dict[str, Any]) -> httpx.Response:
        url = f"{self.app.url}/v1/images/generations"
        return httpx.post(url, json=body, headers=self.app.headers, timeout=2 * TIMEOUT_S)

    def ready(self) -> httpx.Response | None:
        """What `/ready` answers; None while the gateway itself is not up."""
        reply = httpx.get(f"{self.app.url}/ready", timeout=30)
        return None if "starting" in reply.json().get("error", {}).get("message", "") else reply


def document_for(folder: Path) -> dict[str, Any]:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    models = [
        {
            "id": "fast",
            "source": "simulated:h200:schnell",
            "num_gpus": 1,
            "num_cpus": 0.1,
            "accelerator_type": "H200",
        },
        {
            "id": "cheap",
            "source": "simulated:l4:schnell",
            "num_gpus": 1,
            "num_cpus": 0.1,
            "resources": {"cheap_gpu": 1},
            "engine": {"simulation": {"time_scale": 0.1}},
        },
    ]
    args = application_args(
        folder,
        "nodes",
        base,
        models=models,
        limits={"request_timeout_s": TIMEOUT_S},
        ledger={"hold_ttl_s": HOLD_TTL_S, "sweep_interval_s": 1},
    )
    gateway = {**ACTOR_OPTIONS, "num_cpus": 0.1, "resources": {"gateway": 1}}
    local = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "controller_options": local["controller_options"],
        "applications": [
            {
                "name": "nodes",
                "route_prefix": "/",
                "import_path": "serve_app.graph:build",
                "args": args,
                "deployments": [
                    {"name": "Gateway", "ray_actor_options": gateway},
                    {"name": FAST, "num_replicas": 2},
                ],
            }
        ],
    }


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """The head and a node for the gateway; the application is deployed, and there is no GPU."""
    with tempfile.TemporaryDirectory(prefix="fn-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        document = document_for(folder)
        args = document["applications"][0]["args"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.node_cluster"],
                env={**os.environ, "RAY_TMPDIR": name},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        app = App("nodes", args["public_url"], KEY, args["ledger"]["url"])
        nodes = Nodes(process, folder, app, document)
        try:
            nodes("add", name="gateway-a", resources={"gateway": 1})
            nodes("deploy", document=document)
            yield nodes
        finally:
            process.communicate(timeout=120)  # the end of its stdin stops it


def test_a_cluster_without_gpus_says_what_it_waits_for(nodes: Nodes) -> None:
    waits = {
        "Model fast waits for 1 GPU of type H200; the cluster has 0.",
        "Model cheap waits for 1 GPU and 1 cheap_gpu; the cluster has 0 GPU and 0 cheap_gpu.",
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
        nodes("add", name=name, **options)
    eventually(lambda: nodes("running").get(FAST) == 2, "both replicas run", 120)
    eventually(lambda: nodes("running").get(CHEAP) == 1, "the other model runs")
    assert nodes("placed") == {
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


def in_flight(nodes: Nodes, pool: ThreadPoolExecutor) -> list["Future[httpx.Response]"]:
    """Jobs of which every replica has some and none is done."""
    sent = [pool.submit(nodes.post, JOB) for _ in range(JOBS)]
    eventually(
        lambda: (
            sum(n > 0 for key, n in nodes("busy").items() if key.startswith(FAST)) > 0
            and all(n > 0 for key, n in nodes("busy").items() if key.startswith(FAST))
        ),
        "every replica draws",
    )
    return sent


def test_a_dead_gpu_node_costs_a_second_try_and_nobody_pays_for_less_than_an_image(
    nodes: Nodes,
) -> None:
    before = nodes.app.books()["captured"]
    with ThreadPoolExecutor(JOBS) as pool:
        sent = in_flight(nodes, pool)
        nodes("kill", name="h200-a")
        replies = [one.result() for one in sent]
    delivered = [reply for reply in replies if reply.status_code == 200]
    for reply in replies:
        if reply.status_code != 200:
            assert error_of(reply)["code"] in ("generation_failed", "service_unavailable")
    eventually(lambda: nodes.app.books()["held"] == 0, "every hold is resolved")
    assert nodes.app.books()["captured"] - before == len(delivered) * UNITS
    assert [int(reply.headers["x-compute-units"]) for reply in delivered] == [UNITS] * len(
        delivered
    )
    first, second = (nodes.log().count(f"(try {number})") for number in (1, 2))
    assert first > 0
    assert len(replies) - len(delivered) <= second
    assert len(delivered) >= JOBS - first


def test_a_dead_gateway_node_charges_nothing_and_its_holds_expire(nodes: Nodes) -> None:
    nodes("add", name="gateway-b", resources={"gateway": 1})
    before = nodes.app.books()["captured"]
    started = time.monotonic()
    with ThreadPoolExecutor(JOBS) as pool:
        slow = {**JOB, "num_inference_steps": 50, "n": 2}  # 12 s: none is done when it dies
        sent = [pool.submit(nodes.post, slow) for _ in range(2)]
        held = 2 * 2 * 1024 * 1024 * 50 // 4
        eventually(lambda: nodes.app.books()["held"] == held, "both are held")
        nodes("kill", name="gateway-a")
        replies = [one.result() for one in sent]
    for reply in replies:
        assert reply.status_code in (500, 503)
        assert error_of(reply)["type"].endswith("_error")
    eventually(lambda: nodes("placed").get("Gateway") == ["gateway-b"], "a new gateway", 120)
    left_s = HOLD_TTL_S + 60 - (time.monotonic() - started)
    eventually(lambda: nodes.app.books() == {"captured": before, "held": 0}, "expired", left_s)
    assert nodes.post({**JOB, "model": "cheap", "num_inference_steps": 1}).status_code == 200
