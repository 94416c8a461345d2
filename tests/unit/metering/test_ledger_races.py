"""Whatever many connections do at once, nothing is overdrawn and the books balance."""

import asyncio
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_bench import START, TTL_S, Bench, make_customer

from serve_app.config import LedgerConfig
from serve_app.errors import IdempotencyKeyReused, InsufficientQuota
from serve_app.metering.types import Hold, HoldState
from tests.machine import MACHINE, until

GRANTED = 50
CONNECTIONS = 4

IDEMPOTENCY_KEYS = st.sampled_from([None, None, "a", "b"])
HOLDS = st.tuples(st.just("hold"), st.integers(1, GRANTED + 5), IDEMPOTENCY_KEYS)
RESOLUTIONS = st.tuples(
    st.sampled_from(["capture", "partial", "release"]), st.integers(0, 20), st.none()
)
SWEEPS = st.tuples(st.sampled_from(["sweep", "late"]), st.just(0), st.none())
WAVES = st.lists(
    st.lists(st.one_of(HOLDS, HOLDS, RESOLUTIONS, SWEEPS), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)
"""Operations of one wave run at the same time; waves follow each other."""


class World:
    """Runs operations and remembers what each one was told."""

    def __init__(self, bench, customer):
        self.bench = bench
        self.customer = customer
        self.ledgers = bench.ledgers
        self.holds: list[Hold] = []
        self.outcomes: dict[str, set[tuple[HoldState, int]]] = {}

    async def act(self, index, operation):
        kind, number, key = operation
        ledger = self.ledgers[index % CONNECTIONS]
        if kind == "hold":
            await self.hold(ledger, number, key)
        elif kind in ("sweep", "late"):
            if kind == "late":
                self.bench.clock.advance(TTL_S / 2)
            await ledger.expire_holds()
        elif self.holds:
            await self.resolve(ledger, kind, self.holds[number % len(self.holds)])

    async def hold(self, ledger, units, key):
        try:
            hold = await ledger.hold(self.customer.job(units, idempotency_key=key))
        except (InsufficientQuota, IdempotencyKeyReused):
            return
        assert hold.available_units >= 0
        self.holds.append(hold)

    async def resolve(self, ledger, kind, hold):
        if kind == "release":
            outcome = await ledger.release(hold.id)
        else:
            units = hold.units if kind == "capture" else (hold.units + 1) // 2
            outcome = await ledger.capture(hold.id, units)
        assert outcome.available_units >= 0
        self.outcomes.setdefault(hold.id, set()).add((outcome.state, outcome.captured_units))

    async def check(self):
        balance = await self.ledgers[0].balance(self.customer.principal.account_id)
        assert balance.available >= 0
        assert balance.granted == GRANTED
        captured = 0
        for outcomes in self.outcomes.values():
            ((_, units),) = outcomes  # everyone who asked was told the same
            captured += units
        assert balance.captured == captured
        report = await self.ledgers[0].admin.audit()
        assert report.balanced, report.findings


async def run_waves(bench, waves):
    world = World(bench, await make_customer(bench.ledgers[0], GRANTED))
    for wave in waves:
        await asyncio.gather(*(world.act(index, one) for index, one in enumerate(wave)))
        await world.check()


def test_no_concurrent_history_overdraws_or_unbalances_the_ledger(backend):
    """One loop and its connections for all examples; the database is emptied for each."""
    bench = Bench(LedgerConfig(url=backend.url, busy_timeout_s=30, pool_size=2))

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(waves=WAVES)
    def play(waves):
        backend.clear()
        bench.clock.now = START
        runner.run(run_waves(bench, waves))

    with asyncio.Runner() as runner:
        try:
            for _ in range(CONNECTIONS):
                bench.ledger()
            play()
        finally:
            runner.run(bench.close())


async def test_a_retry_does_not_deadlock_with_the_capture_that_it_races(postgresql, make_bench):
    """PostgreSQL: the retry waits for the capture, so it must not hold what the capture needs."""
    ledger = make_bench(postgresql.url).ledger()
    alice = await make_customer(ledger)
    job = alice.job(10, idempotency_key="order-1")
    hold = await ledger.hold(job)
    ended = "captured_units = 10, state = 'captured', resolved_at = now()"
    ending = f"UPDATE holds SET {ended} WHERE id = '{hold.id}'"
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with postgresql.server.during(ending, postgresql.name) as go_on:
        retry = asyncio.create_task(ledger.hold(job))
        asked = partial(postgresql.server.sql, waiting)
        await until(lambda: asked() != "0\n", "the retry to wait for the capture")
        await asyncio.to_thread(go_on, "UPDATE accounts SET held = held - 10")
        await asyncio.to_thread(go_on, "ROLLBACK")
    with pytest.raises(IdempotencyKeyReused):
        await retry
    assert (await ledger.capture(hold.id, 10)).captured_units == 10


SPENDER = """
import asyncio, sys
from serve_app.config import LedgerConfig
from serve_app.errors import InsufficientQuota
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

async def main(url, secret):
    ledger = await SqlLedger.open(LedgerConfig(url=url, busy_timeout_s=30))
    principal = await ledger.authenticate(secret)
    job = HoldRequest(principal.account_id, principal.key_id, "r", "m", 1, 2, 2, 4, 7, 900)
    print("ready", flush=True)
    sys.stdin.readline()
    async def spend(index):
        try:
            hold = await ledger.hold(job)
        except InsufficientQuota:
            return 0
        return (await ledger.capture(hold.id, 7)).captured_units
    spent = sum(await asyncio.gather(*(spend(index) for index in range(40))))
    await ledger.close()
    print(spent)

asyncio.run(main(*sys.argv[1:]))
"""


def start_python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_together(processes):
    """Let processes that wait after `ready` go at once; returns what each printed last."""
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        printed = [process.communicate(timeout=MACHINE.allow())[0].strip() for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
        return printed
    finally:
        for process in processes:
            process.kill()
            process.communicate()


async def test_processes_that_race_never_spend_more_than_was_granted(bench):
    ledger = bench.ledger()
    customer = await make_customer(ledger, 200)
    processes = [start_python(SPENDER, bench.config.url, customer.secret) for _ in range(2)]
    spent = sum(map(int, await asyncio.to_thread(run_together, processes)))
    balance = await ledger.balance(customer.principal.account_id)
    assert (balance.captured, balance.held) == (spent, 0)
    assert balance.captured == 28 * 7  # what 200 units pay for, among 80 that asked
    assert (await ledger.admin.audit()).balanced


KILLED = """
import asyncio, os, sys
from serve_app.config import LedgerConfig
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

async def main(url, secret):
    ledger = await SqlLedger.open(LedgerConfig(url=url))
    principal = await ledger.authenticate(secret)
    for _ in range(3):
        hold = await ledger.hold(
            HoldRequest(principal.account_id, principal.key_id, "r", "m", 1, 2, 2, 4, 10, 0.001)
        )
    await ledger.capture(hold.id, 10)
    os._exit(9)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_what_a_killed_process_held_is_swept_and_what_it_captured_stays(bench):
    ledger = bench.ledger()
    customer = await make_customer(ledger, 100)
    process = start_python(KILLED, bench.config.url, customer.secret)
    await asyncio.to_thread(process.communicate)
    assert process.returncode == 9
    balance = await ledger.balance(customer.principal.account_id)
    assert (balance.captured, balance.held) == (10, 20)
    bench.clock.now = bench.clock.now.replace(year=9000)
    assert await ledger.expire_holds() == 2
    balance = await ledger.balance(customer.principal.account_id)
    assert (balance.captured, balance.held) == (10, 0)
    assert (await ledger.admin.audit()).balanced
