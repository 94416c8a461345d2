"""Updates and scale-downs under load: clients notice nothing.

One application, `rolling`, joins the cluster for these tests: two gateways, two simulated models.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from ray import serve

from tests.cluster import app_of
from tests.integration.conftest import QUICK, App, Cluster, application, eventually, settled
from tests.machine import MACHINE

pytestmark = pytest.mark.serve

NAME = "rolling"
MODEL = f"FluxModel-{NAME}"
CLIENTS = 4
JOB = {"prompt": "a red circle", "size": "1024x1024", "num_inference_steps": 10, "n": 1}
"""Half a second of the simulated GPU: some are always under way."""
UNITS = 1024 * 1024 * 10 // 4


class Rolling:
    """The application and its entry in the config file, which tests change."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        model = {
            "id": NAME,
            "source": "simulated:h200:schnell",
            "num_cpus": 0.1,
            "engine": {"warm_up_sizes": ["1024x1024"], "simulation": {"load_s": 0}},
        }
        self.application = application(
            cluster.folder,
            NAME,
            cluster.url,
            {"name": "Gateway", "num_replicas": 2, **QUICK},
            {"name": MODEL, "num_replicas": 2, **QUICK},
            models=[model],
        )
        self.app = app_of(self.application)

    def deploy(self) -> None:
        """What `serve deploy` does with the file as it is now; returns when all is as it says."""
        self.cluster.deploy(self.application)
        eventually(self.as_configured, "as many replicas as the file says")

    def as_configured(self) -> bool:
        deployments = serve.status().applications[NAME].deployments
        return all(
            deployments[one["name"]].replica_states == {"RUNNING": one["num_replicas"]}
            for one in self.application["deployments"]
        )

    def change(self, deployment: str, **options: Any) -> None:
        (entry,) = (one for one in self.application["deployments"] if one["name"] == deployment)
        entry.update(options)

    def replicas(self) -> set[str]:
        return {*self.app.replicas("Gateway"), *self.app.replicas(MODEL)}


@pytest.fixture(scope="module")
def rolling(cluster: Cluster) -> Iterator[Rolling]:
    made = Rolling(cluster)
    made.deploy()
    yield made
    cluster.remove(NAME)


@contextmanager
def traffic(app: App) -> Iterator[list[httpx.Response]]:
    """Clients that draw one job after another, until what happens inside has happened."""
    stop = threading.Event()
    replies: list[httpx.Response] = []

    def client() -> None:
        with httpx.Client(timeout=MACHINE.allow(120), headers=app.headers) as http:
            while not stop.is_set():
                replies.append(http.post(f"{app.url}/v1/images/generations", json=JOB))

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client) for _ in range(CLIENTS)]
        try:
            eventually(lambda: len(replies) >= CLIENTS, "clients are served")
            yield replies
            seen = len(replies)
            eventually(lambda: len(replies) >= seen + 2 * CLIENTS, "clients are served after it")
        finally:
            stop.set()
        for one in clients:
            one.result()


def check(app: App, replies: list[httpx.Response], captured: int) -> None:
    """Everyone was served, and paid."""
    failed = [(reply.status_code, reply.text) for reply in replies if reply.status_code != 200]
    assert failed == []
    assert settled(app) == captured + len(replies) * UNITS


def test_new_batching_knobs_under_load_lose_no_request(rolling: Rolling) -> None:
    before, replicas = rolling.app.ledger_totals()["captured"], rolling.replicas()
    with traffic(rolling.app) as replies:
        rolling.change(MODEL, user_config={"max_batch_size": 3, "batch_wait_timeout_s": 0.001})
        rolling.deploy()
    check(rolling.app, replies, before)
    assert rolling.replicas() == replicas


@pytest.mark.parametrize("deployment", [MODEL, "Gateway"])
def test_fewer_replicas_under_load_lose_no_request(rolling: Rolling, deployment: str) -> None:
    before = rolling.app.ledger_totals()["captured"]
    with traffic(rolling.app) as replies:
        rolling.change(deployment, num_replicas=1)
        rolling.deploy()
    check(rolling.app, replies, before)
    rolling.change(deployment, num_replicas=2)
    rolling.deploy()


def test_a_new_version_under_load_loses_no_request(rolling: Rolling) -> None:
    """Changed `args` replace every replica, gateways too."""
    before, replicas = rolling.app.ledger_totals()["captured"], rolling.replicas()
    with traffic(rolling.app) as replies:
        rolling.application["args"]["limits"] = {"body_timeout_s": 11}
        rolling.deploy()
        eventually(lambda: not rolling.replicas() & replicas, "no old replica is left", 120)
    check(rolling.app, replies, before)
