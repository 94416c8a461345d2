"""A reply that went out keeps its charge; one that its gateway died with is given back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scripted import UNITS_1024, Connection, World
from second_gateway import second_gateway
from sqlalchemy import select
from starlette.types import Message
from waiting import until_asked, within

from serve_app.metering import deliveries
from serve_app.metering.tables import holds

MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "GATHER_S", 0.01)


@pytest.fixture
async def world(make_world: MakeWorld) -> World:
    """A gateway that has given a sign of life, as each does when it starts."""
    made = await make_world()
    await made.ledger.beat()
    return made


async def senders(world: World) -> list[str | None]:
    """Of each charge: the gateway that has yet to send its reply."""
    query = select(holds.c.undelivered_by).where(holds.c.state == "captured")
    async with world.ledger._database.read() as connection:
        return list((await connection.execute(query)).scalars())


async def confirmed(world: World) -> None:

    async def done() -> bool:
        return await senders(world) == [None]

    await until_asked(done, "the delivery to be confirmed")


class Sending(Connection):
    """Looks at the books in the middle of the reply, and then does as `act` says."""

    def __init__(self, world: World, act: Callable[[], Awaitable[None]], **body: Any) -> None:
        super().__init__(world, {"prompt": "a red circle", **body})
        self.act = act
        self.seen: list[str | None] = []
        self.looked = asyncio.Event()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            self.seen = await senders(self.world)
            self.looked.set()
            await self.act()
        await super().send(message)


async def goes_well() -> None:
    pass


async def never_ends() -> None:
    await asyncio.Event().wait()


async def fails() -> None:
    raise OSError("the server lost its client")


async def test_a_reply_that_was_sent_is_confirmed_and_not_before(world: World) -> None:
    connection = Sending(world, goes_well)
    await connection.run()
    assert connection.sent[0]["status"] == 200
    assert connection.seen == [world.ledger._id]
    # The server keeps a body in memory, and waits for its client before it takes the next one.
    *_, image, last = connection.sent
    assert (bool(image["body"]), image["more_body"]) == (True, True)
    assert (last["body"], last["more_body"]) == (b"", False)
    await confirmed(world)
    assert await world.charged() == UNITS_1024


async def test_a_client_that_leaves_while_its_reply_is_sent_stays_charged(world: World) -> None:
    connection = Sending(world, never_ends)
    request = connection.open()
    async with within("the reply to be sent"):
        await connection.looked.wait()
    request.cancel()
    await asyncio.wait([request])
    assert connection.seen == [world.ledger._id]
    await confirmed(world)
    assert await world.charged() == UNITS_1024


async def test_a_reply_that_cannot_be_sent_stays_charged(world: World) -> None:
    connection = Sending(world, fails)
    with pytest.raises(OSError, match="lost its client"):  # the server breaks the connection off
        await connection.run()
    assert connection.seen == [world.ledger._id]
    await confirmed(world)
    assert await world.charged() == UNITS_1024


async def test_a_client_that_leaves_during_the_charge_stays_charged(world: World) -> None:
    capture, capturing, may_finish = world.ledger.capture, asyncio.Event(), asyncio.Event()

    async def slow_capture(*values: Any, **options: Any) -> Any:
        capturing.set()
        await may_finish.wait()
        return await capture(*values, **options)

    world.ledger.capture = slow_capture  # type: ignore[method-assign]
    request = Connection(world).open()
    await capturing.wait()
    request.cancel()
    may_finish.set()
    await asyncio.wait([request])
    await world.service.drain()
    await confirmed(world)
    assert await world.charged() == UNITS_1024


async def test_a_client_that_leaves_just_when_its_job_is_done_stays_charged(world: World) -> None:
    generate = world.service.generate

    async def generate_and_cancel(*values: Any) -> Any:
        delivery = await generate(*values)
        request.cancel()  # in the same turn of the loop: nobody will read what this returns
        return delivery

    world.service.generate = generate_and_cancel  # type: ignore[method-assign]
    connection = Sending(world, goes_well)
    request = connection.open()
    await asyncio.wait([request])
    assert request.cancelled()
    assert connection.sent == []
    await confirmed(world)
    assert await world.charged() == UNITS_1024


@pytest.mark.parametrize("how", ["under a key", "as a stream"])
async def test_what_can_be_fetched_or_is_charged_after_it_was_sent_needs_no_confirmation(
    world: World, how: str
) -> None:
    connection = Sending(world, goes_well, stream=how == "as a stream")
    if how == "under a key":
        connection.scope["headers"].append((b"idempotency-key", b"order-17"))
    await connection.run()
    await world.service.drain()
    assert world.ledger._id not in connection.seen
    assert world.ledger._deliveries._task is None
    assert await senders(world) == [None]
    assert await world.charged() == UNITS_1024


async def test_a_reply_that_its_gateway_dies_with_is_refunded_by_another(world: World) -> None:
    async with second_gateway(world) as other:
        connection = Sending(world, never_ends)
        request = connection.open()
        async with within("the reply to be sent"):
            await connection.looked.wait()
        taken = await other.ledger._sweeps.inherit([world.ledger._id])
        assert (taken.refunded, taken.refunded_units) == (1, UNITS_1024)
        assert await world.charged() == 0
        request.cancel()
        await asyncio.wait([request])
    report = await world.ledger.admin.audit()
    assert report.balanced, report.findings
