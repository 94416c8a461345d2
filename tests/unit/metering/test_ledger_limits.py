"""Limits of keys and budgets of accounts hold exactly, over any number of gateways."""

import asyncio
from datetime import timedelta

import pytest
from ledger_bench import Customer, make_customer

from serve_app.errors import (
    BudgetExceeded,
    IdempotencyKeyReused,
    InsufficientQuota,
    InvalidValue,
    RateLimitExceeded,
)
from serve_app.metering.limits import Rate
from serve_app.metering.types import Hold


async def limited(ledger, alice, **limits):
    made = await ledger.admin.create_key("alice", **limits)
    return Customer(await ledger.authenticate(made.secret), made.secret)


async def attempt(ledger, request):
    try:
        return await ledger.hold(request)
    except (RateLimitExceeded, BudgetExceeded, InsufficientQuota, IdempotencyKeyReused) as exc:
        return exc


def holds(outcomes):
    return [one for one in outcomes if isinstance(one, Hold)]


async def test_a_key_without_limits_is_told_of_none(ledger, alice):
    assert (await ledger.hold(alice.job())).rate is None


async def test_a_key_makes_its_requests_a_minute_and_is_then_told_when_to_come_back(
    ledger, alice, bench
):
    bob = await limited(ledger, alice, rpm=3)
    remaining = [(await ledger.hold(bob.job(1))).rate.remaining for _ in range(3)]
    assert remaining == [2, 1, 0]
    with pytest.raises(RateLimitExceeded) as refused:
        await ledger.hold(bob.job(1))
    assert refused.value.retry_after_s == 20
    assert refused.value.rate == Rate(3, 0, 60.0)
    bench.clock.advance(20)
    assert (await ledger.hold(bob.job(1))).rate.remaining == 0
    assert (await ledger.balance(bob.principal.account_id)).held == 4


async def test_a_refused_request_takes_nothing_from_the_account_and_nothing_from_the_rate(
    ledger, alice
):
    bob = await limited(ledger, alice, rpm=2)
    with pytest.raises(InsufficientQuota):
        await ledger.hold(bob.job(1000))
    assert (await ledger.hold(bob.job(1))).rate.remaining == 1
    assert (await ledger.balance(bob.principal.account_id)).held == 1


async def test_another_key_of_the_account_has_its_own_limit(ledger, alice):
    bob = await limited(ledger, alice, rpm=1)
    await ledger.hold(bob.job(1))
    await ledger.hold(alice.job(1))
    with pytest.raises(RateLimitExceeded):
        await ledger.hold(bob.job(1))


async def test_images_at_once_count_open_holds_only(ledger, alice):
    bob = await limited(ledger, alice, images_max=3)
    first = await ledger.hold(bob.job(4, n=2))
    with pytest.raises(RateLimitExceeded, match="3 images"):
        await ledger.hold(bob.job(4, n=2))
    await ledger.hold(bob.job(4, n=1))
    await ledger.capture(first.id, 4)
    await ledger.hold(bob.job(4, n=2))


async def test_a_keyed_hold_counts_itself_once(ledger, alice):
    bob = await limited(ledger, alice, images_max=2)
    await ledger.hold(bob.job(1, n=2, idempotency_key="a"))
    with pytest.raises(RateLimitExceeded):
        await ledger.hold(bob.job(1, n=1, idempotency_key="b"))
    assert await ledger.find_hold(bob.principal.account_id, "b") is None


@pytest.mark.parametrize("limits", [{"rpm": 7}, {"images_max": 7}])
async def test_racing_gateways_admit_exactly_the_limit(bench, ledger, alice, limits):
    bob = await limited(ledger, alice, **limits)
    gateways = [bench.ledger() for _ in range(3)]
    outcomes = await asyncio.gather(
        *(attempt(gateways[i % 3], bob.job(1)) for i in range(30)),
        *(attempt(gateways[i % 3], bob.job(1, idempotency_key=f"k{i}")) for i in range(6)),
    )
    assert len(holds(outcomes)) == 7
    assert (await ledger.balance(bob.principal.account_id)).held == 7
    assert (await ledger.admin.audit()).balanced


async def test_a_day_s_budget_counts_what_is_held_and_captured_and_ends_with_the_day(
    ledger, alice, bench
):
    account = alice.principal.account_id
    await ledger.admin.set_budgets("alice", 10, None)
    await ledger.capture((await ledger.hold(alice.job(6))).id, 5)
    await ledger.hold(alice.job(5))
    with pytest.raises(BudgetExceeded, match="10 compute units a day") as refused:
        await ledger.hold(alice.job(1))
    assert refused.value.retry_after_s == 86_400
    assert not refused.value.retryable
    await ledger.expire_holds()
    bench.clock.advance(86_400)
    await ledger.expire_holds()
    await ledger.hold(alice.job(10))
    assert (await ledger.balance(account)).held == 10


async def test_a_month_s_budget_adds_up_its_days(ledger, alice, bench):
    await ledger.admin.set_budgets("alice", 6, 10)
    for _ in range(2):
        await ledger.capture((await ledger.hold(alice.job(5))).id, 5)
        bench.clock.advance(86_400)
    with pytest.raises(BudgetExceeded, match="a month"):
        await ledger.hold(alice.job(1))
    bench.clock.now += timedelta(days=31)
    await ledger.hold(alice.job(6))


async def test_racing_gateways_spend_exactly_the_budget(bench, ledger, alice):
    await ledger.admin.set_budgets("alice", 20, None)
    gateways = [bench.ledger() for _ in range(3)]

    async def spend(i):
        outcome = await attempt(gateways[i % 3], alice.job(3))
        if isinstance(outcome, Hold):
            await gateways[(i + 1) % 3].capture(outcome.id, 3)
        return outcome

    outcomes = await asyncio.gather(*(spend(i) for i in range(24)))
    assert len(holds(outcomes)) == 6
    assert (await ledger.balance(alice.principal.account_id)).captured == 18
    assert (await ledger.admin.audit()).balanced


async def test_the_reply_is_kept_with_the_charge_until_it_is_forgotten(ledger, alice, bench):
    account = alice.principal.account_id
    hold = await ledger.hold(alice.job(4, idempotency_key="a", request_sha256="f" * 64))
    await ledger.capture(hold.id, 4, '{"images": []}')
    kept = await ledger.find_hold(account, "a")
    assert (kept.request_sha256, kept.reply) == ("f" * 64, '{"images": []}')
    assert await ledger.forget_replies(bench.clock.now - timedelta(hours=1)) == 0
    assert await ledger.forget_replies(bench.clock.now) == 1
    assert await ledger.find_hold(account, "a") is None
    await ledger.hold(alice.job(4, idempotency_key="a"))


async def test_usage_is_counted_by_the_day_of_the_capture_and_audited(
    ledger, alice, bench, backend
):
    await ledger.capture((await ledger.hold(alice.job(8, n=4))).id, 6)
    await ledger.capture((await ledger.hold(alice.job(4, model="other"))).id, 4)
    assert (await ledger.admin.audit()).balanced
    backend.execute("UPDATE usage_days SET units = units + 1 WHERE model = 'other'")
    report = await ledger.admin.audit()
    assert [finding.invariant for finding in report.findings] == ["sum(usage by day) = captured"]
    assert report.findings[0].detail == "usage 11, account 10"


async def test_bad_limits_are_refused_by_name(ledger):
    await make_customer(ledger)
    for name in ("rpm", "images_max"):
        with pytest.raises(InvalidValue) as refused:
            await ledger.admin.create_key("alice", **{name: 0})
        assert refused.value.param == name
    with pytest.raises(InvalidValue) as refused:
        await ledger.admin.set_budgets("alice", None, -1)
    assert refused.value.param == "month_budget"
