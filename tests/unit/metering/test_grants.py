"""Grants under an idempotency key: made once, however often and by whomever they are sent."""

import asyncio

import pytest

from serve_app.errors import IdempotencyKeyReused, InvalidValue
from serve_app.metering.records import Author, Granted

ANN, BOB = Author("cli:ann", "invoice 17"), Author("api:acct/key", "invoice 17")
KEY = "invoice-17"


async def granted_units(ledger, name="alice"):
    return (await ledger.admin.show_account(name)).balance.granted


async def test_the_same_grant_again_adds_nothing_whoever_sends_it(ledger, alice):
    first = await ledger.admin.by(ANN).grant("alice", 5, KEY)
    assert (first.account.balance.granted, first.replayed) == (105, False)
    before = await ledger.admin.list_acts()
    again = await ledger.admin.by(BOB).grant(alice.principal.account_id, 5, KEY)
    assert (again.account.balance.granted, again.replayed) == (105, True)
    assert await ledger.admin.list_acts() == before
    assert before[0].detail == {"units": 5, "idempotency_key": KEY}
    assert (await ledger.admin.audit()).balanced


@pytest.mark.parametrize(
    ("account", "units", "reason"),
    [("bob", 5, "invoice 17"), ("alice", 6, "invoice 17"), ("alice", 5, "invoice 18")],
)
async def test_a_key_of_another_grant_is_refused(ledger, alice, account, units, reason):
    await ledger.admin.create_account("bob")
    await ledger.admin.by(ANN).grant("alice", 5, KEY)
    acts = await ledger.admin.list_acts()
    with pytest.raises(IdempotencyKeyReused):
        await ledger.admin.by(Author("cli:ann", reason)).grant(account, units, KEY)
    assert (await granted_units(ledger), await granted_units(ledger, "bob")) == (105, 0)
    assert await ledger.admin.list_acts() == acts


async def test_a_refused_grant_does_not_take_its_key(ledger, alice):
    with pytest.raises(InvalidValue):
        await ledger.admin.by(ANN).grant("alice", 2**53 - 1, KEY)
    assert not (await ledger.admin.by(ANN).grant("alice", 5, KEY)).replayed


async def test_racing_retries_grant_once(bench, alice):
    replicas = [bench.ledger() for _ in range(6)]
    for turn in range(5):
        found = await asyncio.gather(
            *(ledger.admin.grant("alice", 1, f"turn-{turn}") for ledger in replicas * 2)
        )
        assert sorted(one.replayed for one in found) == [False] + [True] * 11
    assert await granted_units(replicas[0]) == 100 + 5
    assert (await replicas[0].admin.audit()).balanced


async def test_of_racing_grants_to_two_accounts_under_one_key_one_is_made(bench, ledger, alice):
    await ledger.admin.create_account("bob")
    replicas = [bench.ledger() for _ in range(4)]
    found = await asyncio.gather(
        *(
            ledger.admin.grant(name, 1, KEY)
            for ledger, name in zip(replicas, ("alice", "bob") * 2, strict=True)
        ),
        return_exceptions=True,
    )
    made = [one for one in found if isinstance(one, Granted)]
    assert sorted(one.replayed for one in made) == [False, True]
    assert [type(one) for one in found if one not in made] == [IdempotencyKeyReused] * 2
    assert await granted_units(ledger) + await granted_units(ledger, "bob") == 101
    assert (await ledger.admin.audit()).balanced


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "ключ", "a\nb", "a\0"])
async def test_a_bad_key_is_refused_by_name(ledger, alice, key):
    with pytest.raises(InvalidValue) as caught:
        await ledger.admin.grant("alice", 5, key)
    assert caught.value.param == "idempotency_key"
    assert await granted_units(ledger) == 100
