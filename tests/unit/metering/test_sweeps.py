"""Two gateways sweep one ledger, and one of them stops at the worst moment: each hold ends once."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from backends import Backend
from ledger_bench import TTL_S, Bench, Customer, make_customer
from scripted import UNITS_1024, World, error_of
from second_gateway import second_gateway
from sqlalchemy.util import await_only
from test_ledger_races import start_python
from waiting import until_asked

from serve_app.errors import InsufficientQuota, LedgerUnavailable
from serve_app.metering.database import Database
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import Hold, HoldState
from tests.machine import MACHINE

MakeWorld = Callable[..., Awaitable[World]]
HOLDS, UNITS = 5, 20
"""All that the customer has: what a sweep gives back can be seen by who can hold again."""


@dataclass
class Stop:
    """A place where a writer stops, as a process does that gets SIGSTOP there."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


class StoppableDatabase(Database):
    """Stops before its next write, or inside it: all is written and nothing committed."""

    before: Stop | None = None
    inside: Stop | None = None

    async def transact(self, work):
        if self.before is not None:
            stop, self.before = self.before, None
            stop.reached.set()
            await stop.go_on.wait()
        stop, self.inside = self.inside, None
        return await super().transact(work if stop is None else self._stopping(work, stop))

    def _stopping(self, work, stop):
        loop = asyncio.get_running_loop()

        def stopping(connection):
            outcome = work(connection)
            loop.call_soon_threadsafe(stop.reached.set)
            if self.is_sqlite:  # in a thread of the ledger
                asyncio.run_coroutine_threadsafe(stop.go_on.wait(), loop).result()
            else:
                await_only(stop.go_on.wait())
            return outcome

        return stopping


def stoppable(bench: Bench, **changes: object) -> tuple[SqlLedger, StoppableDatabase]:
    database = StoppableDatabase(bench.config.model_copy(update=changes))
    bench.ledgers.append(SqlLedger(database, bench.clock))
    return bench.ledgers[-1], database


@pytest.fixture
async def alice(bench: Bench) -> Customer:
    return await make_customer(bench.ledger(), HOLDS * UNITS)


@pytest.fixture
async def expired(bench: Bench, alice: Customer) -> list[Hold]:
    """Holds of a gateway that is gone, past their time."""
    holds = [await bench.ledgers[0].hold(alice.job(UNITS)) for _ in range(HOLDS)]
    bench.clock.advance(TTL_S + 1)
    return holds


async def check(bench: Bench, alice: Customer, captured: int, held: int) -> None:
    ledger = bench.ledgers[0]
    balance = await ledger.balance(alice.principal.account_id)
    assert (balance.captured, balance.held) == (captured, held)
    report = await ledger.admin.audit()
    assert report.balanced, report.findings


async def test_sweeps_that_read_the_same_holds_expire_each_once(bench, alice, expired):
    (one, first), (two, second) = stoppable(bench), stoppable(bench)
    first.before, second.before = stops = Stop(), Stop()
    sweeps = [asyncio.create_task(ledger.expire_holds()) for ledger in (one, two)]
    await asyncio.gather(*(stop.reached.wait() for stop in stops))  # both have read all of them
    for stop in stops:
        stop.go_on.set()
    assert sum(await asyncio.gather(*sweeps)) == HOLDS
    await check(bench, alice, 0, 0)


async def test_a_sweep_that_stopped_between_reading_and_writing_takes_nothing_later(
    bench, alice, expired
):
    """Meanwhile another has swept, and the units belong to new jobs."""
    stopped, database = stoppable(bench)
    stop = database.before = Stop()
    late = asyncio.create_task(stopped.expire_holds())
    await stop.reached.wait()
    other = bench.ledger()
    assert await other.expire_holds() == HOLDS
    charged, open_ = await other.hold(alice.job(UNITS)), await other.hold(alice.job(UNITS))
    await other.capture(charged.id, UNITS)
    stop.go_on.set()
    assert await late == 0
    await check(bench, alice, UNITS, UNITS)
    assert (await other.capture(open_.id, UNITS)).captured_units == UNITS


async def stopped_inside(ledger, database):
    """A sweep that has written; one that was not even connected in time is tried again."""
    while True:
        stop = database.inside = Stop()
        swept = asyncio.create_task(ledger.expire_holds())
        reached = asyncio.create_task(stop.reached.wait())
        await asyncio.wait([swept, reached], return_when=asyncio.FIRST_COMPLETED)
        if reached.done():
            return swept, stop
        reached.cancel()
        with pytest.raises(LedgerUnavailable):
            await swept


async def test_a_sweep_that_stopped_inside_its_write_happens_once_or_not_at_all(
    bench, alice, expired, backend
):
    stopped, database = stoppable(bench, busy_timeout_s=0.5)
    swept, stop = await stopped_inside(stopped, database)
    other = bench.ledger(busy_timeout_s=0.5)
    if backend.url.startswith("postgresql"):
        # The server ends the session of who stalls in the middle, and its locks with it.
        async def swept_by_other():
            with suppress(LedgerUnavailable):  # its lock is still there
                return await other.expire_holds()

        found = await until_asked(swept_by_other, "the lock of the one that stalls to be gone")
        stop.go_on.set()
        with pytest.raises(LedgerUnavailable):
            await swept
    else:
        with pytest.raises(LedgerUnavailable):
            await other.expire_holds()
        stop.go_on.set()
        found = await swept
        assert await other.expire_holds() == 0
    assert found == HOLDS
    await check(bench, alice, 0, 0)


async def test_a_capture_that_comes_after_the_sweep_charges_nothing(bench, alice, expired):
    stopped, database = stoppable(bench)
    stop = database.before = Stop()
    late = asyncio.create_task(stopped.capture(expired[0].id, UNITS))
    await stop.reached.wait()
    assert await bench.ledger().expire_holds() == HOLDS
    stop.go_on.set()
    outcome = await late
    assert (outcome.state, outcome.captured_units) == (HoldState.EXPIRED, 0)
    await check(bench, alice, 0, 0)


async def test_a_capture_that_comes_before_the_sweeps_write_is_left_alone(bench, alice, expired):
    stopped, database = stoppable(bench)
    stop = database.before = Stop()
    sweep = asyncio.create_task(stopped.expire_holds())
    await stop.reached.wait()
    captured = await bench.ledger().capture(expired[0].id, UNITS)
    assert (captured.state, captured.captured_units) == (HoldState.CAPTURED, UNITS)
    stop.go_on.set()
    assert await sweep == HOLDS - 1
    await check(bench, alice, UNITS, 0)


async def test_of_captures_and_sweeps_at_once_each_hold_has_one_end_and_all_agree(bench):
    ledger = bench.ledger()
    alice = await make_customer(ledger, 60 * UNITS)
    holds = [await ledger.hold(alice.job(UNITS)) for _ in range(60)]
    bench.clock.advance(TTL_S + 1)
    gateways = [bench.ledger() for _ in range(3)]
    captures = [
        asyncio.create_task(gateways[number % 3].capture(hold.id, UNITS))
        for number, hold in enumerate(holds)
    ]
    swept = sum(await asyncio.gather(*(gateway.expire_holds() for gateway in gateways)))
    ends = Counter(outcome.state for outcome in await asyncio.gather(*captures))
    assert ends[HoldState.EXPIRED] == swept
    assert ends[HoldState.CAPTURED] == 60 - swept
    await check(bench, alice, (60 - swept) * UNITS, 0)


async def test_pictures_of_a_gateway_whose_holds_were_swept_are_not_handed_out(
    make_world: MakeWorld, backend: Backend
) -> None:
    """It was stopped while it drew; its units went to a job of the other gateway."""
    world = await make_world(granted=UNITS_1024, ledger={"url": backend.url})
    async with second_gateway(world) as other:

        async def stopped_meanwhile(job):
            with pytest.raises(InsufficientQuota):
                await other.ledger.hold(theirs)
            now = other.ledger._clock()
            other.ledger._clock = lambda: now.replace(year=now.year + 1)
            assert await other.ledger.expire_holds() == 1
            other.ledger._clock = lambda: now
            taken.append(await other.ledger.hold(theirs))
            return await world.generator.draw(job)

        taken: list[Hold] = []
        theirs = Customer(world.principal, world.key).job(UNITS_1024)
        world.generator.act = stopped_meanwhile
        late = await world.draw()
        assert (late.status_code, error_of(late)["code"]) == (504, "timeout")
        assert await world.charged() == 0
        assert (await other.ledger.capture(taken[0].id, UNITS_1024)).captured_units == UNITS_1024
    await world.service.drain()
    assert world.store is not None
    assert world.config.store is not None
    folder = world.config.store.url.removeprefix("file://")
    assert [name for _, _, names in os.walk(folder) for name in names] == []


STOPPED = """
import asyncio, sys
from serve_app.config import LedgerConfig
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

async def main(url, secret):
    ledger = await SqlLedger.open(LedgerConfig(url=url, busy_timeout_s=30))
    principal = await ledger.authenticate(secret)
    job = HoldRequest(principal.account_id, principal.key_id, "r", "m", 1, 2, 2, 4, 20, 0.001)
    hold = await ledger.hold(job)
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    outcome = await ledger.capture(hold.id, 20)
    await ledger.close()
    print(outcome.state.value, outcome.captured_units)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_process_that_is_stopped_while_another_sweeps_charges_nothing(bench, alice):
    process = start_python(STOPPED, bench.config.url, alice.secret)
    try:
        assert await asyncio.to_thread(process.stdout.readline) == "held\n"
        process.send_signal(signal.SIGSTOP)
        process.stdin.write("go on\n")
        process.stdin.flush()
        bench.clock.now = bench.clock.now.replace(year=9000)
        assert await bench.ledger().expire_holds() == 1
        process.send_signal(signal.SIGCONT)
        printed, _ = await asyncio.to_thread(process.communicate, timeout=MACHINE.allow())
    finally:
        process.kill()
        process.communicate()
    assert printed == "expired 0\n"
    await check(bench, alice, 0, 0)
