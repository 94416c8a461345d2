"""What any ledger must do. Runs on every backend of `conftest.BACKENDS`."""

import asyncio

import pytest
from ledger_bench import START, TTL_S, make_customer

from serve_app.errors import IdempotencyKeyReused, InsufficientQuota, InvalidKey, InvalidValue
from serve_app.metering.types import HoldState, UnknownHold


async def assert_balance(ledger, customer, *, granted=100, captured=0, held=0):
    balance = await ledger.balance(customer.principal.account_id)
    assert (balance.granted, balance.captured, balance.held) == (granted, captured, held)
    report = await ledger.admin.audit()
    assert report.balanced, report.findings


async def test_a_key_speaks_for_its_account(ledger, alice):
    found = await ledger.authenticate(alice.secret)
    assert found == alice.principal
    assert (found.account_name, found.scopes, found.models) == ("alice", ("images",), None)


async def test_a_key_keeps_its_scopes_and_models(ledger, alice):
    made = await ledger.admin.create_key("alice", scopes=("images", "admin"), models=["a/b", "c"])
    found = await ledger.authenticate(made.secret)
    assert (found.scopes, found.models) == (("images", "admin"), ("a/b", "c"))


@pytest.mark.parametrize("secret", ["", "sk-unknown", "sk-" + "x" * 600, "\ud800", "a\x00b"])
async def test_a_key_that_is_not_on_file_is_refused(ledger, alice, secret):
    with pytest.raises(InvalidKey):
        await ledger.authenticate(secret)


async def test_a_digest_is_not_a_key(ledger, alice):
    from serve_app.metering.keys import digest

    with pytest.raises(InvalidKey):
        await ledger.authenticate(digest(alice.secret))


async def test_a_revoked_key_neither_authenticates_nor_holds(ledger, alice):
    await ledger.admin.revoke_key(alice.principal.key_id)
    with pytest.raises(InvalidKey):
        await ledger.authenticate(alice.secret)
    with pytest.raises(InvalidKey):
        await ledger.hold(alice.job())
    await assert_balance(ledger, alice)


async def test_an_expired_key_neither_authenticates_nor_holds(bench, ledger, alice):
    expires_at = START.replace(hour=1)
    made = await ledger.admin.create_key("alice", expires_at=expires_at)
    principal = await ledger.authenticate(made.secret)
    bench.clock.now = expires_at
    with pytest.raises(InvalidKey):
        await ledger.authenticate(made.secret)
    with pytest.raises(InvalidKey):
        await ledger.hold(alice.job(key_id=principal.key_id))
    assert await ledger.hold(alice.job())


async def test_a_disabled_account_is_refused_until_it_is_enabled(ledger, alice):
    hold = await ledger.hold(alice.job(5))
    await ledger.admin.set_disabled("alice", disabled=True)
    with pytest.raises(InvalidKey):
        await ledger.authenticate(alice.secret)
    with pytest.raises(InvalidKey):
        await ledger.hold(alice.job())
    assert (await ledger.capture(hold.id, 5)).state is HoldState.CAPTURED
    await ledger.admin.set_disabled("alice", disabled=False)
    assert await ledger.authenticate(alice.secret)


async def test_a_key_cannot_spend_for_another_account(ledger, alice):
    bob = await make_customer(ledger, name="bob")
    with pytest.raises(InvalidKey):
        await ledger.hold(alice.job(key_id=bob.principal.key_id))
    for key in (None, "order-1"):
        with pytest.raises(InvalidKey):
            await ledger.hold(alice.job(account_id="acct_unknown", idempotency_key=key))
    await assert_balance(ledger, alice)


async def test_a_hold_reserves_its_units(bench, ledger, alice):
    hold = await ledger.hold(alice.job(30))
    assert (hold.units, hold.available_units) == (30, 70)
    assert (hold.expires_at - bench.clock.now).total_seconds() == TTL_S
    assert hold.expires_at.tzinfo is not None
    await assert_balance(ledger, alice, held=30)


async def test_the_last_unit_can_be_held_and_no_more(ledger, alice):
    await ledger.hold(alice.job(100))
    with pytest.raises(InsufficientQuota):
        await ledger.hold(alice.job(1))
    await assert_balance(ledger, alice, held=100)


async def test_a_refused_hold_leaves_no_trace(ledger, alice):
    with pytest.raises(InsufficientQuota):
        await ledger.hold(alice.job(101))
    with pytest.raises(InsufficientQuota):
        await ledger.hold(alice.job(10**40))
    with pytest.raises(InsufficientQuota):
        await ledger.hold(alice.job(101, idempotency_key="order-1"))
    assert await ledger.find_hold(alice.principal.account_id, "order-1") is None
    assert (await ledger.admin.audit()).holds == 0
    await assert_balance(ledger, alice)


async def test_an_account_without_a_grant_can_hold_nothing(ledger):
    poor = await make_customer(ledger, units=0)
    with pytest.raises(InsufficientQuota):
        await ledger.hold(poor.job(1))


@pytest.mark.parametrize(
    "changes",
    [
        {"units": 0},
        {"units": -5},
        {"units": True},
        {"n": 0},
        {"width": -1},
        {"height": 1.5},
        {"steps": 0},
        {"ttl_s": 0},
        {"idempotency_key": "k" * 256},
        {"request_id": "r" * 201},
        {"model": "m" * 201},
    ],
)
async def test_an_unbounded_request_is_a_bug_and_costs_nothing(ledger, alice, changes):
    with pytest.raises(ValueError, match=r"hold|idempotency|too long"):
        await ledger.hold(alice.job(**changes))
    await assert_balance(ledger, alice)


async def test_a_capture_charges_the_whole_hold(ledger, alice):
    hold = await ledger.hold(alice.job(30))
    outcome = await ledger.capture(hold.id, 30)
    assert outcome.state is HoldState.CAPTURED
    assert (outcome.captured_units, outcome.available_units) == (30, 70)
    await assert_balance(ledger, alice, captured=30)


async def test_a_partial_capture_gives_the_rest_back(ledger, alice):
    hold = await ledger.hold(alice.job(30))
    outcome = await ledger.capture(hold.id, 10)
    assert (outcome.captured_units, outcome.available_units) == (10, 90)
    await assert_balance(ledger, alice, captured=10)


async def test_a_release_gives_everything_back(ledger, alice):
    hold = await ledger.hold(alice.job(30))
    outcome = await ledger.release(hold.id)
    assert (outcome.state, outcome.captured_units) == (HoldState.RELEASED, 0)
    assert outcome.available_units == 100
    await assert_balance(ledger, alice)


async def test_resolving_again_returns_the_first_outcome(ledger, alice):
    captured = await ledger.hold(alice.job(30))
    released = await ledger.hold(alice.job(30))
    first = await ledger.capture(captured.id, 20)
    await ledger.release(released.id)
    for again in (
        await ledger.capture(captured.id, 20),
        await ledger.capture(captured.id, 5),
        await ledger.release(captured.id),
    ):
        assert (again.state, again.captured_units) == (HoldState.CAPTURED, 20)
    for again in (await ledger.release(released.id), await ledger.capture(released.id, 30)):
        assert (again.state, again.captured_units) == (HoldState.RELEASED, 0)
    assert first.hold_id == captured.id
    await assert_balance(ledger, alice, captured=20)


async def test_a_capture_beyond_the_hold_is_a_bug_and_leaves_the_hold_open(ledger, alice):
    hold = await ledger.hold(alice.job(30))
    for units in (31, 0, -1, True, 1.0):
        with pytest.raises(ValueError, match="capture"):
            await ledger.capture(hold.id, units)
    await assert_balance(ledger, alice, held=30)
    assert (await ledger.capture(hold.id, 30)).state is HoldState.CAPTURED


async def test_a_hold_that_was_never_made_cannot_be_resolved(ledger, alice):
    with pytest.raises(UnknownHold):
        await ledger.capture("hold_unknown", 1)
    with pytest.raises(UnknownHold):
        await ledger.release("hold_unknown")


async def test_a_sweep_expires_only_what_is_due(bench, ledger, alice):
    early = await ledger.hold(alice.job(10))
    bench.clock.advance(TTL_S / 2)
    late = await ledger.hold(alice.job(20))
    assert await ledger.expire_holds() == 0
    bench.clock.advance(TTL_S / 2)
    assert await ledger.expire_holds() == 1
    assert await ledger.expire_holds() == 0
    assert (await ledger.release(early.id)).state is HoldState.EXPIRED
    assert (await ledger.capture(late.id, 20)).state is HoldState.CAPTURED
    await assert_balance(ledger, alice, captured=20)


async def test_a_long_backlog_is_swept_at_once(bench, ledger, alice):
    for _ in range(100):
        await ledger.hold(alice.job(1))
    bench.clock.advance(TTL_S)
    assert await ledger.expire_holds() == 100
    await assert_balance(ledger, alice)


async def test_a_late_capture_of_an_expired_hold_charges_nothing(bench, ledger, alice):
    hold = await ledger.hold(alice.job(60))
    bench.clock.advance(TTL_S)
    await ledger.expire_holds()
    await ledger.hold(alice.job(60))  # the units were given back, and someone took them
    outcome = await ledger.capture(hold.id, 60)
    assert (outcome.state, outcome.captured_units) == (HoldState.EXPIRED, 0)
    assert outcome.available_units == 40
    await assert_balance(ledger, alice, held=60)


async def test_a_capture_before_the_sweep_still_charges(bench, ledger, alice):
    hold = await ledger.hold(alice.job(60))
    bench.clock.advance(10 * TTL_S)
    assert (await ledger.capture(hold.id, 60)).state is HoldState.CAPTURED
    assert await ledger.expire_holds() == 0
    await assert_balance(ledger, alice, captured=60)


async def test_an_idempotency_key_holds_once(ledger, alice):
    job = alice.job(10, idempotency_key="order-1")
    hold = await ledger.hold(job)
    with pytest.raises(IdempotencyKeyReused):
        await ledger.hold(job)
    await ledger.capture(hold.id, 10)
    with pytest.raises(IdempotencyKeyReused):
        await ledger.hold(job)
    await assert_balance(ledger, alice, captured=10)


async def test_an_idempotency_key_finds_its_hold(ledger, alice):
    hold = await ledger.hold(alice.job(10, idempotency_key="order-1"))
    account_id = alice.principal.account_id
    found = await ledger.find_hold(account_id, "order-1")
    assert (found.id, found.state, found.units) == (hold.id, HoldState.OPEN, 10)
    assert found.expires_at == hold.expires_at
    await ledger.capture(hold.id, 7)
    found = await ledger.find_hold(account_id, "order-1")
    assert (found.state, found.captured_units) == (HoldState.CAPTURED, 7)
    assert await ledger.find_hold(account_id, "order-2") is None
    assert await ledger.find_hold("acct_other", "order-1") is None


async def test_a_retry_after_a_release_or_an_expiry_is_a_new_hold(bench, ledger, alice):
    job = alice.job(10, idempotency_key="order-1")
    await ledger.release((await ledger.hold(job)).id)
    await ledger.hold(job)
    bench.clock.advance(TTL_S)
    await ledger.expire_holds()
    assert await ledger.find_hold(alice.principal.account_id, "order-1") is None
    hold = await ledger.hold(job)
    await ledger.capture(hold.id, 10)
    assert (await ledger.admin.audit()).holds == 3
    await assert_balance(ledger, alice, captured=10)


async def test_two_accounts_may_use_the_same_idempotency_key(ledger, alice):
    bob = await make_customer(ledger, name="bob")
    await ledger.hold(alice.job(10, idempotency_key="order-1"))
    assert await ledger.hold(bob.job(10, idempotency_key="order-1"))


async def test_racing_retries_with_one_idempotency_key_hold_once(bench, alice):
    job = alice.job(10, idempotency_key="order-1")
    tries = [bench.ledger().hold(job) for _ in range(8)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    kinds = sorted(type(outcome).__name__ for outcome in outcomes)
    assert kinds == ["Hold"] + ["IdempotencyKeyReused"] * 7
    await assert_balance(bench.ledgers[0], alice, held=10)


async def test_racing_resolutions_resolve_once(bench, alice):
    ledgers = [bench.ledger() for _ in range(6)]
    hold = await ledgers[0].hold(alice.job(30))
    bench.clock.advance(TTL_S)
    outcomes = await asyncio.gather(
        *(ledger.capture(hold.id, 30) for ledger in ledgers),
        *(ledger.release(hold.id) for ledger in ledgers),
        *(ledger.expire_holds() for ledger in ledgers),
    )
    states = {(outcome.state, outcome.captured_units) for outcome in outcomes[:12]}
    ((state, charged),) = states
    assert sum(outcomes[12:]) == (state is HoldState.EXPIRED)
    await assert_balance(ledgers[0], alice, captured=charged)


async def test_racing_holds_stop_at_the_balance(bench, alice):
    ledgers = [bench.ledger() for _ in range(5)]
    outcomes = await asyncio.gather(
        *(ledger.hold(alice.job(7)) for ledger in ledgers for _ in range(8)),
        return_exceptions=True,
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, InsufficientQuota)]
    assert len(refused) == 40 - 100 // 7
    await assert_balance(ledgers[0], alice, held=98)


async def test_racing_sweeps_expire_each_hold_once(bench, ledger, alice):
    for _ in range(20):
        await ledger.hold(alice.job(1))
    bench.clock.advance(TTL_S)
    sweeps = [bench.ledger().expire_holds() for _ in range(4)]
    assert sum(await asyncio.gather(*sweeps)) == 20
    await assert_balance(ledger, alice)


async def test_a_cancelled_hold_gives_its_units_back(bench, ledger, alice):
    for turns in range(60):  # cancel after every number of turns of the loop that a hold may take
        task = asyncio.create_task(ledger.hold(alice.job(1)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            await ledger.release(task.result().id)
    await ledger.close()
    await assert_balance(bench.ledger(), alice)


async def test_a_cancelled_capture_still_charges(bench, ledger, alice):
    hold = await ledger.hold(alice.job(30))
    task = asyncio.create_task(ledger.capture(hold.id, 30))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    await ledger.close()
    await assert_balance(bench.ledger(), alice, captured=30)


async def test_last_use_is_written_once_a_minute(bench, ledger, alice):
    async def last_used():
        (key,) = await ledger.admin.list_keys("alice")
        return key.last_used_at

    await ledger.authenticate(alice.secret)
    assert await last_used() is None
    await ledger.hold(alice.job(1))
    assert await last_used() == START
    bench.clock.advance(59)
    await ledger.hold(alice.job(1))
    assert await last_used() == START
    bench.clock.advance(1)
    await bench.ledger().hold(alice.job(1))
    assert await last_used() == bench.clock.now


async def test_an_unknown_account_has_no_balance(ledger):
    with pytest.raises(InvalidValue):
        await ledger.balance("acct_unknown")


async def test_a_ledger_with_tables_can_serve(ledger):
    await ledger.ping()
