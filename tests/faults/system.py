"""The server under test, seen from outside (HTTP), inside (processes) and below (its books).

Data flow: `Platform`, a Ray cluster of this test process with a second node that can be lost ->
`System`, one application on it with two gateways and two simulated GPUs. Processes are found among
the descendants of the test process alone, so nothing else on the machine can be hit.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from sqlalchemy import text

from serve_app.config import AppConfig, LedgerConfig
from serve_app.errors import LedgerUnavailable
from serve_app.metering import migrate
from serve_app.metering.database import Database
from serve_app.metering.records import AuditReport
from serve_app.metering.sql import SqlLedger
from tests.faults.reckoning import HoldRow
from tests.postgres import Postgres

APP = "faults"
MODEL = "FluxModel-drawn"
KEY = "sk-fault-tests"
DATABASE = "flux"
GATEWAYS = 2
DEPLOY_TIMEOUT_S = 240
POLL_S = 0.2
"""Looking through all processes is work of its own."""
REQUEST_TIMEOUT_S = 8.0
HOLD_TTL_S = 20
LEASE_S = 8.0
"""Gateways die all the time here; a stall, or three in a row, is shorter."""
SWEEP_S = 1.0
OVERDUE_S = 5.0
"""A hold outlives its time by one sweep; a sweep may find the database away and come again."""


def eventually(check: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    """Poll until `check` returns something true; every wait of these tests goes through here."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(POLL_S)  # polling with a deadline
    raise AssertionError(f"timed out: {what}")


@dataclass
class Platform:
    """A Ray cluster of this process."""

    folder: Path
    port: int
    controller_options: dict[str, Any]
    second: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_node(self) -> None:
        """A second machine with a GPU of its own, as far as Ray knows."""
        address = ray.get_runtime_context().gcs_address
        ray_command = str(Path(sys.executable).with_name("ray"))
        options = ["--address", address, "--num-cpus=4", "--num-gpus=1", "--block"]
        # One a machine: another would read the same files once more.
        options += ["--object-store-memory=100000000", "--include-log-monitor=False"]
        with (self.folder / "node.log").open("ab") as log:
            self.second = subprocess.Popen([ray_command, "start", *options], stdout=log, stderr=log)
        eventually(lambda: len(alive_nodes()) == 2, "the second node joins")

    def kill_node(self) -> None:
        """All of the second node at once."""
        assert self.second is not None
        node = psutil.Process(self.second.pid)
        for process in [*node.children(recursive=True), node]:
            send(process, signal.SIGKILL)
        self.second.wait()
        self.second = None

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of this cluster whose title starts so."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                words = process.cmdline()
                if words and words[0].startswith(title) and self._started(process):
                    found.append(process)
            except psutil.Error:
                continue  # gone meanwhile
        return found

    def _started(self, process: psutil.Process) -> bool:
        """Whether a raylet of this cluster did: the test process may hold others' clusters, too."""
        raylet = process.parent()
        return raylet is not None and any(str(self.folder) in word for word in raylet.cmdline())

    def deploy(self, document: dict[str, Any]) -> None:
        """What `serve deploy` does with a config file."""
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(document))


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def platform(folder: Path, port: int, controller_options: dict[str, Any]) -> Iterator[Platform]:
    """Ray and Serve with one node, both gone afterwards."""
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=str(folder / "r"),
        log_to_driver=False,
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        controller_options=controller_options,
    )
    made = Platform(folder, port, controller_options)
    try:
        yield made
    finally:
        serve.shutdown()
        if made.second is not None:
            made.kill_node()
        ray.shutdown()


@dataclass
class System:
    """One application, its database and its images."""

    platform: Platform
    folder: Path
    database: Postgres | None
    """None: SQLite."""
    document: dict[str, Any]

    @property
    def url(self) -> str:
        return self.platform.url

    @property
    def ledger_url(self) -> str:
        url: str = self.document["applications"][0]["args"]["ledger"]["url"]
        return url

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def gateways(self) -> list[psutil.Process]:
        return self.platform.processes(f"ray::ServeReplica:{APP}:Gateway")

    def models(self) -> list[psutil.Process]:
        return self.platform.processes(f"ray::ServeReplica:{APP}:{MODEL}")

    def proxies(self) -> list[psutil.Process]:
        return self.platform.processes("ray::ProxyActor")

    def controllers(self) -> list[psutil.Process]:
        return self.platform.processes("ray::ServeController")

    def deploy(self, document: dict[str, Any] | None = None) -> None:
        self.platform.deploy(document or self.document)
        eventually(self.healthy, "the application runs", DEPLOY_TIMEOUT_S)

    def healthy(self) -> bool:
        """All replicas are up, as Serve's controller and a client see it."""
        try:
            app = serve.status().applications.get(APP)
        except ray.exceptions.RayError:
            return False  # the controller is down
        if app is None or app.status != "RUNNING":
            return False
        wanted = {"Gateway": GATEWAYS, MODEL: 2}
        running = {
            name: one.replica_states.get("RUNNING", 0) for name, one in app.deployments.items()
        }
        processes = {"Gateway": len(self.gateways()), MODEL: len(self.models())}
        return running == wanted and processes == wanted and self.answers("/ready")

    def answers(self, path: str = "/health") -> bool:
        try:
            return httpx.get(f"{self.url}{path}", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def audit(self) -> AuditReport:
        async def read() -> AuditReport:
            ledger = await SqlLedger.open(LedgerConfig(url=self.ledger_url))
            try:
                return await ledger.admin.audit(OVERDUE_S)
            finally:
                await ledger.close()

        return asyncio.run(read())

    def holds(self, prefix: str = "") -> list[HoldRow]:
        """Holds whose request ids start so."""
        query = text(
            "SELECT id, request_id, units, captured_units, state, undelivered_by, "
            "CAST(resolved_at AS TEXT) FROM holds "
            "WHERE request_id LIKE :pattern"
        )

        async def read() -> list[HoldRow]:
            database = Database(LedgerConfig(url=self.ledger_url))
            try:
                async with database.read() as connection:
                    found = await connection.execute(query, {"pattern": f"{prefix}%"})
                    return [HoldRow(*row) for row in found]
            finally:
                await database.close()

        return asyncio.run(read())

    def captured(self) -> int:
        """Units that all accounts paid."""

        async def read() -> int:
            ledger = await SqlLedger.open(LedgerConfig(url=self.ledger_url))
            try:
                accounts = await ledger.admin.list_accounts()
                return sum(account.balance.captured for account in accounts)
            finally:
                await ledger.close()

        return asyncio.run(read())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Somebody else writes to the ledger, and takes his time."""
        if self.database is not None:
            with self.database.during("LOCK TABLE accounts IN EXCLUSIVE MODE", DATABASE):
                yield
            return
        path = self.ledger_url.removeprefix("sqlite+aiosqlite:///")
        writer = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            writer.execute("BEGIN EXCLUSIVE")
            yield
            writer.execute("ROLLBACK")
        finally:
            writer.close()

    def check_balanced(self) -> None:
        """The books are right, in whatever state everything else is."""
        try:
            report = self.audit()
        except LedgerUnavailable:
            return  # another hand has just broken the database; the next look will see
        assert report.balanced, report

    def check_books(self) -> None:
        """They balance, and no hold has outlived its time."""
        report = self.audit()
        assert report.balanced, report
        eventually(lambda: not self.audit().overdue, "expired holds are swept", 30)

    def settled(self) -> bool:
        """Every hold has ended, and what dead gateways have not sent is refunded."""
        try:
            return all(hold.ended for hold in self.holds())
        except LedgerUnavailable:
            return False


def prepare(platform: Platform, folder: Path, database: Postgres | None) -> System:
    """Books with one rich account, and an application that is not deployed yet."""
    folder.mkdir()
    if database is None:
        url = f"sqlite+aiosqlite:///{folder}/ledger.db"
    else:
        database.sql(f"CREATE DATABASE {DATABASE}")
        url = database.url(DATABASE)
    migrate.upgrade(url)
    args = {
        "public_url": platform.url,
        "models": [
            {
                "id": "drawn",
                "source": "simulated:h200:schnell",
                "num_gpus": 1,
                "num_cpus": 0.1,
                "engine": {"warm_up_sizes": ["256x256", "512x512"], "simulation": {"load_s": 0}},
            }
        ],
        "ledger": {
            "url": url,
            "migrate_on_start": database is None,  # one machine does, a cluster runs a job
            "hold_ttl_s": HOLD_TTL_S,
            "sweep_interval_s": SWEEP_S,
            "gateway_lease_s": LEASE_S,
            "busy_timeout_s": 2,
        },
        "store": {"url": f"file://{folder}/images", "signing_key_file": f"{folder}/signing.key"},
        "limits": {"request_timeout_s": REQUEST_TIMEOUT_S},
        "development": {"key": KEY},
    }
    AppConfig.model_validate(args)
    # Serve's defaults notice a death after up to 10 s.
    probes = {"health_check_period_s": 1, "health_check_timeout_s": 10}
    document = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": platform.port},
        "controller_options": platform.controller_options,
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "serve_app.graph:build",
                "args": args,
                "deployments": [
                    {"name": "Gateway", "num_replicas": GATEWAYS, **probes},
                    {"name": MODEL, "num_replicas": 2, **probes},
                ],
            }
        ],
    }
    return System(platform, folder, database, document)


def send(process: psutil.Process, what: signal.Signals) -> bool:
    """Signal a process that may have ended meanwhile; whether it was there."""
    try:
        os.kill(process.pid, what)
    except ProcessLookupError:
        return False
    return True
