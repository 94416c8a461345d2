"""Ledgers on real databases. A backend is an entry of `BACKENDS` and fixtures of its name."""

from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from backends import Backend, PostgresDatabase, Sqlite, copy_of, copy_of_template, make_template
from ledger_bench import Bench, Customer, Fleet, make_customer

from serve_app.config import LedgerConfig
from serve_app.metering import migrate
from serve_app.metering.sql import SqlLedger
from tests.postgres import Postgres, postgres

BACKENDS = ["sqlite", "postgresql"]
_numbers = count()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger to copy: migrating for every test would be most of the run."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One for all tests of a process, but for those that kill theirs."""
    with postgres() as server:
        make_template(server)
        yield server


@pytest.fixture(scope="session")
def used_postgresql() -> list[PostgresDatabase]:
    """Databases whose tests are over and have changed nothing but rows."""
    return []


@pytest.fixture
def sqlite(migrated_sqlite: Path, tmp_path: Path) -> Sqlite:
    return copy_of(migrated_sqlite, tmp_path / "ledger.db")


@pytest.fixture
def fresh_postgresql(postgres_server: Postgres) -> PostgresDatabase:
    """For tests that change more than rows."""
    return copy_of_template(postgres_server, f"ledger_{next(_numbers)}")


@pytest.fixture
def postgresql(
    postgres_server: Postgres, used_postgresql: list[PostgresDatabase]
) -> Iterator[PostgresDatabase]:
    """An empty ledger: a used one emptied, where there is one, since making one takes longer."""
    if used_postgresql:
        database = used_postgresql.pop()
        database.clear()
    else:
        database = copy_of_template(postgres_server, f"ledger_{next(_numbers)}")
    yield database
    if database.as_made:
        used_postgresql.append(database)


@pytest.fixture
def empty_sqlite(tmp_path: Path) -> Sqlite:
    return Sqlite(tmp_path / "new" / "folder" / "empty.db")


@pytest.fixture
def empty_postgresql(postgres_server: Postgres) -> PostgresDatabase:
    name = f"empty_{next(_numbers)}"
    postgres_server.sql(f"CREATE DATABASE {name}")
    return PostgresDatabase(postgres_server, name)


@pytest.fixture
def own_server() -> Iterator[tuple[Postgres, PostgresDatabase]]:
    """A server that a test may kill."""
    with postgres() as server:
        make_template(server)
        yield server, copy_of_template(server, "ledger")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """A migrated, empty database of each kind."""
    made: Backend = request.getfixturevalue(request.param)
    return made


@pytest.fixture(params=BACKENDS)
def empty(request: pytest.FixtureRequest) -> Backend:
    """A database of each kind that nobody has migrated."""
    made: Backend = request.getfixturevalue(f"empty_{request.param}")
    return made


@pytest.fixture
async def make_bench() -> AsyncIterator[Callable[..., Bench]]:
    """Makes benches for any URL; closes them also when the test has failed."""
    made: list[Bench] = []

    def make(url: str, busy_timeout_s: float = 20) -> Bench:
        made.append(Bench(LedgerConfig(url=url, busy_timeout_s=busy_timeout_s)))
        return made[-1]

    yield make
    for bench in made:
        await bench.close()


@pytest.fixture
def bench(backend: Backend, make_bench: Callable[..., Bench]) -> Bench:
    return make_bench(backend.url)


@pytest.fixture
def fleet(bench: Bench) -> Fleet:
    return Fleet(bench)


@pytest.fixture
def ledger(bench: Bench) -> SqlLedger:
    return bench.ledger()


@pytest.fixture
async def alice(ledger: SqlLedger) -> Customer:
    return await make_customer(ledger)
