"""Requests with one key at once: one of them draws, and the others wait for it or take over."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from idempotency_kit import KEY, assert_charged_once, draw, events, hold_key, is_replay, opened
from scripted import World, error_of
from second_gateway import second_gateway
from stored import files
from waiting import skip

from serve_app.errors import GenerationFailed, LedgerUnavailable
from tests.machine import until

MakeWorld = Callable[..., Awaitable[World]]
pytestmark = pytest.mark.usefixtures("no_waiting")


async def test_a_hundred_at_once_are_drawn_and_charged_once(world: World) -> None:
    replies = await asyncio.gather(*(draw(world, n=2) for _ in range(100)))
    assert {reply.status_code for reply in replies} == {200}
    assert sum(is_replay(reply) for reply in replies) == 99
    assert len({tuple(reply.json()["seeds"]) for reply in replies}) == 1
    assert len({tuple(await opened(world, reply)) for reply in replies[::10]}) == 1
    assert len(world.generator.jobs) == 1
    assert len(await files(world)) == 2
    await assert_charged_once(world, images=2)


async def test_a_hundred_at_two_gateways_are_drawn_and_charged_once(world: World) -> None:
    async with second_gateway(world) as other:
        body = {"prompt": "a red circle", "response_format": "b64_json"}
        clients = (world.http, other.http)
        replies = await asyncio.gather(
            *(
                clients[number % 2].post("/v1/images/generations", json=body, headers=KEY)
                for number in range(100)
            )
        )
        jobs = [*world.generator.jobs, *other.generator.jobs]
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["data"][0]["b64_json"] for reply in replies}) == 1
    assert sum(is_replay(reply) for reply in replies) == 99
    assert len(jobs) == 1
    await assert_charged_once(world)


async def test_two_streams_at_once_are_one_job(world: World) -> None:
    first, second = await asyncio.gather(*(draw(world, stream=True, n=2) for _ in range(2)))
    assert sorted([is_replay(first), is_replay(second)]) == [False, True]
    assert [one["b64_json"] for one in events(first)] == [two["b64_json"] for two in events(second)]
    await assert_charged_once(world, images=2)


async def test_a_key_of_another_request_is_refused_while_that_one_runs(world: World) -> None:
    world.generator.act = world.generator.hang
    first = asyncio.create_task(draw(world, seed=1))
    await world.generator.started.wait()
    assert error_of(await draw(world, seed=2))["code"] == "idempotency_key_reused"
    first.cancel()
    await asyncio.wait([first])


async def test_who_waits_takes_over_when_the_first_one_fails(world: World) -> None:
    """Ten tries of which the first three to be drawn fail: one picture, nine replays of it."""
    failures = 3

    async def fail_thrice(job: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            await asyncio.sleep(0)
            raise GenerationFailed("The model failed.")
        return await world.generator.draw(job)

    world.generator.act = fail_thrice
    replies = await asyncio.gather(*(draw(world) for _ in range(10)))
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [500] * 3
    assert sum(is_replay(reply) for reply in replies) == 6
    assert len(world.generator.jobs) == 4
    await assert_charged_once(world)


async def test_a_client_that_leaves_hands_its_key_to_the_one_that_waits(world: World) -> None:
    world.generator.act = world.generator.hang
    first = asyncio.create_task(draw(world))
    await world.generator.started.wait()
    second = asyncio.create_task(draw(world))
    world.generator.act = world.generator.draw
    first.cancel()
    reply = await second
    assert (reply.status_code, is_replay(reply)) == (200, False)
    await assert_charged_once(world)


async def test_who_waits_for_longer_than_a_deadline_is_told_to_come_back(world: World) -> None:
    hold_id = await hold_key(world)
    late = asyncio.create_task(draw(world))
    await until(lambda: bool(world.service._claims._looks), "a request that waits for the key")
    skip(world.config.limits.request_timeout_s)
    reply = await late
    assert reply.status_code == 409
    assert error_of(reply)["code"] == "idempotency_key_in_use"
    assert reply.headers["x-should-retry"] == "true"
    assert 1 <= int(reply.headers["retry-after"]) <= 120
    streamed = await draw(world, stream=True)
    assert error_of(streamed)["code"] == "idempotency_key_reused"
    await world.ledger.release(hold_id)
    assert world.generator.jobs == []
    assert (await draw(world)).status_code == 200


async def test_a_hold_that_expires_frees_its_key(world: World) -> None:
    await hold_key(world)
    waiting = asyncio.create_task(draw(world))
    world.ledger._clock = lambda: datetime.now(UTC) + timedelta(days=1)
    await world.ledger.expire_holds()
    assert (await waiting).status_code == 200
    await assert_charged_once(world)


async def test_a_ledger_that_is_away_while_one_waits_is_a_503(world: World) -> None:
    hold_id = await hold_key(world)

    async def away(*_: Any) -> Any:
        raise LedgerUnavailable("The ledger is unavailable right now.")

    world.shaky.find_hold = away  # type: ignore[attr-defined]
    reply = await draw(world)
    assert (reply.status_code, error_of(reply)["code"]) == (503, "ledger_unavailable")
    await world.ledger.release(hold_id)


async def test_all_who_wait_for_one_key_share_a_look(world: World) -> None:
    """All but the first look of each are shared."""
    find_hold, looks = world.ledger.find_hold, 0
    waiting, clients = asyncio.Event(), 50

    async def counted(*values: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks >= clients + 5:
            waiting.set()
        return await find_hold(*values)

    world.shaky.find_hold = counted  # type: ignore[attr-defined]
    hold_id = await hold_key(world)
    requests = [asyncio.create_task(draw(world)) for _ in range(clients)]
    await waiting.wait()
    assert len(world.service._claims._looks) == 1
    await world.ledger.release(hold_id)
    replies = await asyncio.gather(*requests)
    assert {reply.status_code for reply in replies} == {200}
    assert world.service._claims._looks == {}
    await assert_charged_once(world)


async def test_a_look_that_is_over_is_handed_to_nobody(world: World) -> None:
    """Whoever got it would look again at once, for ever, and nothing else would run."""
    find_hold, left = world.ledger.find_hold, []

    async def found(*values: Any) -> Any:
        record = await find_hold(*values)
        # Runs when the look has ended, and before anybody who waits for it is told.
        asyncio.get_running_loop().call_soon(lambda: left.append(dict(claims._looks)))
        return record

    world.shaky.find_hold = found  # type: ignore[attr-defined]
    claims = world.service._claims
    hold_id = await hold_key(world)
    account = world.principal.account_id
    record = await claims._look_later((account, KEY["idempotency-key"]))
    assert record is not None
    assert left == [{}]
    await world.ledger.release(hold_id)
