"""Listings in pages, usage by whatever one asks for, and what is left."""

from datetime import date, timedelta

import pytest
from ledger_bench import START, Customer, make_customer

from serve_app.errors import AccountNotFound, InvalidValue, KeyNotFound
from serve_app.metering import listings
from serve_app.metering.listings import UsageQuery, walk
from serve_app.metering.records import Allowance

DAY_S = 24 * 3600
FIRST = date(2026, 1, 1)


async def draw(ledger, customer, units, **job):
    hold = await ledger.hold(customer.job(units, **job))
    await ledger.capture(hold.id, units)


async def in_pages(fetch):
    """Every item, fetched one by one."""
    found, after = [], None
    while page := await fetch(1, after):
        found += page
        after = page[-1].cursor
        assert len(page) == 1
        assert len(found) < 50
    return found


async def test_pages_hold_every_item_once_and_in_order(bench, ledger):
    for name in ("zoe", "alice", "bob"):
        await ledger.admin.create_account(name)
        await ledger.admin.create_key(name)
        await ledger.admin.create_key(name)  # at the same time as the one before
        await ledger.admin.grant(name, 5)
        bench.clock.advance(1)
    admin = ledger.admin
    listings_ = [
        lambda limit, after: admin.list_accounts(limit, after),
        lambda limit, after: admin.list_keys(None, limit, after),
        lambda limit, after: admin.list_keys("alice", limit, after),
        lambda limit, after: admin.list_entries(None, limit, after),
        lambda limit, after: admin.list_acts(None, limit, after),
    ]
    for fetch, length in zip(listings_, (3, 6, 2, 3, 12), strict=True):
        whole = await fetch(1000, None)
        assert len(whole) == length
        assert await in_pages(fetch) == whole


async def test_a_walk_goes_through_all_pages(ledger, monkeypatch):
    monkeypatch.setattr(listings, "LIST_MAX", 2)
    for name in ("a", "b", "c", "d"):
        await ledger.admin.create_account(name)
    pages = [page async for page in walk(ledger.admin.list_accounts)]
    assert [len(page) for page in pages] == [2, 2, 0]


@pytest.mark.parametrize("after", ["", "x", "0x1", "-1", "9" * 30, "\0", "é", "W10", "e30"])
async def test_a_cursor_that_nobody_gave_out_is_refused(ledger, alice, after):
    admin, week = ledger.admin, UsageQuery(FIRST, FIRST + timedelta(days=6))
    for attempt in (
        admin.list_accounts(10, after),
        admin.list_keys(None, 10, after),
        admin.list_entries(None, 10, after),
        admin.list_acts(None, 10, after),
        admin.usage(week, 10, after),
    ):
        with pytest.raises(InvalidValue) as refused:
            await attempt
        assert refused.value.param == "after"


async def test_usage_is_summed_up_by_what_one_asks_for(bench, ledger, alice):
    bob = await make_customer(ledger, name="bob")
    made = await ledger.admin.create_key("alice")
    second = Customer(await ledger.authenticate(made.secret), made.secret)
    await draw(ledger, alice, 4, n=2)
    await draw(ledger, alice, 3, model="other")
    await draw(ledger, second, 5)
    bench.clock.advance(DAY_S)
    await draw(ledger, alice, 7)
    await draw(ledger, bob, 11)

    async def sums(*by, until=FIRST + timedelta(days=1), **only):
        rows = await ledger.admin.usage(UsageQuery(FIRST, until, by, **only))
        return [
            (*(one for one in (row.day, row.account_id, row.key_id, row.model) if one is not None),
             row.jobs, row.images, row.units)
            for row in rows
        ]  # fmt: skip

    assert await sums("day") == [(FIRST, 3, 4, 12), (FIRST + timedelta(days=1), 2, 2, 18)]
    assert await sums("day", until=FIRST) == [(FIRST, 3, 4, 12)]
    assert await sums("model") == [("flux-mini", 4, 5, 27), ("other", 1, 1, 3)]
    assert await sums("model", account="alice") == [("flux-mini", 3, 4, 16), ("other", 1, 1, 3)]
    assert await sums("model", account="bob", until=FIRST) == []
    by_key = {(key, units) for key, _, _, units in await sums("key", account="alice")}
    assert by_key == {(alice.principal.key_id, 14), (second.principal.key_id, 5)}
    assert await sums("day", key_id=second.principal.key_id) == [(FIRST, 1, 1, 5)]
    assert await sums("account", model="other") == [(alice.principal.account_id, 1, 1, 3)]
    assert await sums("day", model="\0") == []
    assert len(await sums("day", "account", "key", "model")) == 5


async def test_usage_comes_in_pages_too(bench, ledger, alice):
    for model in ("b", "a", "c"):
        await draw(ledger, alice, 2, model=model)
    bench.clock.advance(DAY_S)
    await draw(ledger, alice, 1)
    for by in (("day", "model"), ("model",), ("day",), ("day", "account", "key", "model")):
        query = UsageQuery(FIRST, FIRST + timedelta(days=3), by)
        whole = await ledger.admin.usage(query)
        paged = await in_pages(lambda limit, after, q=query: ledger.admin.usage(q, limit, after))
        assert paged == whole
        assert len(whole) > 1


@pytest.mark.parametrize(
    ("query", "param"),
    [
        (UsageQuery(FIRST, FIRST - timedelta(days=1)), "from"),
        (UsageQuery(FIRST, FIRST + timedelta(days=366)), "from"),
        (UsageQuery(FIRST, FIRST, ()), "by"),
        (UsageQuery(FIRST, FIRST, ("hour",)), "by"),
    ],
)
async def test_usage_that_cannot_be_told_is_refused_by_name(ledger, query, param):
    with pytest.raises(InvalidValue) as refused:
        await ledger.admin.usage(query)
    assert refused.value.param == param


async def test_listings_of_an_unknown_account_say_so(ledger):
    for attempt in (
        ledger.admin.list_entries("nobody"),
        ledger.admin.list_keys("\0"),
        ledger.admin.usage(UsageQuery(FIRST, FIRST, account="nobody")),
    ):
        with pytest.raises(AccountNotFound):
            await attempt


async def test_what_is_left_counts_what_is_held_and_what_was_drawn(bench, ledger, alice):
    admin = ledger.admin
    account, key = alice.principal.account_id, alice.principal.key_id
    free = await admin.standing(account, key)
    assert (free.day.left, free.month.left, free.requests_left, free.images_max) == (None,) * 4
    await admin.set_budgets("alice", 10, 20)
    await admin.limit_key(key, rpm=6, images_max=3)
    await draw(ledger, alice, 4)
    bench.clock.advance(DAY_S)
    await draw(ledger, alice, 5)
    await ledger.hold(alice.job(3, n=2))
    left = await admin.standing(account, key)
    assert left.day == Allowance(10, 8, START + timedelta(days=2))
    assert left.month == Allowance(20, 12, START.replace(month=2))
    assert (left.day.left, left.month.left) == (2, 8)
    assert (left.rpm, left.requests_left, left.images_max, left.images_open) == (6, 4, 3, 2)
    await admin.set_budgets("alice", 1, None)
    assert (await admin.standing(account, key)).day.left == 0
    with pytest.raises(KeyNotFound):
        await admin.standing(account, "key_x")


async def test_limits_of_a_key_hold_from_its_next_request_and_can_be_lifted(ledger, alice):
    key = alice.principal.key_id
    limited = await ledger.admin.limit_key(key, rpm=1, images_max=2, models=["flux-mini"])
    assert (limited.rpm, limited.images_max, limited.models) == (1, 2, ("flux-mini",))
    assert (await ledger.hold(alice.job(1))).rate.remaining == 0
    lifted = await ledger.admin.limit_key(key)
    assert (lifted.rpm, lifted.images_max, lifted.models) == (None, None, None)
    assert (await ledger.hold(alice.job(1))).rate is None
    with pytest.raises(KeyNotFound):
        await ledger.admin.limit_key("key_x")


@pytest.mark.parametrize("models", [[], [""], ["a b"], ["a", "a"], ["x" * 201], ["\ud800"]])
async def test_models_that_the_column_cannot_keep_apart_are_refused(ledger, alice, models):
    with pytest.raises(InvalidValue) as refused:
        await ledger.admin.create_key("alice", models=models)
    assert refused.value.param == "models"
