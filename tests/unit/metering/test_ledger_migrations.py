import asyncio
import sqlite3
import threading

import pytest
from ledger_bench import Bench, make_customer
from sqlalchemy import create_engine, inspect
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable
from test_ledger_races import run_together, start_python

from serve_app.config import LedgerConfig
from serve_app.errors import LedgerUnavailable
from serve_app.metering import migrate
from serve_app.metering.sql import SqlLedger
from serve_app.metering.tables import metadata

TABLES = {"accounts", "api_keys", "holds", "entries"}


def schema(path):
    """Every table and index as SQLite keeps it: columns, types, checks, partial indexes."""
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%' AND sql IS NOT NULL"
    ).fetchall()
    connection.close()
    return {name: " ".join(sql.split()) for name, sql in rows}


def test_the_migrated_schema_is_the_one_that_the_code_assumes(tmp_path):
    migrate.upgrade(f"sqlite:///{tmp_path}/migrated.db")
    engine = create_engine(f"sqlite:///{tmp_path}/created.db")
    metadata.create_all(engine)
    engine.dispose()
    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "created.db")
    assert set(schema(tmp_path / "migrated.db")) > TABLES


def test_an_upgrade_reaches_the_newest_revision_and_may_be_repeated(tmp_path):
    url = f"sqlite:///{tmp_path}/new/folder/ledger.db"
    migrate.upgrade(url)
    assert migrate.current(url) == migrate.head()
    before = schema(tmp_path / "new/folder/ledger.db")
    migrate.upgrade(url)
    assert schema(tmp_path / "new/folder/ledger.db") == before


def test_a_downgrade_takes_everything_away_and_an_upgrade_brings_it_back(tmp_path):
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    migrate.upgrade(url)
    before = schema(path)

    async def use():
        bench = Bench(LedgerConfig(url=url))
        ledger = bench.ledger()
        customer = await make_customer(ledger)
        await ledger.capture((await ledger.hold(customer.job(5))).id, 5)
        await bench.close()

    asyncio.run(use())
    migrate.downgrade(url)
    assert schema(path) == {}
    assert migrate.current(url) is None
    migrate.upgrade(url)
    assert schema(path) == before


def test_a_failed_upgrade_leaves_nothing_behind(tmp_path):
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE holds (mine)")  # in the way of the third table
    connection.close()
    with pytest.raises(LedgerUnavailable):
        migrate.upgrade(f"sqlite:///{path}")
    assert set(schema(path)) == {"holds"}


UPGRADER = """
import sys
from serve_app.metering import migrate
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(sys.argv[1])
print(migrate.current(sys.argv[1]))
"""


@pytest.mark.parametrize("attempt", range(2))
def test_processes_that_upgrade_one_fresh_file_at_once_all_succeed(tmp_path, attempt):
    url = f"sqlite:///{tmp_path}/fresh/ledger.db"
    processes = [start_python(UPGRADER, url) for _ in range(3)]
    assert run_together(processes) == [migrate.head()] * 3
    assert set(schema(tmp_path / "fresh/ledger.db")) > TABLES


async def test_replicas_that_start_at_once_open_one_fresh_ledger(tmp_path):
    config = LedgerConfig(url=f"sqlite:///{tmp_path}/ledger.db", migrate_on_start=True)
    ledgers = await asyncio.gather(*(SqlLedger.open(config) for _ in range(4)))
    for ledger in ledgers:
        await ledger.ping()
        await ledger.close()


async def test_a_ledger_is_not_migrated_unasked(tmp_path):
    ledger = await SqlLedger.open(LedgerConfig(url=f"sqlite:///{tmp_path}/ledger.db"))
    with pytest.raises(LedgerUnavailable):
        await ledger.ping()
    await ledger.close()


def test_an_upgrade_that_cannot_get_the_lock_says_that_the_ledger_is_unavailable(tmp_path):
    path = tmp_path / "ledger.db"
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("PRAGMA journal_mode = WAL")
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable):
        migrate.upgrade(f"sqlite:///{path}", wait_s=0.1)
    blocker.close()


def test_an_upgrade_outlasts_a_lock_that_sqlite_itself_does_not_wait_for(tmp_path):
    path = tmp_path / "ledger.db"
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")  # of a file not yet in WAL mode, as a new one is
    unblock = threading.Timer(0.5, blocker.execute, ["ROLLBACK"])
    unblock.start()
    migrate.upgrade(f"sqlite:///{path}")
    unblock.join()
    blocker.close()
    assert migrate.current(f"sqlite:///{path}") == migrate.head()


def test_every_table_can_be_written_in_postgresql():
    dialect = postgresql.dialect()
    for table in metadata.sorted_tables:
        assert "BIGINT" in str(CreateTable(table).compile(dialect=dialect)) or (
            table.name == "api_keys"
        )
        for index in table.indexes:
            assert str(CreateIndex(index).compile(dialect=dialect)).startswith("CREATE")


def test_the_database_itself_refuses_an_overdraft(tmp_path):
    url = f"sqlite:///{tmp_path}/ledger.db"
    migrate.upgrade(url)
    engine = create_engine(url)
    names = {check["name"] for check in inspect(engine).get_check_constraints("accounts")}
    engine.dispose()
    assert "ck_accounts_available" in names
    connection = sqlite3.connect(tmp_path / "ledger.db")
    row = "INSERT INTO accounts VALUES ('a', 'a', 10, 5, 6, '2026-01-01', NULL)"
    with pytest.raises(sqlite3.IntegrityError, match="ck_accounts_available"):
        connection.execute(row)
    connection.close()
