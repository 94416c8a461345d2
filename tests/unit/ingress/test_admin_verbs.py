"""Accounts, grants and keys over HTTP: what an operator does, and what is written down of it."""

from typing import Any

import httpx
import pytest
from scripted import World, error_of

from serve_app.metering.types import UNITS_MAX, Principal

ACCOUNTS, KEYS, GRANTS = "/admin/v1/accounts", "/admin/v1/keys", "/admin/v1/grants"
VERBS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", ACCOUNTS, {"name": "bob"}),
    ("POST", f"{ACCOUNTS}/alice/disable", {}),
    ("POST", f"{ACCOUNTS}/alice/enable", {}),
    ("PUT", f"{ACCOUNTS}/alice/budgets", {"day_budget": 5}),
    ("POST", GRANTS, {"account": "alice", "units": 5, "reason": "ticket 7"}),
    ("POST", KEYS, {"account": "alice"}),
    ("PUT", f"{KEYS}/KEY/limits", {"rpm": 5}),
    ("POST", f"{KEYS}/KEY/revoke", {}),
]
READS = [
    ACCOUNTS, f"{ACCOUNTS}/alice", KEYS, "/admin/v1/entries", "/admin/v1/acts", "/admin/v1/audit",
    "/admin/v1/usage",
]  # fmt: skip


@pytest.fixture
async def operator_key(world: World) -> str:
    await world.ledger.admin.create_account("operators")
    return (await world.ledger.admin.create_key("operators", scopes=["admin"])).secret


@pytest.fixture
async def operator(world: World, operator_key: str) -> Principal:
    return await world.ledger.authenticate(operator_key)


@pytest.fixture
def admin(world: World, operator_key: str) -> httpx.AsyncClient:
    return world.client(operator_key)


async def ok(reply: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["cache-control"] == "no-store"
    found: dict[str, Any] = reply.json()
    return found


async def test_an_account_goes_from_nothing_to_a_picture_and_its_key_is_revoked(
    world: World, admin: httpx.AsyncClient
) -> None:
    account = await ok(await admin.post(ACCOUNTS, json={"name": "bob", "reason": "new"}), 201)
    assert (account["name"], account["available"], account["disabled_at"]) == ("bob", 0, None)
    body = {"account": "bob", "units": 10**7, "reason": "invoice 17"}
    granted = await ok(await admin.post(GRANTS, json=body), 201)
    assert (granted["id"], granted["available"]) == (account["id"], 10**7)
    limits = {"rpm": 60, "images_max": 4, "models": ["flux-mini"]}
    made = await ok(await admin.post(KEYS, json={"account": "bob", **limits}), 201)
    assert {name: made[name] for name in limits} == limits
    assert made["scopes"] == ["images"]
    bob = world.client(made["secret"])
    drawn = await bob.post("/v1/images/generations", json={"prompt": "x", "size": "256x256"})
    assert drawn.status_code == 200
    shown = await ok(await admin.get(f"{ACCOUNTS}/bob"))
    assert shown["captured"] == int(drawn.headers["x-compute-units"]) > 0
    (listed,) = (await ok(await admin.get(KEYS, params={"account": "bob"})))["data"]
    assert "secret" not in listed
    assert (listed["id"], listed["prefix"]) == (made["id"], made["secret"][:9])
    revoked = await ok(await admin.post(f"{KEYS}/{made['id']}/revoke", json={"reason": "leaked"}))
    assert revoked["revoked_at"] is not None
    refused = await bob.post("/v1/images/generations", json={"prompt": "x"})
    assert refused.status_code == 401


async def test_every_act_names_the_key_that_did_it_and_the_reason(
    world: World, admin: httpx.AsyncClient, operator: Principal
) -> None:
    before = len(await world.ledger.admin.list_acts())
    key = world.principal.key_id
    for method, path, body in VERBS:
        reply = await admin.request(
            method, path.replace("KEY", key), json={"reason": "ticket 7", **body}
        )
        assert reply.is_success, reply.text
    acts = (await ok(await admin.get("/admin/v1/acts")))["data"][:-before]
    assert [act["verb"] for act in reversed(acts)] == [
        "accounts create", "accounts disable", "accounts enable", "accounts budget", "grant",
        "keys create", "keys limit", "keys revoke",
    ]  # fmt: skip
    assert {act["actor"] for act in acts} == {f"api:{operator.account_id}/{operator.key_id}"}
    assert {act["reason"] for act in acts} == {"ticket 7"}


@pytest.mark.parametrize(("method", "path", "body"), VERBS, ids=lambda value: str(value))
async def test_a_key_for_images_changes_nothing(
    world: World, method: str, path: str, body: dict[str, Any]
) -> None:
    before = await world.ledger.admin.list_acts()
    path = path.replace("KEY", world.principal.key_id)
    reply = await world.http.request(method, path, json=body)
    assert (reply.status_code, error_of(reply)["code"]) == (403, "insufficient_scope")
    assert (await world.client(None).request(method, path, json=body)).status_code == 401
    assert await world.ledger.admin.list_acts() == before


@pytest.mark.parametrize("path", READS)
async def test_a_key_for_images_reads_nothing_of_others(world: World, path: str) -> None:
    reply = await world.http.get(path)
    assert (reply.status_code, error_of(reply)["code"]) == (403, "insufficient_scope")


NOWHERE = [
    ("GET", f"{ACCOUNTS}/nobody", None, "account_not_found"),
    ("POST", f"{ACCOUNTS}/nobody/disable", {}, "account_not_found"),
    ("PUT", f"{ACCOUNTS}/%00/budgets", {}, "account_not_found"),
    ("POST", GRANTS, {"account": "nobody", "units": 1, "reason": "x"}, "account_not_found"),
    ("POST", GRANTS, {"account": "a\0", "units": 1, "reason": "x"}, "account_not_found"),
    ("POST", KEYS, {"account": "nobody"}, "account_not_found"),
    ("GET", f"{KEYS}?account=nobody", None, "account_not_found"),
    ("GET", "/admin/v1/entries?account=nobody&format=csv", None, "account_not_found"),
    ("GET", "/admin/v1/usage?account=nobody", None, "account_not_found"),
    ("PUT", f"{KEYS}/key_x/limits", {}, "key_not_found"),
    ("POST", f"{KEYS}/%00/revoke", {}, "key_not_found"),
]


@pytest.mark.parametrize(("method", "path", "body", "code"), NOWHERE, ids=str)
async def test_what_is_not_there_is_a_404(
    admin: httpx.AsyncClient, method: str, path: str, body: Any, code: str
) -> None:
    reply = await admin.request(method, path, json=body)
    assert (reply.status_code, error_of(reply)["code"]) == (404, code)


BAD = [
    ("POST", ACCOUNTS, {"name": "alice"}, "name"),
    ("POST", ACCOUNTS, {"name": "acct_1"}, "name"),
    ("POST", ACCOUNTS, {"name": 5}, "name"),
    ("POST", ACCOUNTS, {}, "name"),
    ("POST", ACCOUNTS, {"name": "bob", "unitz": 5}, "unitz"),
    ("POST", ACCOUNTS, {"name": "bob", "reason": "a\0b"}, "reason"),
    ("POST", GRANTS, {"account": "alice", "units": 5}, "reason"),
    ("POST", GRANTS, {"account": "alice", "units": 5, "reason": ""}, "reason"),
    ("POST", GRANTS, {"account": "alice", "units": -5, "reason": "x"}, "units"),
    ("POST", GRANTS, {"account": "alice", "units": "5", "reason": "x"}, "units"),
    ("POST", GRANTS, {"account": "alice", "units": UNITS_MAX, "reason": "x"}, "units"),
    ("PUT", f"{ACCOUNTS}/alice/budgets", {"day": 5}, "day"),
    ("PUT", f"{ACCOUNTS}/alice/budgets", {"day_budget": 0}, "day_budget"),
    ("POST", KEYS, {"account": "alice", "scopes": ["root"]}, "scopes"),
    ("POST", KEYS, {"account": "alice", "scopes": ["images", "images"]}, "scopes"),
    ("POST", KEYS, {"account": "alice", "models": ["a b"]}, "models"),
    ("POST", KEYS, {"account": "alice", "rpm": True}, "rpm"),
    ("POST", KEYS, {"account": "alice", "expires_at": 4102444800}, "expires_at"),
    ("POST", KEYS, {"account": "alice", "expires_at": "soon"}, "expires_at"),
    ("POST", KEYS, {"account": "alice", "expires_at": "2100-01-01T00:00:00"}, "expires_at"),
    ("POST", KEYS, {"account": "alice", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
    ("POST", KEYS, {"account": "alice", "expires_at": "9999-12-31T23:59:59-12:00"}, "expires_at"),
    ("GET", f"{ACCOUNTS}?limit=0", None, "limit"),
    ("GET", f"{ACCOUNTS}?limit=1001", None, "limit"),
    ("GET", f"{ACCOUNTS}?after=nobody", None, "after"),
    ("GET", f"{ACCOUNTS}?page=2", None, "page"),
    ("GET", f"{ACCOUNTS}?limit=1&limit=2", None, "limit"),
]


@pytest.mark.parametrize(("method", "path", "body", "param"), BAD, ids=str)
async def test_a_slip_is_named_and_changes_nothing(
    world: World, admin: httpx.AsyncClient, method: str, path: str, body: Any, param: str
) -> None:
    before = await world.ledger.admin.list_acts()
    reply = await admin.request(method, path, json=body)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    assert await world.ledger.admin.list_acts() == before


@pytest.mark.parametrize("path", [ACCOUNTS, KEYS])
async def test_a_method_that_a_listing_does_not_have_is_told_both_that_it_has(
    admin: httpx.AsyncClient, path: str
) -> None:
    reply = await admin.delete(path)
    assert reply.status_code == 405
    assert set(reply.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_a_key_may_expire(admin: httpx.AsyncClient) -> None:
    body = {"account": "alice", "expires_at": "2100-01-31T12:00:00+02:00", "scopes": ["admin"]}
    made = await ok(await admin.post(KEYS, json=body), 201)
    assert (made["expires_at"], made["scopes"]) == ("2100-01-31T10:00:00Z", ["admin"])


async def test_limits_are_set_whole(admin: httpx.AsyncClient, world: World) -> None:
    path = f"{KEYS}/{world.principal.key_id}/limits"
    assert (await ok(await admin.put(path, json={"rpm": 5})))["rpm"] == 5
    limited = await ok(await admin.put(path, json={"images_max": 2, "rpm": None}))
    assert (limited["rpm"], limited["images_max"]) == (None, 2)


async def test_pages_lead_from_one_to_the_next(admin: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await ok(await admin.post(ACCOUNTS, json={"name": name}), 201)
    names, after = [], ""
    while after is not None:
        query = {"limit": 2, **({"after": after} if after else {})}
        page = await ok(await admin.get(ACCOUNTS, params=query))
        names.append([account["name"] for account in page["data"]])
        after = page["next"]
    assert names == [["alice", "operators"], ["a", "b"], ["c"]]


async def test_a_grant_that_is_sent_again_under_its_key_is_answered_and_not_made_again(
    world: World, admin: httpx.AsyncClient
) -> None:
    body = {"account": "alice", "units": 5, "reason": "invoice 17"}
    key = {"idempotency-key": "invoice-17"}
    first = await admin.post(GRANTS, json=body, headers=key)
    again = await admin.post(GRANTS, json=body, headers=key)
    assert await ok(again, 201) == await ok(first, 201)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = await admin.post(GRANTS, json={**body, "units": 6}, headers=key)
    assert (other.status_code, error_of(other)["code"]) == (409, "idempotency_key_reused")
    shown = await ok(await admin.get(f"{ACCOUNTS}/alice"))
    assert shown["granted"] == first.json()["granted"]


@pytest.mark.parametrize("keys", [[""], ["two words"], ["x" * 256], ["a", "a"]])
async def test_a_grant_under_a_bad_key_is_refused(
    admin: httpx.AsyncClient, keys: list[str]
) -> None:
    body = {"account": "alice", "units": 5, "reason": "invoice 17"}
    headers = [("idempotency-key", key) for key in keys]
    reply = await admin.post(GRANTS, json=body, headers=headers)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "Idempotency-Key")
