import asyncio
import sqlite3

import pytest
from ledger_bench import Bench, make_customer
from sqlalchemy import select
from test_ledger_races import run_together, start_python

from serve_app.config import LedgerConfig
from serve_app.errors import LedgerUnavailable
from serve_app.metering import migrate
from serve_app.metering.database import Database
from serve_app.metering.sql import SqlLedger
from serve_app.metering.tables import holds, metadata

TABLES = {"accounts", "api_keys", "holds", "entries", "usage_days", "acts", "gateways"}


@pytest.fixture
def postgresql(fresh_postgresql):
    """No other test gets what was migrated down and up again."""
    return fresh_postgresql


def test_the_migrated_schema_is_the_one_that_the_code_assumes(empty):
    async def run(act):
        database = Database(LedgerConfig(url=empty.url))
        async with database.write() as connection:
            await connection.run_sync(act)
        await database.close()

    asyncio.run(run(metadata.create_all))
    assumed = empty.schema()
    asyncio.run(run(metadata.drop_all))
    assert empty.schema() == []
    migrate.upgrade(empty.url)
    assert empty.schema() == assumed
    assert empty.tables() == TABLES


def test_an_upgrade_reaches_the_newest_revision_and_may_be_repeated(empty):
    migrate.upgrade(empty.url)
    assert migrate.current(empty.url) == migrate.head()
    before = empty.schema()
    migrate.upgrade(empty.url)
    assert empty.schema() == before


def test_a_downgrade_takes_everything_away_and_an_upgrade_brings_it_back(backend):
    before = backend.schema()

    async def use():
        bench = Bench(LedgerConfig(url=backend.url))
        ledger = bench.ledger()
        customer = await make_customer(ledger)
        await ledger.capture((await ledger.hold(customer.job(5))).id, 5)
        await bench.close()

    asyncio.run(use())
    migrate.downgrade(backend.url)
    assert backend.schema() == []
    assert migrate.current(backend.url) is None
    migrate.upgrade(backend.url)
    assert backend.schema() == before
    asyncio.run(use())


def test_books_with_every_kind_of_hold_survive_the_way_down_to_before_refunds_and_up_again(backend):
    """The old tables know no refund: what was given back is, there, as if never charged."""

    async def use():
        bench = Bench(LedgerConfig(url=backend.url))
        ledger = bench.ledger()
        alice = await make_customer(ledger)
        await ledger.release((await ledger.hold(alice.job(1))).id)
        await ledger.hold(alice.job(2, ttl_s=1))
        bench.clock.advance(2)
        await ledger.expire_holds()
        await ledger.hold(alice.job(3))
        keyed = await ledger.hold(alice.job(4, idempotency_key="order-17"))
        await ledger.capture(keyed.id, 4, '{"images": []}')
        await ledger.beat()
        lost = await ledger.hold(alice.job(5))
        await ledger.capture(lost.id, 5, undelivered=True)
        await ledger._sweeps.inherit([ledger._id])
        unsent = await ledger.hold(alice.job(6))
        await ledger.capture(unsent.id, 6, undelivered=True)
        await bench.close()

    async def look():
        bench = Bench(LedgerConfig(url=backend.url))
        ledger = bench.ledger()
        report = await ledger.admin.audit()
        assert report.balanced, report.findings
        (account,) = await ledger.admin.list_accounts()
        entries = await ledger.admin.list_entries()
        keyed = await ledger.find_hold(account.balance.id, "order-17")
        async with ledger._database.read() as connection:
            found = await connection.execute(select(holds.c.state, holds.c.units))
            states = sorted(tuple(row) for row in found)
        await bench.close()
        assert keyed is not None
        assert keyed.reply == '{"images": []}'
        return account, states, [(one.kind, one.units) for one in entries]

    asyncio.run(use())
    before = backend.schema()
    account, states, entries = asyncio.run(look())
    rest = [("captured", 4), ("captured", 6), ("expired", 2), ("open", 3)]
    assert states == [*rest, ("refunded", 5), ("released", 1)]
    assert entries.count(("refund", 5)) == entries.count(("capture", -5)) == 1
    migrate.downgrade(backend.url, "0004")
    assert "undelivered_by" not in " ".join(backend.schema())
    with pytest.raises((sqlite3.IntegrityError, RuntimeError), match="ck_holds_state"):
        backend.execute("UPDATE holds SET state = 'refunded' WHERE state = 'released'")
    migrate.upgrade(backend.url)
    assert backend.schema() == before
    again = asyncio.run(look())
    kept = [one for one in entries if one not in {("refund", 5), ("capture", -5)}]
    assert again == (account, [*rest, ("released", 1), ("released", 5)], kept)


def test_a_failed_upgrade_leaves_nothing_behind(empty):
    empty.execute("CREATE TABLE holds (mine integer)")  # in the way of the third table
    with pytest.raises(LedgerUnavailable):
        migrate.upgrade(empty.url)
    assert empty.tables() == {"holds"}


UPGRADER = """
import sys
from serve_app.metering import migrate
from serve_app.metering.database import Database
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(sys.argv[1])
print(migrate.current(sys.argv[1]))
"""


def test_processes_that_upgrade_one_fresh_database_at_once_all_succeed(empty):
    processes = [start_python(UPGRADER, empty.url) for _ in range(3)]
    assert run_together(processes) == [migrate.head()] * 3
    assert empty.tables() == TABLES


async def test_replicas_that_start_at_once_open_one_fresh_ledger(empty):
    config = LedgerConfig(url=empty.url, migrate_on_start=True)
    ledgers = await asyncio.gather(*(SqlLedger.open(config) for _ in range(4)))
    for ledger in ledgers:
        await ledger.ping()
        await ledger.close()


async def test_a_ledger_is_not_migrated_unasked(empty):
    ledger = await SqlLedger.open(LedgerConfig(url=empty.url))
    with pytest.raises(LedgerUnavailable):
        await ledger.ping()
    await ledger.close()
    assert empty.tables() == set()


def test_an_upgrade_that_cannot_get_the_lock_says_that_the_ledger_is_unavailable(tmp_path):
    path = tmp_path / "ledger.db"
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("PRAGMA journal_mode = WAL")
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable):
        migrate.upgrade(f"sqlite:///{path}", wait_s=0.1)
    blocker.close()


def test_an_upgrade_outlasts_a_lock_that_sqlite_itself_does_not_wait_for(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # of a file not yet in WAL mode, as a new one is
    attempt, migrated = migrate._attempt, []

    async def unblock_after_the_first(*values, **options):
        migrated.append(await attempt(*values, **options))
        if len(migrated) == 1:
            blocker.execute("ROLLBACK")
        return migrated[-1]

    monkeypatch.setattr(migrate, "_attempt", unblock_after_the_first)
    migrate.upgrade(f"sqlite:///{path}")
    assert migrated == [False, True]
    blocker.close()
    assert migrate.current(f"sqlite:///{path}") == migrate.head()


def test_an_upgrade_of_postgresql_waits_for_another(empty_postgresql):
    database = empty_postgresql
    lock = f"SELECT pg_advisory_xact_lock({migrate.POSTGRES_LOCK})"
    with database.server.during(lock, database.name):
        with pytest.raises(LedgerUnavailable):
            migrate.upgrade(database.url, wait_s=0.1)
    assert database.tables() == set()
    migrate.upgrade(database.url)
    assert migrate.current(database.url) == migrate.head()


ACCOUNT = "accounts (id, name, granted, captured, held, created_at) VALUES"


@pytest.mark.parametrize(
    ("row", "constraint"),
    [
        (f"{ACCOUNT} ('a', 'a', 10, 5, 6, '2026-01-01')", "ck_accounts_available"),
        (f"{ACCOUNT} ('a', 'a', 10, 0, -1, '2026-01-01')", "ck_accounts_held"),
        (
            "entries (account_id, kind, units, created_at, memo)"
            " VALUES ('a', 'grant', -1, '2026-01-01', '')",
            "ck_entries_kind",
        ),
        (
            "entries (account_id, kind, units, created_at, memo)"
            " VALUES ('a', 'refund', 1, '2026-01-01', '')",
            "ck_entries_kind",
        ),
    ],
)
def test_the_database_itself_refuses_what_the_books_cannot_hold(backend, row, constraint):
    with pytest.raises((sqlite3.IntegrityError, RuntimeError), match=constraint):
        backend.execute(f"INSERT INTO {row}")
