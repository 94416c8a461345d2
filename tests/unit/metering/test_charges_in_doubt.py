"""A real PostgreSQL whose connection breaks at a commit: whoever pays has the pictures."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from backends import PostgresDatabase
from cut import Wire, wire_to
from scripted import UNITS_1024, World, error_of
from sqlalchemy.engine import make_url
from waiting import until_asked, within

from serve_app import settle
from serve_app.engine.job import GenerationJob, GenerationResult
from serve_app.errors import LedgerUnavailable
from serve_app.metering import sql

MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "RESOLVE_BACKOFF_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(settle, "LATE_RETRY_S", 0.02)
    monkeypatch.setattr(settle, "SETTLE_WAIT_S", 0.02)  # the database is not back before it
    monkeypatch.setattr(sql, "WITHDRAW_BACKOFF_S", (0.02,) * 1000)


@pytest.fixture
async def wire(postgresql: PostgresDatabase) -> AsyncIterator[Wire]:
    async with wire_to(Path(make_url(postgresql.url).query["host"])) as made:
        yield made


@pytest.fixture
async def world(wire: Wire, make_world: MakeWorld, postgresql: PostgresDatabase) -> World:
    url = make_url(postgresql.url).set(query={"host": str(wire.host)})
    return await make_world(ledger={"url": url.render_as_string(), "busy_timeout_s": 20})


def breaking(world: World, wire: Wire, *, arrives: bool) -> None:
    """The next job's charge is what the wire breaks at."""

    async def act(job: GenerationJob) -> GenerationResult:
        wire.at_commit(arrives=arrives)
        return await world.generator.draw(job)

    world.generator.act = act


async def draw(world: World, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    body = {"prompt": "a red circle", **fields}
    return await world.http.post("/v1/images/generations", json=body, headers=headers)


async def settled(world: World) -> None:
    """Until nothing is held, by a ledger that is back."""

    async def free() -> bool:
        return not (await world.balance()).held

    await until_asked(free, "holds to be settled")


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "lost"])
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
async def test_a_charge_in_doubt_is_delivered_and_made_when_the_database_is_back(
    world: World, wire: Wire, arrives: bool, response_format: str
) -> None:
    breaking(world, wire, arrives=arrives)
    reply = await draw(world, response_format=response_format)
    assert wire.broken.is_set()
    assert reply.status_code == 200
    assert reply.headers["x-compute-units"] == str(UNITS_1024)
    await wire.mend()
    await settled(world)
    assert await world.charged() == UNITS_1024
    (image,) = reply.json()["data"]
    if response_format == "url":
        opened = await world.http.get(image["url"].removeprefix("http://test"))
        assert (opened.status_code, opened.headers["content-type"]) == (200, "image/png")


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "lost"])
async def test_a_key_whose_charge_was_in_doubt_is_replayed_and_charged_once(
    world: World, wire: Wire, arrives: bool
) -> None:
    breaking(world, wire, arrives=arrives)
    first = await draw(world, "order-17")
    assert first.status_code == 200
    await wire.mend()
    second = await draw(world, "order-17")
    assert (second.status_code, second.headers["idempotent-replayed"]) == (200, "true")
    assert second.json()["seeds"] == first.json()["seeds"]
    assert len(world.generator.jobs) == 1
    assert await world.charged() == UNITS_1024


async def test_a_charge_that_was_certainly_not_made_is_a_503_and_free(
    world: World, wire: Wire
) -> None:
    async def act(job: GenerationJob) -> GenerationResult:
        wire.cut()
        return await world.generator.draw(job)

    world.generator.act = act
    reply = await draw(world)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "ledger_unavailable")
    await wire.mend()
    balance = await world.balance()
    assert (balance.captured, balance.held) == (0, UNITS_1024)
    world.abandoned_units = UNITS_1024  # until it expires


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "lost"])
async def test_a_stream_that_breaks_at_its_charge_is_charged_when_the_database_is_back(
    world: World, wire: Wire, arrives: bool
) -> None:
    breaking(world, wire, arrives=arrives)
    reply = await draw(world, stream=True)
    assert "image_generation.completed" in reply.text
    async with within("the connection to break at the charge"):  # the stream does not wait for it
        await wire.broken.wait()
    await wire.mend()
    await settled(world)
    assert await world.charged() == UNITS_1024


@pytest.mark.parametrize("arrives", [True, False], ids=["committed", "lost"])
async def test_a_hold_in_doubt_is_withdrawn_and_its_key_is_free(
    world: World, wire: Wire, arrives: bool
) -> None:
    wire.at_commit(arrives=arrives)
    refused = await draw(world, "order-17")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "ledger_unavailable")
    assert world.generator.jobs == []
    await wire.mend()
    await settled(world)
    assert (await draw(world, "order-17")).status_code == 200
    assert await world.charged() == UNITS_1024


async def test_only_a_failure_at_the_commit_is_in_doubt(world: World, wire: Wire) -> None:
    wire.cut()
    with pytest.raises(LedgerUnavailable) as caught:
        await world.ledger.release("hold_any")
    assert not caught.value.in_doubt
    await wire.mend()
    wire.at_commit(arrives=True)
    with pytest.raises(LedgerUnavailable) as caught:
        await world.ledger.release("hold_any")
    assert caught.value.in_doubt
    await wire.mend()
