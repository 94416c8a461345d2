"""A Ray cluster inside the test process, so that tests can look at replicas and kill them.

Two applications: `main` at `/` (flux-mini on two replicas, and a random FLUX.1-schnell-shaped
folder pinned to a fake GPU) and `strict` at `/strict` (tiny limits, its own ledger).
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig, LedgerConfig
from serve_app.engine.random_weights import build_random_flux
from serve_app.metering.sql import SqlLedger
from tests.conftest import ROOT, free_port
from tests.otlp_receiver import Receiver

KEY = "sk-integration-tests"
DEPLOY_TIMEOUT_S = 240
MINI = "FluxModel-flux-mini"
STEPS_MAX = 200
"""Jobs that tests break off take so many: none is done before, on however fast a machine."""
POLL_S = 0.05
QUICK: dict[str, Any] = {"health_check_period_s": 1, "graceful_shutdown_wait_loop_s": 0.1}
"""Serve notices deaths after up to 10 s by default, and idle replicas stop after 2 s."""
ANSWER_S = 2.0
"""How long a replica that serves may take to say whether it has a job."""


def eventually(check: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """Poll until `check` returns something true; every wait of these tests goes through here."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(POLL_S)  # polling with a deadline
    raise AssertionError(f"timed out: {what}")


@dataclass(frozen=True)
class App:
    """One deployed application, seen from outside (HTTP) and inside (replicas, books)."""

    name: str
    url: str
    key: str
    ledger_url: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def replicas(self, deployment: str) -> dict[str, Any]:
        """Actor handles of the deployment's live replicas by name."""
        prefix = f"SERVE_REPLICA::{self.name}#{deployment}#"
        found = {}
        for entry in ray.util.list_named_actors(all_namespaces=True):
            if entry["name"].startswith(prefix):
                with contextlib.suppress(ValueError):  # it died meanwhile
                    actor = ray.get_actor(entry["name"], namespace=entry["namespace"])
                    found[entry["name"]] = actor
        return found

    def stats(self, deployment: str = MINI) -> Any:
        """Engine counters of one replica of a model."""
        return serve.get_deployment_handle(deployment, self.name).stats.remote().result()

    def books(self) -> dict[str, int]:
        """Captured and held units of all accounts, after checking that the books balance."""

        async def read() -> dict[str, int]:
            ledger = await SqlLedger.open(LedgerConfig(url=self.ledger_url))
            try:
                report = await ledger.admin.audit()
                assert report.balanced, report
                accounts = await ledger.admin.list_accounts()
                return {
                    "captured": sum(account.balance.captured for account in accounts),
                    "held": sum(account.balance.held for account in accounts),
                }
            finally:
                await ledger.close()

        return asyncio.run(read())


@dataclass(frozen=True)
class Cluster:
    folder: Path
    main: App
    strict: App
    document: dict[str, Any]
    metrics_url: str
    """Where Ray's agent exports metrics for Prometheus."""
    receiver: Receiver
    """Gets the spans of `main`."""

    def log_entries(self, component: str, **fields: Any) -> list[dict[str, Any]]:
        """Lines with these fields in the JSON logs of the replicas of a deployment of `main`."""
        files = self.folder.glob(f"r/session_2*/logs/serve/replica_main_{component}_*.log")
        lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
        entries = [json.loads(line) for line in lines]
        return [one for one in entries if {**one, **fields} == one]

    def deploy(self, document: dict[str, Any]) -> None:
        """What `serve deploy` does with a config file."""
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(document))
        eventually(lambda: _running(document), "applications run", DEPLOY_TIMEOUT_S)


def error_of(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert len(reply.headers.get_list("x-request-id")) == 1
    found: dict[str, Any] = body["error"]
    return found


def busy_replica(app: App) -> str | None:
    """Name of a replica that has a job now; a starting one, which answers nobody, is passed over.

    All are asked at once: what is looked for may be over soon.
    """
    asked = {
        actor.get_num_ongoing_requests.remote(): name for name, actor in app.replicas(MINI).items()
    }
    waiting, deadline = list(asked), time.monotonic() + ANSWER_S
    while waiting and (left_s := deadline - time.monotonic()) > 0:
        answered, waiting = ray.wait(waiting, timeout=left_s)
        for reference in answered:
            try:
                if ray.get(reference):
                    return asked[reference]
            except ray.exceptions.RayError:
                continue  # it died meanwhile
    return None


def idle(app: App) -> bool:
    """Whether every replica that serves answers that it has no job."""
    try:
        asked = [one.get_num_ongoing_requests.remote() for one in app.replicas(MINI).values()]
        return not any(ray.get(asked, timeout=10))
    except ray.exceptions.RayError:
        return False  # one is starting, or died meanwhile


def healthy(app: App) -> bool:
    """Whether both replicas are up: a starting one would answer no question.

    They are counted, too: Serve's controller notices a death only at its next health check.
    """
    state = serve.status().applications[app.name].deployments[MINI]
    return state.status == "HEALTHY" and len(app.replicas(MINI)) == 2


def until_healthy(app: App) -> None:
    """The replicas that other tests killed are replaced: as slow as a deployment of the model."""
    eventually(lambda: healthy(app), "both replicas are up", DEPLOY_TIMEOUT_S)


def kill_busy_replica(app: App) -> str:
    name = eventually(lambda: busy_replica(app), "a replica draws")
    ray.kill(app.replicas(MINI)[name], no_restart=True)
    return str(name)


def _running(document: dict[str, Any]) -> bool:
    applications = serve.status().applications
    states = {app["name"]: applications.get(app["name"]) for app in document["applications"]}
    for name, state in states.items():
        assert state is None or state.status != "DEPLOY_FAILED", (name, state.message)
    return all(state is not None and state.status == "RUNNING" for state in states.values())


def application_args(folder: Path, name: str, url: str, **more: Any) -> dict[str, Any]:
    args = {
        "public_url": url,
        "ledger": {
            "url": f"sqlite+aiosqlite:///{folder}/{name}.db",
            "migrate_on_start": True,
            **more.pop("ledger", {}),
        },
        "store": {
            "url": f"file://{folder}/{name}-images",
            "signing_key_file": f"{folder}/{name}.key",
        },
        "development": {"key": KEY},
        **more,
    }
    AppConfig.model_validate(args)
    return args


def _document(folder: Path, port: int, collector: str) -> dict[str, Any]:
    local = yaml.safe_load((ROOT / "configs" / "local.yaml").read_text())
    base = f"http://127.0.0.1:{port}"
    small = {"torch_threads": 1}
    # One image after another: those that a stream waits for are all to come when the first is here.
    in_turn = {**small, "step_batch_samples": {"256x256": 1}}
    application = {"import_path": "serve_app.graph:build"}
    main = {
        **application,
        "name": "main",
        "route_prefix": "/",
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "args": application_args(
            folder,
            "main",
            base,
            metrics={"interval_s": 0.5, "by_account": True},
            tracing={"endpoint": collector},
            models=[
                {
                    "id": "flux-mini",
                    "engine": in_turn,
                    "num_cpus": 0.1,
                    "max_steps": STEPS_MAX,
                },
                {
                    "id": "black-forest-labs/FLUX.1-schnell",
                    "source": str(folder / "schnell"),
                    "num_cpus": 0.1,
                    "min_edge_px": 64,
                    "engine": small,
                },
            ],
        ),
        "deployments": [{"name": MINI, "num_replicas": 2, **QUICK}, {"name": "Gateway", **QUICK}],
    }
    strict = {
        **application,
        "name": "strict",
        "route_prefix": "/strict",
        "args": application_args(
            folder,
            "strict",
            f"{base}/strict",
            models=[
                {
                    "id": "flux-mini",
                    "num_cpus": 0.1,
                    "max_steps": STEPS_MAX,
                    "engine": {**small, "queue_max_samples": 2},
                }
            ],
            limits={"request_timeout_s": 2},
            ledger={"busy_timeout_s": 0.5},
        ),
    }
    environment = local["controller_options"]["runtime_env"]["env_vars"]
    environment["OTEL_BSP_SCHEDULE_DELAY"] = "200"  # milliseconds; 5 s is long for a test
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "controller_options": local["controller_options"],
        "applications": [main, strict],
    }


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="fs-", ignore_cleanup_errors=True) as name,
        Receiver() as receiver,
    ):
        folder, port, metrics_port = Path(name), free_port(), free_port()
        build_random_flux(folder / "schnell", "schnell", "tiny")
        document = _document(folder, port, receiver.url)
        base = f"http://127.0.0.1:{port}"
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=6,  # two for main, four for the elastic application
            include_dashboard=False,
            object_store_memory=300_000_000,
            _temp_dir=str(folder / "r"),
            log_to_driver=False,
            _metrics_export_port=metrics_port,
            _system_config={"metrics_report_interval_ms": 1000},  # 10 s is long for a test
        )
        serve.start(
            proxy_location="HeadOnly",
            http_options=document["http_options"],
            controller_options=document["controller_options"],
        )
        try:
            cluster = Cluster(
                folder,
                App("main", base, KEY, document["applications"][0]["args"]["ledger"]["url"]),
                App(
                    "strict",
                    f"{base}/strict",
                    KEY,
                    document["applications"][1]["args"]["ledger"]["url"],
                ),
                document,
                f"http://127.0.0.1:{metrics_port}/metrics",
                receiver,
            )
            cluster.deploy(document)
            yield cluster
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture
def main(cluster: Cluster) -> Iterator[App]:
    """The main application; afterwards nothing is held and the books balance."""
    yield cluster.main
    eventually(lambda: cluster.main.books()["held"] == 0, "every hold is resolved")


@pytest.fixture
def strict(cluster: Cluster) -> Iterator[App]:
    yield cluster.strict
    eventually(lambda: cluster.strict.books()["held"] == 0, "every hold is resolved")
