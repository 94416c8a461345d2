"""Open work by model: exactly the open holds, found without reading the closed ones."""

import sqlite3
from contextlib import closing

from ledger_bench import make_customer
from sqlalchemy.dialects import sqlite

from serve_app.metering.records import OpenWork
from serve_app.metering.statements import OPEN_WORK


async def test_open_holds_of_all_accounts_are_summed_by_model(ledger, alice):
    bob = await make_customer(ledger, name="bob")
    assert await ledger.admin.open_work() == {}
    first = await ledger.hold(alice.job(units=10, n=2, model="mini"))
    await ledger.hold(bob.job(units=5, n=1, model="mini"))
    other = await ledger.hold(bob.job(units=7, n=4, model="big"))
    assert await ledger.admin.open_work() == {
        "mini": OpenWork(holds=2, images=3, units=15),
        "big": OpenWork(holds=1, images=4, units=7),
    }
    await ledger.capture(first.id, 4)
    await ledger.release(other.id)
    assert await ledger.admin.open_work() == {"mini": OpenWork(holds=1, images=1, units=5)}


async def test_work_that_expired_is_no_work(bench, ledger, alice):
    await ledger.hold(alice.job(units=10, n=1, model="mini"))
    bench.clock.advance(10_000)
    await ledger.expire_holds()
    assert await ledger.admin.open_work() == {}


def test_the_closed_holds_are_not_read(migrated_sqlite):
    """A year of closed holds must not slow down a question asked every second."""
    statement = str(OPEN_WORK.compile(dialect=sqlite.dialect()))
    with closing(sqlite3.connect(migrated_sqlite)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
    assert "ix_holds_open" in str(plan)
