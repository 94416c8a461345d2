"""Whatever an operator changes is written down with it: who, what, to whom, why."""

from datetime import timedelta

import pytest
from ledger_bench import START, make_customer

from serve_app.config import DevelopmentConfig
from serve_app.errors import InvalidValue
from serve_app.metering.records import Author
from serve_app.metering.types import UNITS_MAX

BOB = Author("cli:bob", "ticket 7")


async def test_every_verb_leaves_an_act_of_its_author(ledger):
    admin = ledger.admin.by(BOB)
    account = (await admin.create_account("alice")).balance.id
    await admin.grant("alice", 5)
    await admin.set_budgets("alice", 3, None)
    made = await admin.create_key(
        "alice", rpm=6, models=["a", "b"], expires_at=START + timedelta(days=1)
    )
    await admin.limit_key(made.key.id, images_max=2)
    await admin.revoke_key(made.key.id)
    await admin.set_disabled("alice", disabled=True)
    await admin.set_disabled("alice", disabled=False)
    found = await ledger.admin.list_acts()
    assert {(act.actor, act.reason, act.at) for act in found} == {("cli:bob", "ticket 7", START)}
    none = {"rpm": None, "images_max": None, "models": None}
    created = {**none, "rpm": 6, "models": "a b", "scopes": "images", "account": account}
    assert [(act.verb, act.subject, act.detail) for act in reversed(found)] == [
        ("accounts create", account, {"name": "alice"}),
        ("grant", account, {"units": 5}),
        ("accounts budget", account, {"day_budget": 3, "month_budget": None}),
        ("keys create", made.key.id, {**created, "expires_at": "2026-01-02T00:00:00+00:00"}),
        ("keys limit", made.key.id, {**none, "images_max": 2, "account": account}),
        ("keys revoke", made.key.id, {"account": account}),
        ("accounts disable", account, {}),
        ("accounts enable", account, {}),
    ]


async def test_no_act_holds_a_secret(backend, ledger):
    made = await make_customer(ledger)
    assert made.secret not in backend.contents()


async def test_what_changed_nothing_is_no_act(ledger, alice):
    key = alice.principal.key_id
    await ledger.admin.revoke_key(key)
    await ledger.admin.set_disabled("alice", disabled=True)
    before = await ledger.admin.list_acts()
    await ledger.admin.revoke_key(key)
    await ledger.admin.set_disabled("alice", disabled=True)
    assert await ledger.admin.list_acts() == before


async def test_what_failed_is_no_act(ledger, alice):
    before = await ledger.admin.list_acts()
    for attempt in (
        ledger.admin.create_account("alice"),
        ledger.admin.grant("alice", UNITS_MAX),
        ledger.admin.create_key("alice", rpm=0),
    ):
        with pytest.raises(InvalidValue):
            await attempt
    assert await ledger.admin.list_acts() == before


async def test_the_act_and_the_change_happen_together_or_not_at_all(backend, ledger, alice):
    backend.execute("ALTER TABLE acts RENAME TO gone")
    with pytest.raises(Exception, match="unavailable"):
        await ledger.admin.grant("alice", 7)
    backend.execute("ALTER TABLE gone RENAME TO acts")
    assert (await ledger.admin.show_account("alice")).balance.granted == 100
    assert (await ledger.admin.audit()).balanced


async def test_acts_are_listed_newest_first_of_one_subject_or_all(ledger, alice):
    await ledger.admin.revoke_key(alice.principal.key_id)
    of_key = await ledger.admin.list_acts(alice.principal.key_id)
    assert [act.verb for act in of_key] == ["keys revoke", "keys create"]
    assert await ledger.admin.list_acts("nobody") == []
    assert await ledger.admin.list_acts("\0") == []
    first = await ledger.admin.list_acts(limit=3)
    rest = await ledger.admin.list_acts(after=first[-1].cursor)
    assert [*first, *rest] == await ledger.admin.list_acts()
    assert len(rest) == 1


async def test_the_server_itself_is_an_author(ledger):
    await ledger.ensure_development(DevelopmentConfig(key="sk-local-development"))
    found = await ledger.admin.list_acts()
    assert {(act.actor, act.reason) for act in found} == {("system", "development")}
    assert [act.verb for act in found] == ["keys create", "grant", "accounts create"]


@pytest.mark.parametrize("reason", ["x" * 1001, "a\0b", "\ud800"])
async def test_a_reason_that_no_database_keeps_is_refused(ledger, reason):
    with pytest.raises(InvalidValue) as refused:
        ledger.admin.by(Author("cli:bob", reason))
    assert refused.value.param == "reason"


async def test_the_reason_of_a_grant_is_the_memo_of_its_entry(ledger, alice):
    await ledger.admin.by(BOB).grant("alice", 5)
    newest, first = await ledger.admin.list_entries("alice")
    assert (newest.kind, newest.units, newest.memo, first.memo) == ("grant", 5, "ticket 7", "")
