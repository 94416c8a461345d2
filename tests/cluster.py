"""The Ray cluster that the tests of servers share, and the applications on it.

Data flow: `Cluster` -> `tests.nodes` (Ray without a dashboard, in a process of its own) -> this
test process joins as a driver, so that tests can look at replicas and kill them -> Serve -> a
trivial application, which measures the machine -> `deploy` puts applications beside each other.
"""

import asyncio
import contextlib
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
import yaml
from ray import serve
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig, LedgerConfig
from serve_app.metering.sql import SqlLedger
from tests.machine import MACHINE, eventually
from tests.nodes import Nodes
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
LOCAL = ROOT / "configs" / "local.yaml"
KEY = "sk-integration-tests"
DEPLOY_S = 120.0
HEAD: dict[str, Any] = {
    "num_cpus": 4,
    "num_gpus": 6,  # two for `main`, four for `elastic`
    "resources": {"faults": 1},
    "object_store_memory": 300_000_000,
    "include_log_monitor": False,  # nobody reads what replicas print
}
QUICK: dict[str, Any] = {"health_check_period_s": 1, "graceful_shutdown_wait_loop_s": 0.1}
"""Serve notices deaths after up to 10 s by default, and idle replicas stop after 2 s."""


@dataclass(frozen=True)
class App:
    """One deployed application, seen from outside (HTTP) and inside (replicas, ledger)."""

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

    def running(self, deployment: str) -> int:
        """Replicas that serve."""
        states = serve.status().applications[self.name].deployments[deployment].replica_states
        return int(states.get("RUNNING", 0))

    def ledger_totals(self, *, verified: bool = True) -> dict[str, int]:
        """Captured and held units of all accounts, after verifying the ledger."""

        async def read() -> dict[str, int]:
            ledger = await SqlLedger.open(LedgerConfig(url=self.ledger_url))
            try:
                if verified:
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


class Cluster:
    """Ray, Serve and their processes; `applications` are those that are deployed, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self.controller_options = yaml.safe_load(LOCAL.read_text())["controller_options"]
        self.applications: dict[str, dict[str, Any]] = {}
        self.seen: set[str] = set()
        """Names of all applications so far; Ray goes on to export their metrics."""
        self.nodes = Nodes(
            folder,
            metrics_export_port=metrics_port,
            dashboard_port=free_port(),  # another Ray on this machine may hold the usual one
            **HEAD,
        )

    def join(self) -> None:
        """Become a driver of the cluster, start Serve, and measure the machine."""
        ray.init(address=self.nodes.address, log_to_driver=False)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": self.port},
            controller_options=self.controller_options,
        )
        began = time.monotonic()
        serve.run(_trivial(), name="trivial", route_prefix="/trivial")
        httpx.get(f"{self.url}/trivial", timeout=MACHINE.allow()).raise_for_status()
        MACHINE.started_serve(time.monotonic() - began)
        serve.delete("trivial", _blocking=False)

    def stop(self) -> None:
        """Leave, and end all of it at once."""
        _set_global_client(None)
        ray.shutdown()
        self.nodes.stop()

    def deploy(self, *applications: dict[str, Any], wait: bool = True) -> None:
        """Add applications, or change them; what `serve deploy` does with a config file."""
        for application in applications:
            self.applications[application["name"]] = copy.deepcopy(application)
            self.seen.add(application["name"])
        self._apply()
        if wait:
            eventually(self._all_run, "applications run", DEPLOY_S)

    def remove(self, *names: str) -> None:
        """Take applications away; returns when they are gone."""
        for name in names:
            self.applications.pop(name, None)
        self._apply()
        eventually(
            lambda: not set(names) & set(serve.status().applications),
            f"{', '.join(names)} are gone",
            DEPLOY_S,
        )

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of this cluster whose title starts so: no other's can be hit."""
        found = []
        for process in psutil.Process(self.nodes.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # gone meanwhile
                words = process.cmdline()
                if words and words[0].startswith(title):
                    found.append(process)
        return found

    def log_entries(self, application: str, component: str, **fields: Any) -> list[dict[str, Any]]:
        """Lines with these fields in the JSON logs of the replicas of a deployment."""
        names = f"ray/session_2*/logs/serve/replica_{application}_{component}_*.log"
        lines = [
            line
            for file in self.folder.glob(names)
            for line in file.read_text("utf-8").splitlines()
        ]
        entries = [json.loads(line) for line in lines]
        return [one for one in entries if {**one, **fields} == one]

    def output(self) -> str:
        """All that replicas of all applications have written to stderr."""
        files = self.folder.glob("ray/session_2*/logs/worker-*.err")
        return "".join(path.read_text() for path in files)

    def _apply(self) -> None:
        document = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "controller_options": self.controller_options,
            "applications": list(self.applications.values()),
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(document))

    def _all_run(self) -> bool:
        states = serve.status().applications
        for name in self.applications:
            state = states.get(name)
            assert state is None or state.status != "DEPLOY_FAILED", (name, state.message)
        return all(
            name in states and states[name].status == "RUNNING" for name in self.applications
        )


def _trivial() -> serve.Application:
    # Inside a function, Ray sends the class itself: workers need not find this module.
    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Trivial:
        def __call__(self) -> str:
            return "ok"

    application: serve.Application = Trivial.bind()
    return application


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        cluster.join()
        yield cluster
    finally:
        cluster.stop()


def application(
    folder: Path, name: str, url: str, *deployments: dict[str, Any], **args: Any
) -> dict[str, Any]:
    """An entry of `applications:` at `/NAME`, with a ledger and images of its own."""
    own = {
        "public_url": f"{url}/{name}",
        "ledger": {
            "url": f"sqlite+aiosqlite:///{folder}/{name}.db",
            "migrate_on_start": True,
            **args.pop("ledger", {}),
        },
        "store": {
            "url": f"file://{folder}/{name}-images",
            "signing_key_file": f"{folder}/{name}.key",
        },
        "development": {"key": KEY},
        **args,
    }
    AppConfig.model_validate(own)
    return {
        "name": name,
        "route_prefix": f"/{name}",
        "import_path": "serve_app.graph:build",
        "args": own,
        "deployments": list(deployments),
    }


def app_of(application: dict[str, Any]) -> App:
    args = application["args"]
    return App(application["name"], args["public_url"], KEY, args["ledger"]["url"])


def settled(app: App, what: str = "every hold is resolved") -> int:
    """Units captured, once nothing is held any more."""
    eventually(lambda: app.ledger_totals(verified=False)["held"] == 0, what)
    return app.ledger_totals()["captured"]
