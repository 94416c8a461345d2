"""The operator's verbs, and an audit that finds what is wrong."""

import asyncio
from datetime import datetime, timedelta

import pytest
from ledger_bench import START, TTL_S, make_customer

from serve_app.config import DevelopmentConfig
from serve_app.errors import AccountNotFound, ConfigError, InvalidKey, InvalidValue, KeyNotFound
from serve_app.metering.types import UNITS_MAX, Inheritance

DEVELOPMENT = DevelopmentConfig(key="sk-local-development", granted_units=1000)


async def test_an_account_starts_with_nothing(ledger):
    made = await ledger.admin.create_account("alice")
    assert made.balance.id.startswith("acct_")
    assert (made.balance.name, made.balance.available) == ("alice", 0)
    assert (made.created_at, made.disabled_at) == (START, None)
    assert await ledger.admin.show_account("alice") == made
    assert await ledger.admin.show_account(made.balance.id) == made


async def test_accounts_are_listed_oldest_first(bench, ledger):
    for name in ("zoe", "alice", "bob"):
        await ledger.admin.create_account(name)
        bench.clock.advance(1)
    listed = await ledger.admin.list_accounts()
    assert [account.balance.name for account in listed] == ["zoe", "alice", "bob"]
    assert len(await ledger.admin.list_accounts(limit=2)) == 2


@pytest.mark.parametrize(
    "name", ["", " ", " alice", "a\nb", "a\x00", "x" * 201, "acct_1", "\ud800"]
)
async def test_a_name_that_people_could_mistake_is_refused(ledger, name):
    with pytest.raises(InvalidValue) as caught:
        await ledger.admin.create_account(name)
    assert caught.value.param == "name"


async def test_names_are_unique(ledger, alice):
    with pytest.raises(InvalidValue, match="already"):
        await ledger.admin.create_account("alice")
    assert len(await ledger.admin.list_accounts()) == 1


async def test_grants_add_up_and_are_entered(ledger):
    await ledger.admin.create_account("alice")
    await ledger.admin.grant("alice", 10)
    granted = (await ledger.admin.grant("alice", 5)).account
    assert granted.balance.granted == 15
    report = await ledger.admin.audit()
    assert (report.entries, report.balanced) == (2, True)


async def test_racing_grants_and_keys_all_land(bench, alice):
    replicas = [bench.ledger() for _ in range(6)]
    for _ in range(5):
        await asyncio.gather(
            *(ledger.admin.grant("alice", 1) for ledger in replicas),
            *(ledger.admin.create_key("alice") for ledger in replicas),
        )
    account = await replicas[0].admin.show_account("alice")
    assert account.balance.granted == 100 + 30
    assert len(await replicas[0].admin.list_keys("alice")) == 1 + 30
    assert (await replicas[0].admin.audit()).balanced


@pytest.mark.parametrize("units", [0, -1, True, 1.5, UNITS_MAX + 1, 10**40])
async def test_a_grant_is_a_positive_bounded_integer(ledger, alice, units):
    with pytest.raises(InvalidValue) as caught:
        await ledger.admin.grant("alice", units)
    assert caught.value.param == "units"


async def test_grants_cannot_exceed_what_json_counts_exactly(ledger, alice):
    await ledger.admin.grant("alice", UNITS_MAX - 100)
    with pytest.raises(InvalidValue):
        await ledger.admin.grant("alice", 1)
    assert (await ledger.admin.show_account("alice")).balance.granted == UNITS_MAX


async def test_verbs_on_an_unknown_account_say_so(ledger):
    for verb in (
        ledger.admin.show_account("nobody"),
        ledger.admin.grant("nobody", 1),
        ledger.admin.create_key("nobody"),
        ledger.admin.list_keys("nobody"),
        ledger.admin.set_disabled("nobody", disabled=True),
    ):
        with pytest.raises(AccountNotFound, match="no account 'nobody'"):
            await verb


async def test_a_secret_is_given_once_and_kept_nowhere(backend, ledger, alice):
    made = await ledger.admin.create_key("alice")
    assert made.secret.startswith(made.key.prefix)
    listed = await ledger.admin.list_keys("alice")
    assert made.key in listed
    await ledger.close()
    dump = backend.contents()
    assert made.key.id in dump
    assert made.secret not in dump
    assert made.secret[len(made.key.prefix) :] not in dump


@pytest.mark.parametrize("scopes", [(), ("imagse",), ("images", "images")])
async def test_a_key_has_scopes_that_exist(ledger, alice, scopes):
    with pytest.raises(InvalidValue) as caught:
        await ledger.admin.create_key("alice", scopes=scopes)
    assert caught.value.param == "scopes"


@pytest.mark.parametrize(
    "expires_at",
    [START, START - timedelta(days=1), datetime(2100, 1, 1)],
)
async def test_a_key_expires_in_the_future_in_a_time_zone(ledger, alice, expires_at):
    with pytest.raises(InvalidValue) as caught:
        await ledger.admin.create_key("alice", expires_at=expires_at)
    assert caught.value.param == "expires_at"


async def test_a_key_may_not_be_limited_to_nothing(ledger, alice):
    with pytest.raises(InvalidValue):
        await ledger.admin.create_key("alice", rpm=0)


async def test_revoking_again_keeps_the_first_time(bench, ledger, alice):
    first = await ledger.admin.revoke_key(alice.principal.key_id)
    bench.clock.advance(10)
    assert await ledger.admin.revoke_key(alice.principal.key_id) == first
    assert first.revoked_at == START
    with pytest.raises(KeyNotFound):
        await ledger.admin.revoke_key("key_unknown")


async def test_keys_are_listed_for_one_account_or_all(ledger, alice):
    await make_customer(ledger, name="bob")
    assert len(await ledger.admin.list_keys()) == 2
    (key,) = await ledger.admin.list_keys("bob")
    assert key.account_id != alice.principal.account_id


async def test_the_development_account_is_made_once_and_granted_once(ledger):
    await ledger.ensure_development(DEVELOPMENT)
    principal = await ledger.authenticate("sk-local-development")
    assert principal.account_name == "development"
    assert "images" in principal.scopes
    await ledger.ensure_development(DEVELOPMENT)
    (account,) = await ledger.admin.list_accounts()
    assert account.balance.granted == 1000
    assert (await ledger.admin.audit()).balanced


async def test_replicas_that_race_make_one_development_account(bench):
    replicas = [bench.ledger() for _ in range(6)]
    await asyncio.gather(*(ledger.ensure_development(DEVELOPMENT) for ledger in replicas))
    (account,) = await replicas[0].admin.list_accounts()
    assert account.balance.granted == 1000
    assert len(await replicas[0].admin.list_keys()) == 1


async def test_a_new_development_key_joins_the_account(ledger):
    await ledger.ensure_development(DEVELOPMENT)
    await ledger.ensure_development(DEVELOPMENT.model_copy(update={"key": "sk-another-one"}))
    first = await ledger.authenticate("sk-local-development")
    assert (await ledger.authenticate("sk-another-one")).account_id == first.account_id


async def test_a_revoked_development_key_stays_revoked(ledger):
    await ledger.ensure_development(DEVELOPMENT)
    (key,) = await ledger.admin.list_keys()
    await ledger.admin.revoke_key(key.id)
    await ledger.ensure_development(DEVELOPMENT)
    with pytest.raises(InvalidKey):
        await ledger.authenticate(DEVELOPMENT.key)


async def test_a_development_key_of_another_account_is_a_configuration_error(ledger):
    await ledger.ensure_development(DEVELOPMENT)
    with pytest.raises(ConfigError):
        await ledger.ensure_development(DEVELOPMENT.model_copy(update={"account": "other"}))
    assert len(await ledger.admin.list_accounts()) == 1


async def test_an_audit_flags_holds_that_nobody_sweeps_without_calling_them_broken(
    bench, ledger, alice
):
    hold = await ledger.hold(alice.job(10))
    bench.clock.advance(TTL_S + 60)
    assert (await ledger.admin.audit(overdue_after_s=60)).overdue == ()
    bench.clock.advance(1)
    report = await ledger.admin.audit(overdue_after_s=60)
    assert [finding.subject for finding in report.overdue] == [hold.id]
    assert report.balanced


CORRUPTIONS = [
    ("UPDATE accounts SET captured = captured + 1", "sum(entries) = granted - captured"),
    ("UPDATE accounts SET granted = granted + 1", "sum(entries) = granted - captured"),
    ("DELETE FROM entries WHERE kind = 'grant'", "sum(entries) = granted - captured"),
    ("UPDATE accounts SET held = held - 1", "held = sum(open holds)"),
    ("UPDATE holds SET units = 9 WHERE state = 'open'", "held = sum(open holds)"),
    ("DELETE FROM entries WHERE kind = 'capture'", "a charged or refunded hold has its entries"),
    (
        "UPDATE holds SET captured_units = 19 WHERE state = 'captured'",
        "a charged or refunded hold has its entries",
    ),
    (
        "UPDATE entries SET hold_id = (SELECT id FROM holds WHERE state = 'released')"
        " WHERE units = -20",
        "a capture or refund entry has its hold",
    ),
    ("UPDATE accounts SET held = 1000", "nothing is negative"),
    ("UPDATE accounts SET held = -10", "nothing is negative"),
    ("UPDATE holds SET resolved_at = NULL WHERE state = 'released'", "a hold's columns agree"),
    ("UPDATE holds SET captured_units = 5 WHERE state = 'released'", "a hold's columns agree"),
    ("UPDATE holds SET undelivered_by = 'gw' WHERE state = 'open'", "a hold's columns agree"),
    ("DELETE FROM api_keys", "a hold's columns agree"),
    ("DELETE FROM entries WHERE kind = 'refund'", "a charged or refunded hold has its entries"),
    ("UPDATE entries SET units = 39 WHERE kind = 'refund'", "sum(entries) = granted - captured"),
    (
        "UPDATE holds SET state = 'released' WHERE state = 'refunded'",
        "a capture or refund entry has its hold",
    ),
    (
        "UPDATE entries SET hold_id = (SELECT id FROM holds WHERE state = 'captured')"
        " WHERE kind = 'refund'",
        "a capture or refund entry has its hold",
    ),
]


async def make_books(ledger):
    """Books with a hold of every kind."""
    alice = await make_customer(ledger)
    await ledger.hold(alice.job(10))
    await ledger.capture((await ledger.hold(alice.job(20))).id, 20)
    await ledger.release((await ledger.hold(alice.job(30))).id)
    await ledger.beat()
    lost = await ledger.hold(alice.job(40))
    await ledger.capture(lost.id, 40, undelivered=True)
    assert await ledger._sweeps.inherit([ledger._id]) == Inheritance(0, 1, 40)


async def test_an_audit_finds_damage(backend, bench, subtests):
    for damage, invariant in CORRUPTIONS:
        with subtests.test(damage=damage):
            backend.clear()
            ledger = bench.ledger()
            await make_books(ledger)
            assert (await ledger.admin.audit()).balanced
            backend.damage(damage)
            report = await ledger.admin.audit()
            await ledger.close()
            assert not report.balanced
            assert invariant in {finding.invariant for finding in report.findings}
            assert all(finding.account_id for finding in report.findings)
