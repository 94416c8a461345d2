"""A charge whose reply never went out is given back, once, when its gateway is dead."""

import asyncio
import logging
from collections.abc import Callable
from datetime import date

import pytest
from backends import Backend
from ledger_bench import LEASE_S, TURN_S, Bench, Customer, Fleet, make_customer
from sqlalchemy import func, select
from test_ledger_races import start_python
from test_sweeps import Stop, StoppableDatabase
from waiting import until_asked, within

from serve_app.errors import BudgetExceeded
from serve_app.metering import deliveries
from serve_app.metering.database import Database
from serve_app.metering.deliveries import Deliveries
from serve_app.metering.leases import Watch
from serve_app.metering.listings import UsageQuery
from serve_app.metering.sql import SqlLedger
from serve_app.metering.tables import UNDELIVERED, holds
from serve_app.metering.types import Hold, HoldState, Inheritance

FIRST = date(2026, 1, 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "GATHER_S", 0.01)
    monkeypatch.setattr(deliveries, "RETRY_S", 0.01)


async def charge(ledger: SqlLedger, customer: Customer, units: int = 10, **job: object) -> Hold:
    """A capture that nothing was sent of."""
    hold = await ledger.hold(customer.job(units, **job))
    assert (await ledger.capture(hold.id, units, undelivered=True)).captured_units == units
    return hold


async def unconfirmed(bench: Bench) -> int:
    database = Database(bench.config)
    try:
        async with database.read() as connection:
            query = select(func.count()).select_from(holds).where(UNDELIVERED)
            return (await connection.execute(query)).scalar_one()
    finally:
        await database.close()


async def all_confirmed(bench: Bench) -> None:

    async def confirmed() -> bool:
        return not await unconfirmed(bench)

    await until_asked(confirmed, "every delivery to be confirmed")


async def captured(ledger: SqlLedger, customer: Customer) -> int:
    """What the customer has paid, by books that are right."""
    report = await ledger.admin.audit()
    assert report.balanced, report.findings
    balance = await ledger.balance(customer.principal.account_id)
    assert balance.held == 0
    return balance.captured


@pytest.fixture
def dead(fleet: Fleet) -> SqlLedger:
    return fleet.gateway()


@pytest.fixture
def alive(fleet: Fleet, dead: SqlLedger) -> SqlLedger:
    return fleet.gateway()


@pytest.fixture
async def alice(fleet: Fleet, alive: SqlLedger) -> Customer:
    """Of a fleet that has been seen alive."""
    made = await make_customer(alive)
    await fleet.live(TURN_S)
    return made


async def usage(ledger: SqlLedger) -> list[tuple[date | None, int, int, int]]:
    rows = await ledger.admin.usage(UsageQuery(FIRST, date(2026, 2, 1)))
    return [(row.day, row.jobs, row.images, row.units) for row in rows]


async def test_what_a_dead_gateway_charged_and_never_sent_is_refunded_after_a_lease(
    fleet, dead, alive, alice
):
    lost = await charge(dead, alice)
    assert await captured(alive, alice) == 10
    fleet.down.add(dead)
    await fleet.live(LEASE_S)
    assert fleet.refunded == 0  # from the first look after its last beat on
    await fleet.live(TURN_S)
    assert fleet.refunded == 10
    assert await captured(alive, alice) == 0
    entries = await alive.admin.list_entries("alice")
    assert [(one.kind, one.units, one.hold_id) for one in entries] == [
        ("refund", 10, lost.id),
        ("capture", -10, lost.id),
        ("grant", 100, None),
    ]
    await fleet.live(LEASE_S * 2)
    assert fleet.refunded == 10


async def test_what_a_dead_gateway_had_confirmed_stays_charged(fleet, bench, dead, alive, alice):
    sent = await charge(dead, alice)
    dead.delivered(sent.id)
    await all_confirmed(bench)
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    assert fleet.refunded == 0
    assert await captured(alive, alice) == 10


async def test_what_can_be_fetched_or_was_out_before_its_charge_stays_charged(
    fleet, dead, alive, alice
):
    kept = await dead.hold(alice.job(10, idempotency_key="order-17"))
    await dead.capture(kept.id, 10, '{"images": []}')
    streamed = await dead.hold(alice.job(20))
    await dead.capture(streamed.id, 20)
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    assert fleet.refunded == 0
    assert await captured(alive, alice) == 30
    assert await alive.find_hold(alice.principal.account_id, "order-17") is not None


async def test_a_gateway_that_lives_keeps_its_charges_however_long_a_reply_takes(
    fleet, dead, alive, alice
):
    await charge(dead, alice)
    await fleet.live(LEASE_S * 5)
    assert fleet.refunded == 0
    assert await captured(alive, alice) == 10


async def test_who_never_beats_charges_for_good(fleet, bench, alive, alice):
    quiet = bench.ledger()
    fleet.down.add(quiet)
    sent = await charge(quiet, alice)
    assert await unconfirmed(bench) == 0
    quiet.delivered(sent.id)
    await fleet.live(LEASE_S * 2)
    assert await captured(alive, alice) == 10


async def test_watchers_that_find_the_same_charges_refund_each_once(fleet, bench, dead, alice):
    watchers = [fleet.gateway(StoppableDatabase) for _ in range(2)]
    await fleet.live(TURN_S)
    for _ in range(3):
        await charge(dead, alice)
    fleet.down.add(dead)
    await fleet.live(LEASE_S)
    fleet.steady.now += TURN_S
    stops = [Stop(), Stop()]
    for watcher, stop in zip(watchers, stops, strict=True):
        watcher._database.before = stop
    beats = [asyncio.create_task(watcher.beat()) for watcher in watchers]
    await asyncio.gather(*(stop.reached.wait() for stop in stops))  # both have read all of them
    for stop in stops:
        stop.go_on.set()
    taken = await asyncio.gather(*beats)
    assert sum(one.refunded for one in taken) == 3
    assert sum(one.refunded_units for one in taken) == 30
    assert await captured(watchers[0], alice) == 0


async def test_a_confirmation_that_comes_before_the_watchers_write_stands(
    fleet, bench, dead, alice
):
    watcher = fleet.gateway(StoppableDatabase)
    await fleet.live(TURN_S)
    sent = await charge(dead, alice)
    fleet.down.add(dead)
    await fleet.live(LEASE_S)
    fleet.steady.now += TURN_S
    stop = watcher._database.before = Stop()
    beat = asyncio.create_task(watcher.beat())
    await stop.reached.wait()
    dead.delivered(sent.id)
    await all_confirmed(bench)
    stop.go_on.set()
    assert (await beat).refunded == 0
    assert await captured(watcher, alice) == 10


async def test_a_gateway_that_was_only_stopped_gives_away_what_it_sends_after_the_refund(
    fleet, dead, alive, alice, caplog
):
    late = await charge(dead, alice)
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    with caplog.at_level(logging.ERROR):
        dead.delivered(late.id)
        await dead.close()
    assert f"hold {late.id} was refunded by others" in caplog.text
    for again in (alive.capture(late.id, 10), alive.release(late.id)):
        outcome = await again
        assert (outcome.state, outcome.captured_units) == (HoldState.REFUNDED, 0)
    assert await captured(alive, alice) == 0


async def test_a_refund_is_taken_off_the_usage_of_the_day_of_the_capture(
    fleet, bench, dead, alive, alice
):
    await charge(dead, alice, 12, n=3)
    sent = await dead.hold(alice.job(20, n=2))
    await dead.capture(sent.id, 10)
    bench.clock.advance(86_400)
    await charge(dead, alice, 30)
    assert await usage(alive) == [(FIRST, 2, 4, 22), (date(2026, 1, 2), 1, 1, 30)]
    bench.clock.advance(86_400)
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    assert await usage(alive) == [(FIRST, 1, 1, 10)]
    assert await captured(alive, alice) == 10


async def test_a_refund_frees_the_budget_of_its_day(fleet, dead, alive, alice):
    await alive.admin.set_budgets("alice", 30, 30)
    await charge(dead, alice, 30)
    fleet.down.add(dead)
    with pytest.raises(BudgetExceeded):
        await alive.hold(alice.job(1))
    await fleet.live(LEASE_S * 2)
    await alive.release((await alive.hold(alice.job(30))).id)


async def test_a_clean_stop_leaves_nothing_to_refund(monkeypatch, fleet, bench, dead, alive, alice):
    monkeypatch.setattr(deliveries, "GATHER_S", 3600)
    for _ in range(3):
        dead.delivered((await charge(dead, alice)).id)
    assert await unconfirmed(bench) == 3
    await dead.close()
    assert await unconfirmed(bench) == 0
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    assert await captured(alive, alice) == 30


async def test_confirmations_outlast_an_outage(
    backend: Backend, make_bench: Callable[..., Bench]
) -> None:
    fleet = Fleet(make_bench(backend.url, busy_timeout_s=backend.impatient()))
    dead, alive = fleet.gateway(), fleet.gateway()
    alice = await make_customer(alive)
    await fleet.live(TURN_S)
    sent = [await charge(dead, alice) for _ in range(3)]
    failed = asyncio.Event()
    write = dead._deliveries._write

    async def watched(hold_ids):
        written = await write(hold_ids)
        if not written:
            failed.set()
        return written

    dead._deliveries._write = watched
    with backend.locked():
        for hold in sent[:2]:
            dead.delivered(hold.id)
        async with within("a write that fails"):
            await failed.wait()
        dead.delivered(sent[2].id)
    await all_confirmed(fleet.bench)
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    assert await captured(alive, alice) == 30


async def test_a_ledger_that_stays_away_keeps_no_gateway_from_stopping(
    backend: Backend, make_bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet(make_bench(backend.url, busy_timeout_s=backend.impatient()))
    dead, alive = fleet.gateway(), fleet.gateway()
    alice = await make_customer(alive)
    await fleet.live(TURN_S)
    sent = await charge(dead, alice)
    with backend.locked():
        dead.delivered(sent.id)
        async with within("the gateway to stop"):
            await dead.close()
    assert "1 delivered replies are not confirmed yet" in caplog.text
    fleet.down.add(dead)
    await fleet.live(LEASE_S * 2)
    assert await captured(alive, alice) == 0


async def test_confirmations_are_written_together_and_then_forgotten(fleet, bench, dead, alice):
    written: list[int] = []
    write = dead._deliveries._write

    async def counted(hold_ids):
        written.append(len(hold_ids))
        return await write(hold_ids)

    dead._deliveries._write = counted
    for hold in [await charge(dead, alice, 1) for _ in range(20)]:
        dead.delivered(hold.id)
    await all_confirmed(bench)
    assert written == [20]
    if (task := dead._deliveries._task) is not None:
        async with within("the confirmations to end"):
            await task
    assert dead._deliveries._new == dead._deliveries._ripe == []


async def test_many_confirmations_go_in_parts_and_none_is_lost(monkeypatch, bench, dead, alice):
    monkeypatch.setattr(deliveries, "ROWS_MAX", 3)
    for hold in [await charge(dead, alice, 1) for _ in range(10)]:
        dead.delivered(hold.id)
    await all_confirmed(bench)


async def test_a_reply_has_a_moment_to_leave_the_process_before_it_is_confirmed(monkeypatch):
    """Killed right after it was handed to the server, it is refunded and not lost."""
    pauses, confirmed = [], []

    class Slow(Deliveries):
        async def _pause(self, seconds):
            pauses.append(list(confirmed))
            if len(pauses) == 1:
                self.add("hold_late")  # a moment before the end of the first interval
            await asyncio.sleep(0)

        async def _write(self, hold_ids):
            confirmed.extend(hold_ids)
            return True

    slow = Slow(None)
    slow.add("hold_early")
    await slow._task
    assert pauses[1] == []
    assert confirmed == ["hold_early", "hold_late"]


async def test_of_confirmations_and_refunds_at_once_each_hold_has_one_end(bench, fleet, alive):
    alice = await make_customer(alive, 120)
    senders = [fleet.gateway() for _ in range(3)]
    await fleet.live(TURN_S)
    made = [(sender, await charge(sender, alice, 2)) for _ in range(20) for sender in senders]
    names = [sender._id for sender in senders]
    for sender, hold in made[::2]:
        sender.delivered(hold.id)
    taken = await asyncio.gather(*(one._sweeps.inherit(names) for one in senders))
    await asyncio.gather(*(sender.close() for sender in senders))
    assert sum(one.refunded for one in taken) >= 30  # those that nobody confirmed
    paid = await captured(alive, alice)
    assert paid == 120 - sum(one.refunded_units for one in taken)
    assert await unconfirmed(bench) == 0


KILLED = """
import asyncio, sys
from serve_app.config import LedgerConfig
from serve_app.metering import deliveries
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

deliveries.GATHER_S = 0.01

async def main(url, secret):
    ledger = await SqlLedger.open(LedgerConfig(url=url))
    principal = await ledger.authenticate(secret)
    await ledger.beat()
    holds = []
    for units in (20, 30):
        job = HoldRequest(principal.account_id, principal.key_id, "r", "m", 1, 2, 2, 4, units, 900)
        holds.append(await ledger.hold(job))
        await ledger.capture(holds[-1].id, units, undelivered=True)
    ledger.delivered(holds[0].id)
    while ledger._deliveries._task is not None:
        await asyncio.sleep(0.01)
    print("charged both, sent one", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_killed_between_its_charge_and_its_reply_is_paid_for_what_it_sent(
    bench,
):
    ledger = bench.ledger()
    alice = await make_customer(ledger)
    process = start_python(KILLED, bench.config.url, alice.secret)
    try:
        assert await asyncio.to_thread(process.stdout.readline) == "charged both, sent one\n"
        assert await captured(ledger, alice) == 50
    finally:
        process.kill()
        process.communicate()
    watcher = SqlLedger(Database(bench.config), bench.clock, Watch(lease_s=0))
    bench.ledgers.append(watcher)
    assert await watcher.beat() == Inheritance(0, 1, 30)
    assert await captured(ledger, alice) == 20
