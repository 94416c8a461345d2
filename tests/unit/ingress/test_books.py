"""Entries, acts, the audit and usage over HTTP, as JSON and as files."""

import csv
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import pytest
from scripted import UNITS_1024, World, error_of

from serve_app.metering import listings
from serve_app.metering.records import Author

TODAY = datetime.now(UTC).date


@pytest.fixture
async def admin(world: World) -> httpx.AsyncClient:
    made = await world.ledger.admin.create_key("alice", scopes=["admin", "images"])
    return world.client(made.secret)


async def get(http: httpx.AsyncClient, path: str, **query: Any) -> Any:
    reply = await http.get(path, params={name.rstrip("_"): one for name, one in query.items()})
    assert reply.status_code == 200, reply.text
    return reply.json()


def table(reply: httpx.Response) -> list[list[str]]:
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "text/csv; charset=utf-8"
    assert reply.headers["content-disposition"].startswith("attachment; filename=")
    return list(csv.reader(reply.text.splitlines()))


async def test_entries_tell_of_every_grant_and_charge(
    world: World, admin: httpx.AsyncClient
) -> None:
    await world.draw()
    page = await get(admin, "/admin/v1/entries", account="alice")
    capture, grant = page["data"]
    assert (capture["kind"], capture["units"], grant["kind"]) == ("capture", -UNITS_1024, "grant")
    assert (capture["hold_id"] is not None, grant["hold_id"], page["next"]) == (True, None, None)
    first = await get(admin, "/admin/v1/entries", limit=1)
    second = await get(admin, "/admin/v1/entries", limit=1, after=first["next"])
    assert [first["data"][0], second["data"][0]] == [capture, grant]


async def test_a_file_of_entries_holds_all_of_them_and_no_formula(
    world: World, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "LIST_MAX", 2)
    evil = world.ledger.admin.by(Author("cli:eve", '=HYPERLINK("http://x")'))
    for _ in range(4):
        await evil.grant("alice", 5)
    header, *rows = table(await admin.get("/admin/v1/entries", params={"format": "csv"}))
    assert header == [
        "id", "account_id", "kind", "units", "hold_id", "created_at", "memo", "idempotency_key",
    ]  # fmt: skip
    assert len(rows) == 5
    assert {row[6] for row in rows} == {'\'=HYPERLINK("http://x")', ""}
    by_header = await admin.get("/admin/v1/entries", headers={"accept": "text/csv;q=0.9"})
    assert table(by_header) == [header, *rows]
    chosen = {"params": {"format": "json"}, "headers": {"accept": "text/csv"}}
    assert (await admin.get("/admin/v1/entries", **chosen)).json()["data"]  # type: ignore[arg-type]


async def test_usage_is_summed_up_as_asked(world: World, admin: httpx.AsyncClient) -> None:
    await world.draw(n=2)
    await world.draw()
    today = TODAY().isoformat()
    (row,) = (await get(admin, "/admin/v1/usage"))["data"]
    assert row == {
        "day": today,
        "account_id": world.principal.account_id,
        "key_id": world.principal.key_id,
        "model": "flux-mini",
        "jobs": 2,
        "images": 3,
        "units": 3 * UNITS_1024,
    }
    (by_model,) = (await get(admin, "/admin/v1/usage", by="model", account="alice"))["data"]
    assert by_model == {**row, "day": None, "account_id": None, "key_id": None}
    yesterday = (TODAY() - timedelta(days=1)).isoformat()
    assert (await get(admin, "/admin/v1/usage", to=yesterday))["data"] == []
    assert (await get(admin, "/admin/v1/usage", from_=today, key="key_x"))["data"] == []
    header, line = table(await admin.get("/admin/v1/usage", params={"format": "csv"}))
    assert dict(zip(header, line, strict=True)) == {name: str(one) for name, one in row.items()}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"from": "2026-02-01", "to": "2026-01-31"}, "from"),
        ({"from": "2020-01-01", "to": "2026-01-31"}, "from"),
        ({"from": "yesterday"}, "from"),
        ({"to": "0001-01-01"}, "to"),
        ({"to": "2026-13-01"}, "to"),
        ({"by": "hour"}, "by"),
        ({"by": "day,day"}, "by"),
        ({"after": "x"}, "after"),
        ({"since": "2026-01-01"}, "since"),
        ({"format": "xls"}, "format"),
        ({"format": "csv", "limit": "5"}, "limit"),
    ],
    ids=str,
)
async def test_a_question_that_makes_no_sense_is_refused_by_name(
    admin: httpx.AsyncClient, query: dict[str, str], param: str
) -> None:
    reply = await admin.get("/admin/v1/usage", params=query)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


async def test_an_audit_says_that_the_books_balance(admin: httpx.AsyncClient) -> None:
    found = await get(admin, "/admin/v1/audit")
    assert (found["balanced"], found["accounts"], found["findings"]) == (True, 1, [])


async def test_a_customer_sees_its_own_usage_and_what_is_left(
    world: World, admin: httpx.AsyncClient
) -> None:
    await world.ledger.admin.create_account("bob")
    await world.ledger.admin.grant("bob", 10**8)
    bob = world.client((await world.ledger.admin.create_key("bob")).secret)
    await bob.post("/v1/images/generations", json={"prompt": "x"})
    await world.ledger.admin.set_budgets("alice", 2 * UNITS_1024, None)
    await world.ledger.admin.limit_key(world.principal.key_id, rpm=3, images_max=4)
    await world.draw()
    page = await get(world.http, "/v1/usage")
    (row,) = page["data"]
    assert (row["day"], row["model"], row["units"]) == (
        TODAY().isoformat(),
        "flux-mini",
        UNITS_1024,
    )
    assert (row["account_id"], row["key_id"]) == (None, None)
    left = page["left"]
    assert (left["day"]["used"], left["day"]["left"]) == (UNITS_1024, UNITS_1024)
    assert left["month"]["left"] is None
    assert date.fromisoformat(left["day"]["resets_at"][:10]) == TODAY() + timedelta(days=1)
    assert (left["rpm"], left["requests_left"], left["images_max"]) == (3, 2, 4)
    (own,) = (await get(world.http, "/v1/usage", by="account"))["data"]
    assert own["account_id"] == world.principal.account_id
    assert (await get(world.http, "/v1/usage", key="key_x"))["data"] == []


async def test_nobody_asks_for_the_usage_of_another_account(world: World) -> None:
    reply = await world.http.get("/v1/usage", params={"account": "bob"})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "account")


async def test_a_key_for_administration_only_has_no_usage_of_its_own(world: World) -> None:
    made = await world.ledger.admin.create_key("alice", scopes=["admin"])
    reply = await world.client(made.secret).get("/v1/usage")
    assert (reply.status_code, error_of(reply)["code"]) == (403, "insufficient_scope")
