"""The server under test, seen from outside (HTTP), inside (processes) and below (its books).

Data flow: `System` -> the shared cluster, with a second node that can be lost, and nothing on it
but one application with two gateways and two simulated GPUs. Processes are found among those of
the cluster alone, so nothing else on the machine can be hit.
"""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
from ray import serve
from sqlalchemy import text

from serve_app.config import AppConfig, LedgerConfig
from serve_app.errors import LedgerUnavailable
from serve_app.metering import migrate
from serve_app.metering.database import Database
from serve_app.metering.records import AuditReport
from serve_app.metering.sql import SqlLedger
from tests.cluster import DEPLOY_S, Cluster
from tests.faults.reckoning import HoldRow
from tests.machine import MACHINE, eventually
from tests.postgres import Postgres

APP = "faults"
MODEL = "FluxModel-drawn"
KEY = "sk-fault-tests"
DATABASE = "flux"
GATEWAYS = 2
NODE = "second"
POLL_S = 0.2
"""Looking through all processes is work of its own."""
REQUEST_TIMEOUT_S = 8.0
HOLD_TTL_S = 20.0
LEASE_S = 8.0
"""Gateways die all the time here; a stall, or three in a row, is shorter. This and the two above
are multiplied by how slow the machine is."""
SWEEP_S = 1.0
OVERDUE_S = 5.0
"""A hold outlives its time by one sweep; a sweep may find the database away and come again."""
SLOT = {"faults": 1}
"""Each node has one, and each replica of the model needs one."""


@dataclass
class System:
    """One application, its database and its images."""

    cluster: Cluster
    folder: Path
    database: Postgres | None
    """None: SQLite."""
    application: dict[str, Any]
    has_node: bool = False

    @property
    def url(self) -> str:
        return self.cluster.url

    @property
    def ledger_url(self) -> str:
        url: str = self.application["args"]["ledger"]["url"]
        return url

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def gateways(self) -> list[psutil.Process]:
        return self.cluster.processes(f"ray::ServeReplica:{APP}:Gateway")

    def models(self) -> list[psutil.Process]:
        return self.cluster.processes(f"ray::ServeReplica:{APP}:{MODEL}")

    def proxies(self) -> list[psutil.Process]:
        return self.cluster.processes("ray::ProxyActor")

    def controllers(self) -> list[psutil.Process]:
        return self.cluster.processes("ray::ServeController")

    def add_node(self) -> None:
        """A second machine with a GPU of its own, as far as Ray knows."""
        self.cluster.nodes.add(NODE, num_cpus=4, resources=SLOT)
        self.has_node = True

    def kill_node(self) -> None:
        """All of the second node at once."""
        self.has_node = False
        self.cluster.nodes.kill(NODE)

    def deploy(self) -> None:
        self.cluster.deploy(self.application)
        eventually(self.healthy, "the application runs", DEPLOY_S)

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
            return httpx.get(f"{self.url}{path}", timeout=MACHINE.allow(10)).status_code == 200
        except httpx.TransportError:
            return False

    def audit(self) -> AuditReport:
        async def read() -> AuditReport:
            ledger = await SqlLedger.open(LedgerConfig(url=self.ledger_url))
            try:
                return await ledger.admin.audit(MACHINE.allow(OVERDUE_S))
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
        eventually(lambda: not self.audit().overdue, "expired holds are swept")

    def settled(self) -> bool:
        """Every hold has ended, and what dead gateways have not sent is refunded."""
        try:
            return all(hold.ended for hold in self.holds())
        except LedgerUnavailable:
            return False


def prepare(cluster: Cluster, folder: Path, database: Postgres | None) -> System:
    """Books with one rich account, and an application that is not deployed yet."""
    folder.mkdir()
    if database is None:
        url = f"sqlite+aiosqlite:///{folder}/ledger.db"
    else:
        database.sql(f"CREATE DATABASE {DATABASE}")
        url = database.url(DATABASE)
    migrate.upgrade(url)
    args = {
        "public_url": cluster.url,
        "models": [
            {
                "id": "drawn",
                "source": "simulated:h200:schnell",
                "resources": SLOT,
                "num_cpus": 0.1,
                "engine": {"warm_up_sizes": ["256x256", "512x512"], "simulation": {"load_s": 0}},
            }
        ],
        "ledger": {
            "url": url,
            "migrate_on_start": database is None,  # one machine does, a cluster runs a job
            "hold_ttl_s": ceil(MACHINE.allow(HOLD_TTL_S)),
            "sweep_interval_s": SWEEP_S,
            "gateway_lease_s": MACHINE.allow(LEASE_S),
            "busy_timeout_s": 2,
        },
        "store": {"url": f"file://{folder}/images", "signing_key_file": f"{folder}/signing.key"},
        "limits": {"request_timeout_s": MACHINE.allow(REQUEST_TIMEOUT_S)},
        "development": {"key": KEY},
    }
    AppConfig.model_validate(args)
    # Serve's defaults notice a death after up to 10 s.
    probes = {"health_check_period_s": 1, "health_check_timeout_s": MACHINE.allow(10)}
    application = {
        "name": APP,
        "route_prefix": "/",
        "import_path": "serve_app.graph:build",
        "args": args,
        "deployments": [
            {"name": "Gateway", "num_replicas": GATEWAYS, **probes},
            {"name": MODEL, "num_replicas": 2, **probes},
        ],
    }
    return System(cluster, folder, database, application)


def send(process: psutil.Process, what: signal.Signals) -> bool:
    """Signal a process that may have ended meanwhile; whether it was there."""
    try:
        os.kill(process.pid, what)
    except ProcessLookupError:
        return False
    return True
