"""What is written together is still decided one by one: money, failures, crashes, cancellations."""

import asyncio
from dataclasses import replace

import pytest
from ledger_bench import make_customer
from sqlalchemy.exc import DataError
from test_ledger_races import start_python

from serve_app.errors import IdempotencyKeyReused, InsufficientQuota, InvalidKey, LedgerUnavailable
from serve_app.metering import sql
from serve_app.metering.batch import Reserve
from serve_app.metering.types import Hold, HoldState, UnknownHold


@pytest.fixture
def batches(monkeypatch):
    """How many operations each SQL transaction of the ledger had."""
    sizes = []

    def counting(connection, operations, *rest):
        sizes.append(len(operations))
        return run_batch(connection, operations, *rest)

    run_batch = sql.run_batch
    monkeypatch.setattr(sql, "run_batch", counting)
    return sizes


async def balance_of(ledger, customer):
    found = await ledger.balance(customer.principal.account_id)
    assert (await ledger.admin.audit()).balanced
    return found.granted, found.captured, found.held


async def answers_of(*calls):
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_of_many_holds_at_once_exactly_as_many_succeed_as_there_is_money_for(ledger, batches):
    alice = await make_customer(ledger, 70)
    answers = await answers_of(*(ledger.hold(alice.job(10)) for _ in range(20)))
    made = [one for one in answers if isinstance(one, Hold)]
    assert len(made) == 7
    assert {type(one) for one in answers} == {Hold, InsufficientQuota}
    assert answers[:7] == made  # first come, first served
    assert [one.available_units for one in made] == [60, 50, 40, 30, 20, 10, 0]
    assert await balance_of(ledger, alice) == (70, 0, 70)
    assert max(batches) > 10


async def test_holds_and_captures_of_many_accounts_share_transactions_and_no_money(ledger, batches):
    customers = [await make_customer(ledger, 100, f"c{index}") for index in range(6)]

    async def spend(customer):
        hold = await ledger.hold(customer.job(10))
        await ledger.capture(hold.id, 7)

    await asyncio.gather(*(spend(customer) for customer in customers for _ in range(10)))
    for customer in customers:
        assert await balance_of(ledger, customer) == (100, 70, 0)
    assert len(batches) < 60


async def test_one_operation_that_spoils_the_transaction_fails_alone(ledger, alice, monkeypatch):
    """As PostgreSQL does with text that it cannot store."""

    def spoilt(connection, operations, *rest):
        outcomes = run_batch(connection, operations, *rest)
        reserves = [one for one in operations if isinstance(one, Reserve)]
        if any(one.request.request_id == "poison" for one in reserves):
            raise DataError("INSERT", {}, ValueError("poison"))
        return outcomes

    run_batch = sql.run_batch
    monkeypatch.setattr(sql, "run_batch", spoilt)
    open_hold = await ledger.hold(alice.job(5))
    jobs = [alice.job(10, request_id="poison" if index == 3 else "good") for index in range(6)]
    answers = await answers_of(*(ledger.hold(job) for job in jobs), ledger.capture(open_hold.id, 5))
    assert isinstance(answers[3], LedgerUnavailable)
    assert all(isinstance(one, Hold) for one in (*answers[:3], *answers[4:6]))
    assert answers[6].state is HoldState.CAPTURED
    assert await balance_of(ledger, alice) == (100, 5, 50)


async def test_every_refusal_in_a_batch_is_its_own(ledger, alice, batches):
    bob = await make_customer(ledger, 5, "bob")
    await ledger.admin.revoke_key(bob.principal.key_id)
    taken = await ledger.hold(alice.job(1, idempotency_key="a"))
    open_hold = await ledger.hold(alice.job(2))
    start = len(batches)
    answers = await answers_of(
        ledger.hold(alice.job(1, idempotency_key="a")),
        ledger.hold(alice.job(1, idempotency_key="b")),
        ledger.hold(alice.job(1, idempotency_key="b")),
        ledger.hold(bob.job(1)),
        ledger.hold(alice.job(1000)),
        ledger.capture("hold_of_nobody", 1),
        ledger.capture(open_hold.id, 3),
        ledger.release(taken.id),
        ledger.capture(taken.id, 1),
        ledger.hold(alice.job(1)),
    )
    kinds = [type(one) for one in answers]
    reused, refused = IdempotencyKeyReused, InsufficientQuota
    assert kinds[1:7] == [Hold, reused, InvalidKey, refused, UnknownHold, ValueError]
    assert kinds[0] in (Hold, reused)  # its key is free as soon as the release is written
    # One release, told twice; the second is told of the account after the holds of the batch.
    assert replace(answers[8], available_units=answers[7].available_units) == answers[7]
    assert answers[7].state is HoldState.RELEASED
    assert kinds[9] is Hold
    held = 2 + 1 + 1 + (kinds[0] is Hold)
    assert await balance_of(ledger, alice) == (100, 0, held)
    assert max(batches[start:]) > 5


async def test_ending_a_hold_often_at_once_charges_once_and_tells_all_the_same(ledger, alice):
    hold = await ledger.hold(alice.job(10))
    answers = await asyncio.gather(*(ledger.capture(hold.id, 10) for _ in range(12)))
    assert {(one.state, one.captured_units) for one in answers} == {(HoldState.CAPTURED, 10)}
    assert await balance_of(ledger, alice) == (100, 10, 0)


async def test_a_commit_that_fails_is_an_outage_for_all_and_is_not_repeated(
    ledger, alice, monkeypatch
):
    """Whether it went through is unknown: a second attempt might make every hold twice."""
    attempts = 0
    transact = ledger._database.transact

    async def lose_the_answer(work):
        nonlocal attempts
        attempts += 1
        await transact(work)
        raise LedgerUnavailable("gone") from DataError("COMMIT", {}, ValueError("gone"))

    monkeypatch.setattr(ledger._database, "transact", lose_the_answer)
    answers = await answers_of(*(ledger.hold(alice.job(10)) for _ in range(4)))
    assert [type(one) for one in answers] == [LedgerUnavailable] * 4
    assert attempts == 1
    monkeypatch.undo()
    assert await balance_of(ledger, alice) == (100, 0, 40)  # they went through: expiry frees them
    ledger._clock.advance(10_000)
    assert await ledger.expire_holds() == 4
    assert await balance_of(ledger, alice) == (100, 0, 0)


KILLED_AFTER_COMMIT = """
import asyncio, os, sys
from serve_app.config import LedgerConfig
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest

async def main(url, secret):
    ledger = await SqlLedger.open(LedgerConfig(url=url))
    principal = await ledger.authenticate(secret)
    job = HoldRequest(principal.account_id, principal.key_id, "r", "m", 1, 2, 2, 4, 10, 0.001)
    hold = await ledger.hold(job)
    transact = ledger._database.transact
    async def die_before_the_answer(work):
        await transact(work)
        os._exit(9)
    ledger._database.transact = die_before_the_answer
    await asyncio.gather(ledger.capture(hold.id, 4), *(ledger.hold(job) for _ in range(3)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_crash_between_commit_and_answer_leaves_the_books_right(bench, ledger, alice):
    process = start_python(KILLED_AFTER_COMMIT, bench.config.url, alice.secret)
    await asyncio.to_thread(process.communicate)
    assert process.returncode == 9
    assert await balance_of(ledger, alice) == (100, 4, 30)
    bench.clock.now = bench.clock.now.replace(year=9000)
    assert await ledger.expire_holds() == 3
    assert await balance_of(ledger, alice) == (100, 4, 0)


@pytest.mark.parametrize("turns", range(0, 12))
async def test_waiters_that_leave_at_any_moment_leak_no_hold(bench, alice, turns):
    ledger = bench.ledger()
    tasks = [asyncio.create_task(ledger.hold(alice.job(1))) for _ in range(20)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await answers_of(*tasks)
    kept = sum(isinstance(one, Hold) for one in answers)
    assert kept >= 10
    await ledger.close()
    assert await balance_of(bench.ledger(), alice) == (100, 0, kept)


async def test_a_waiter_cancelled_as_its_answer_arrives_leaks_no_hold(bench, alice):
    """The narrowest moment: the hold is made, and the task has yet to hear of it."""
    ledger = bench.ledger()
    submit = ledger._queue.submit
    tasks = []

    def watched(operation):
        future = submit(operation)
        future.add_done_callback(lambda _: [task.cancel() for task in tasks])
        return future

    ledger._queue.submit = watched
    tasks.append(asyncio.create_task(ledger.hold(alice.job(10))))
    (answer,) = await answers_of(*tasks)
    ledger._queue.submit = submit
    assert isinstance(answer, asyncio.CancelledError)
    await ledger.close()
    assert await balance_of(bench.ledger(), alice) == (100, 0, 0)
