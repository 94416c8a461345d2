"""An outage is `LedgerUnavailable`: never a free picture, never a 401 for a good key."""

import asyncio
from contextlib import suppress

import pytest
from ledger_bench import Bench, make_customer
from waiting import until_asked

from serve_app.config import LedgerConfig
from serve_app.errors import ConfigError, LedgerUnavailable
from serve_app.metering import migrate
from serve_app.metering.database import parse_url
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

JOB = HoldRequest("acct_any", "key_any", "req-1", "flux-mini", 1, 2, 2, 4, 4, 900)


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
            assert caught.value.message == "The ledger is unavailable right now.", name


def no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    return f"sqlite:///{tmp_path}/folder"


def no_tables(tmp_path):
    return f"sqlite:///{tmp_path}/empty.db"


def garbage(tmp_path):
    (tmp_path / "garbage.db").write_bytes(b"not a database, not even close" * 100)
    return f"sqlite:///{tmp_path}/garbage.db"


@pytest.mark.parametrize("broken", [no_file, no_tables, garbage])
async def test_a_file_that_cannot_be_used_is_an_outage_for_every_call(
    tmp_path, alice, broken, make_bench
):
    bench = make_bench(broken(tmp_path), busy_timeout_s=0.1)
    await assert_down(bench.ledger(), alice.job())


def no_server(_server, _name):
    return "postgresql://postgres@127.0.0.1:1/none"


def no_socket(_server, _name):
    return "postgresql://postgres@/none?host=/nonexistent"


def no_database(server, _name):
    return server.url("no_such_database")


def unknown_user(server, name):
    return server.url(name).replace("postgres@", "nobody_knows@")


def no_connections_left(server, name):
    server.sql(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 0")
    return server.url(name).replace("postgres@", f"{name}@")


def no_rights(server, name):
    server.sql(f"CREATE ROLE {name} LOGIN")
    return server.url(name).replace("postgres@", f"{name}@")


def unmigrated(server, name):
    return server.url(name)


@pytest.mark.parametrize(
    "broken",
    [no_server, no_socket, no_database, unknown_user, no_connections_left, no_rights, unmigrated],
)
async def test_a_server_that_refuses_is_an_outage_for_every_call(
    empty_postgresql, broken, make_bench
):
    url = broken(empty_postgresql.server, empty_postgresql.name)
    bench = make_bench(url, busy_timeout_s=5)
    await assert_down(bench.ledger(), JOB)


WRITES = {"hold", "capture", "release", "create_account"}


async def test_a_locked_database_is_an_outage_for_writes_and_reads_go_on(bench, backend, alice):
    impatient = bench.ledger(busy_timeout_s=0.1)
    with backend.locked():
        await assert_down(impatient, alice.job(), WRITES)
        assert await bench.ledger().authenticate(alice.secret) == alice.principal
    hold = await bench.ledger().hold(alice.job(10))
    assert hold.available_units == 90


async def test_a_database_that_may_only_be_read_is_an_outage_for_writes(postgresql, make_bench):
    bench = make_bench(postgresql.url)
    alice = await make_customer(bench.ledger())
    name = postgresql.name
    postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    standby = bench.ledger()
    await assert_down(standby, alice.job(), WRITES)
    assert await standby.authenticate(alice.secret) == alice.principal


async def test_an_outage_ends_when_the_database_returns(empty, make_bench):
    bench = make_bench(empty.url)
    ledger = bench.ledger()
    with pytest.raises(LedgerUnavailable):
        await ledger.ping()
    await asyncio.to_thread(migrate.upgrade, empty.url)
    await ledger.ping()


async def test_a_ledger_outlives_its_server(own_server, make_bench):
    """Killed in the middle of things and started again: nothing restarts, nothing is lost."""
    server, database = own_server
    bench = make_bench(database.url, busy_timeout_s=20)
    ledger = bench.ledger()
    alice = await make_customer(ledger)
    captured, lost = await ledger.hold(alice.job(10)), await ledger.hold(alice.job(20))
    await asyncio.gather(*(ledger.authenticate(alice.secret) for _ in range(5)))  # a full pool
    await ledger.capture(captured.id, 10)

    await asyncio.to_thread(server.kill)
    await assert_down(ledger, alice.job())

    await asyncio.to_thread(server.start)
    for _ in range(5):
        assert await ledger.authenticate(alice.secret) == alice.principal
    assert (await ledger.capture(captured.id, 10)).captured_units == 10
    assert (await ledger.capture(lost.id, 20)).captured_units == 20
    assert (await ledger.hold(alice.job(70))).available_units == 0
    assert (await ledger.admin.audit()).balanced


async def test_writes_cut_off_by_a_dying_server_happen_once_or_not_at_all(own_server, make_bench):
    server, database = own_server
    bench = make_bench(database.url, busy_timeout_s=20)
    ledger = bench.ledger()
    alice = await make_customer(ledger, units=1000)
    holds = [await ledger.hold(alice.job(1)) for _ in range(20)]

    async def capture_until_known(hold):
        while True:
            try:
                return (await ledger.capture(hold.id, 1)).captured_units
            except LedgerUnavailable:
                await asyncio.sleep(0.02)  # the database is away; asked again until it is known

    captures = [asyncio.create_task(capture_until_known(hold)) for hold in holds]
    await asyncio.wait(captures, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    assert await asyncio.gather(*captures) == [1] * 20
    balance = await ledger.balance(alice.principal.account_id)
    assert (balance.captured, balance.held) == (20, 0)
    assert (await ledger.admin.audit()).balanced


async def test_a_server_that_hangs_is_an_outage_until_it_goes_on(own_server, make_bench):
    server, database = own_server
    bench = make_bench(database.url)
    alice = await make_customer(bench.ledger())
    ledger = bench.ledger(busy_timeout_s=0.5)

    async def answers():
        with suppress(LedgerUnavailable):  # not in half a second
            return await ledger.authenticate(alice.secret) == alice.principal

    await until_asked(answers, "a connection")
    with server.frozen():
        await assert_down(ledger, alice.job(), {"authenticate", "hold", "capture"})
    await until_asked(answers, "the server to go on")
    assert (await bench.ledgers[0].hold(alice.job(10))).available_units == 90


async def test_a_gateway_that_stalls_in_the_middle_does_not_keep_an_account_locked(
    postgresql, make_bench
):
    bench = make_bench(postgresql.url)
    alice = await make_customer(bench.ledger())
    stalled = bench.ledger(busy_timeout_s=0.5)

    async def stall_while_another_holds():
        async with stalled._database.write() as connection:
            await connection.exec_driver_sql("UPDATE accounts SET held = held + 1")
            holds.append(await bench.ledger().hold(alice.job(10)))
            await connection.exec_driver_sql("SELECT 1")

    async def stalled_with_a_lock():
        with pytest.raises(LedgerUnavailable):
            await stall_while_another_holds()
        return holds  # none where it was not even connected in half a second

    holds = []
    await until_asked(stalled_with_a_lock, "a gateway to stall in the middle")
    assert [hold.available_units for hold in holds] == [90]
    assert (await bench.ledgers[0].admin.audit()).balanced


async def test_a_stuck_writer_of_the_same_process_is_an_outage_too(sqlite, make_bench):
    bench = make_bench(sqlite.url, busy_timeout_s=20)
    alice = await make_customer(bench.ledger())
    ledger = bench.ledger(busy_timeout_s=0.05)
    async with ledger._database.write():
        with pytest.raises(LedgerUnavailable):
            await ledger.hold(alice.job(10))
    assert await ledger.hold(alice.job(10))


async def test_an_empty_pool_is_an_outage(bench, alice):
    ledger = bench.ledger(pool_size=1)
    pool = ledger._database._engine.sync_engine.pool
    assert pool._timeout == bench.config.busy_timeout_s
    pool._timeout = 0.05  # of all that has a limit
    async with ledger._database.read():
        with pytest.raises(LedgerUnavailable):
            await ledger.authenticate(alice.secret)
    assert await ledger.authenticate(alice.secret)


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


async def test_sqlite_is_set_up_as_documented(sqlite, make_bench):
    bench = make_bench(sqlite.url, busy_timeout_s=20)
    async with bench.ledger()._database.read() as connection:
        for pragma, expected in [
            ("journal_mode", "wal"),
            ("synchronous", 1),
            ("foreign_keys", 1),
            ("busy_timeout", 20_000),
        ]:
            found = await connection.exec_driver_sql(f"PRAGMA {pragma}")
            assert found.scalar_one() == expected
