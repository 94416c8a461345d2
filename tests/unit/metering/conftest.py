"""Ledgers on real databases. A backend is an entry of `BACKENDS` and a `NAME_url` fixture."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ledger_bench import Bench, Customer, make_customer

from serve_app.config import LedgerConfig
from serve_app.metering import migrate
from serve_app.metering.sql import SqlLedger


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger to copy: migrating for every test would be most of the run."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    path = tmp_path / "ledger.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite+aiosqlite:///{path}"


BACKENDS = ["sqlite"]


@pytest.fixture(params=BACKENDS)
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of each backend."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
async def bench(ledger_url: str) -> AsyncIterator[Bench]:
    made = Bench(LedgerConfig(url=ledger_url, busy_timeout_s=20))
    yield made
    await made.close()


@pytest.fixture
def ledger(bench: Bench) -> SqlLedger:
    return bench.ledger()


@pytest.fixture
async def alice(ledger: SqlLedger) -> Customer:
    return await make_customer(ledger)
