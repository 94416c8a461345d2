"""A client that goes away: the work stops, nothing is charged, nothing stays held."""

import asyncio
from typing import Any

import pytest
from scripted import Connection, World


@pytest.mark.parametrize("how", ["the server says so", "the server cancels the handler"])
async def test_a_client_that_leaves_stops_its_job_and_pays_nothing(world: World, how: str) -> None:
    world.generator.act = world.generator.hang
    connection = Connection(world)
    request = connection.open()
    await world.generator.started.wait()
    assert (await world.balance()).held == 1024 * 1024
    if how == "the server says so":
        connection.hang_up()
    else:
        request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert world.generator.cancelled.is_set()
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, 0)
    assert connection.sent == []


async def test_a_client_that_leaves_while_its_picture_is_stored_leaves_none_behind(
    world: World,
) -> None:
    assert world.store is not None
    stored: list[str] = []
    put, storing, may_finish = world.store.put, asyncio.Event(), asyncio.Event()

    async def slow_put(data: bytes, output_format: str, **_: bool) -> str:
        storing.set()
        await may_finish.wait()
        stored.append(await put(data, output_format))
        return stored[-1]

    world.store.put = slow_put  # type: ignore[method-assign]
    connection = Connection(world)
    request = connection.open()
    await storing.wait()
    connection.hang_up()
    with pytest.raises(asyncio.CancelledError):
        await request
    may_finish.set()
    await world.service.drain()
    (image_id,) = stored
    reply = await world.client(None).get(await world.store.url(image_id))
    assert reply.status_code == 404
    assert await world.charged() == 0


async def test_a_client_that_stays_gets_its_picture(world: World) -> None:
    connection = Connection(world)
    await connection.run()
    assert connection.sent[0]["status"] == 200


async def test_a_client_that_leaves_while_it_is_charged_is_charged_once_and_keeps_its_picture(
    world: World,
) -> None:
    """The capture may be through already, so it is not undone; books and pictures agree."""
    capture, capturing, may_finish = world.ledger.capture, asyncio.Event(), asyncio.Event()

    async def slow_capture(*values: Any, **options: Any) -> Any:
        capturing.set()
        await may_finish.wait()
        return await capture(*values, **options)

    world.ledger.capture = slow_capture  # type: ignore[method-assign]
    connection = Connection(world)
    request = connection.open()
    await capturing.wait()
    connection.hang_up()
    may_finish.set()
    with pytest.raises(asyncio.CancelledError):
        await request
    await world.service.drain()
    assert await world.charged() == 1024 * 1024
