"""Two gateways on one database of each kind: a key that comes to both at once is one job."""

import asyncio
from collections.abc import Awaitable, Callable

from backends import Backend
from scripted import UNITS_1024, World
from second_gateway import second_gateway

MakeWorld = Callable[..., Awaitable[World]]


async def test_fifty_requests_with_one_key_are_charged_once(
    make_world: MakeWorld, backend: Backend
) -> None:
    world = await make_world(ledger={"url": backend.url, "busy_timeout_s": 20})
    async with second_gateway(world) as other:
        clients = (world.http, other.http)
        body = {"prompt": "a red circle", "response_format": "b64_json"}
        replies = await asyncio.gather(
            *(
                clients[number % 2].post(
                    "/v1/images/generations", json=body, headers={"idempotency-key": "order-17"}
                )
                for number in range(50)
            )
        )
        jobs = [*world.generator.jobs, *other.generator.jobs]
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["data"][0]["b64_json"] for reply in replies}) == 1
    assert sum("idempotent-replayed" in reply.headers for reply in replies) == 49
    assert len(jobs) == 1
    balance = await world.balance()
    assert (balance.captured, balance.held) == (UNITS_1024, 0)
