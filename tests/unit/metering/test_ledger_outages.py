"""An outage is `LedgerUnavailable`: never a free picture, never a 401 for a good key."""

import asyncio
import sqlite3

import pytest
from ledger_bench import Bench

from serve_app.config import LedgerConfig
from serve_app.errors import ConfigError, LedgerUnavailable
from serve_app.metering.database import parse_url
from serve_app.metering.sql import SqlLedger


def calls(ledger, job):
    return [
        ("authenticate", lambda: ledger.authenticate("sk-any")),
        ("hold", lambda: ledger.hold(job)),
        ("capture", lambda: ledger.capture("hold_any", 1)),
        ("release", lambda: ledger.release("hold_any")),
        ("expire_holds", lambda: ledger.expire_holds()),
        ("find_hold", lambda: ledger.find_hold("acct", "key")),
        ("balance", lambda: ledger.balance("acct")),
        ("ping", lambda: ledger.ping()),
        ("audit", lambda: ledger.admin.audit()),
        ("create_account", lambda: ledger.admin.create_account("bob")),
        ("list_keys", lambda: ledger.admin.list_keys()),
    ]


async def assert_down(ledger, job, names=None):
    for name, call in calls(ledger, job):
        if names is None or name in names:
            with pytest.raises(LedgerUnavailable) as caught:
                await call()
            assert caught.value.__cause__ is not None, name
            assert "sqlite" not in caught.value.message.lower()


def no_database(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def no_tables(tmp_path):
    return tmp_path / "empty.db"


def garbage(tmp_path):
    path = tmp_path / "garbage.db"
    path.write_bytes(b"not a database, not even close" * 100)
    return path


@pytest.mark.parametrize("broken", [no_database, no_tables, garbage])
async def test_a_database_that_cannot_be_used_is_an_outage_for_every_call(tmp_path, alice, broken):
    bench = Bench(LedgerConfig(url=f"sqlite:///{broken(tmp_path)}", busy_timeout_s=0.1))
    await assert_down(bench.ledger(), alice.job())
    await bench.close()


WRITES = {"hold", "capture", "release", "create_account"}


async def test_a_locked_database_is_an_outage_for_writes_and_reads_go_on(bench, alice):
    impatient = bench.ledger(busy_timeout_s=0.05)
    blocker = sqlite3.connect(parse_url(bench.config.url).database, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    await assert_down(impatient, alice.job(), WRITES)
    assert await impatient.authenticate(alice.secret) == alice.principal
    blocker.execute("ROLLBACK")
    blocker.close()
    hold = await impatient.hold(alice.job(10))
    assert hold.available_units == 90


async def test_an_outage_ends_when_the_database_returns(bench, tmp_path, migrated_sqlite):
    path = tmp_path / "later.db"
    ledger = bench.ledger(url=f"sqlite:///{path}")
    with pytest.raises(LedgerUnavailable):
        await ledger.ping()
    from serve_app.metering import migrate

    await asyncio.to_thread(migrate.upgrade, f"sqlite:///{path}")
    await ledger.ping()


async def test_a_stuck_writer_of_the_same_process_is_an_outage_too(bench, alice):
    ledger = bench.ledger(busy_timeout_s=0.05)
    async with ledger._database.write():
        with pytest.raises(LedgerUnavailable):
            await ledger.hold(alice.job(10))
    assert await ledger.hold(alice.job(10))


async def test_an_empty_pool_is_an_outage(bench, alice):
    ledger = bench.ledger(busy_timeout_s=0.05, pool_size=1)
    async with ledger._database.read():
        with pytest.raises(LedgerUnavailable):
            await ledger.authenticate(alice.secret)
    assert await ledger.authenticate(alice.secret)


async def test_a_postgresql_that_is_not_there_is_an_outage_or_a_missing_driver():
    url = "postgresql://nobody@127.0.0.1:1/none"
    bench = Bench(LedgerConfig(url=url, busy_timeout_s=1))
    with pytest.raises((ConfigError, LedgerUnavailable), match=r"driver|unavailable"):
        await bench.ledger().ping()
    await bench.close()


async def test_cancelled_reads_leave_the_ledger_usable(bench, alice):
    ledger = bench.ledger(pool_size=2)
    for turns in range(40):
        task = asyncio.create_task(ledger.authenticate(alice.secret))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await ledger.authenticate(alice.secret) == alice.principal


async def test_closing_is_final_for_work_and_harmless_to_repeat(bench, alice):
    ledger = bench.ledger()
    await ledger.hold(alice.job(1))
    await ledger.close()
    await ledger.close()


def test_a_url_takes_its_variables_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LEDGER_FILE", f"{tmp_path}/a.db")
    assert parse_url("sqlite+aiosqlite:///${LEDGER_FILE}").database == f"{tmp_path}/a.db"
    monkeypatch.delenv("LEDGER_FILE")
    with pytest.raises(ConfigError, match="LEDGER_FILE"):
        parse_url("sqlite+aiosqlite:///${LEDGER_FILE}")


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("sqlite:///a.db", "sqlite+aiosqlite"),
        ("postgresql://h/db", "postgresql+asyncpg"),
        ("postgresql+psycopg://h/db", "postgresql+psycopg"),
    ],
)
def test_a_url_without_a_driver_gets_an_async_one(url, driver):
    assert parse_url(url).drivername == driver


@pytest.mark.parametrize(
    "url", ["", "secret-password", "sqlite://", "sqlite:///:memory:", "sqlite+aiosqlite://"]
)
def test_a_url_that_cannot_be_a_ledger_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "secret-password" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite+pysqlite:///a.db", "oracle://h/db", "nonsense://h/db"])
def test_a_driver_that_is_not_async_or_not_known_is_refused(url):
    with pytest.raises(ConfigError, match="driver"):
        Bench(LedgerConfig(url=url)).ledger()


async def test_a_relative_file_gets_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = "sqlite+aiosqlite:///data/deep/ledger.db"
    ledger = await SqlLedger.open(LedgerConfig(url=url, migrate_on_start=True))
    await ledger.ping()
    await ledger.close()
    assert (tmp_path / "data/deep/ledger.db").exists()


async def test_sqlite_is_set_up_as_documented(bench):
    async with bench.ledger()._database.read() as connection:
        for pragma, expected in [
            ("journal_mode", "wal"),
            ("synchronous", 1),
            ("foreign_keys", 1),
            ("busy_timeout", 20_000),
        ]:
            found = await connection.exec_driver_sql(f"PRAGMA {pragma}")
            assert found.scalar_one() == expected
