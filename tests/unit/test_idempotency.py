"""Idempotency keys: what is a key, which requests are the same, and when a key is free again.

What a second try gets is in test_replay.py, requests at once in test_idempotency_waiting.py.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from idempotency_kit import KEY, assert_charged_once, draw, events, is_replay, opened
from scripted import UNITS_1024, World, error_of

from serve_app.errors import GenerationFailed, StoreUnavailable
from serve_app.idempotency import request_digest
from serve_app.schema import ImageRequest, parse_request

MakeWorld = Callable[..., Awaitable[World]]
pytestmark = pytest.mark.usefixtures("no_waiting")


async def test_the_same_body_in_another_order_is_the_same_request(world: World) -> None:
    http, where = world.http, "/v1/images/generations"
    headers = {**KEY, "content-type": "application/json"}
    bodies = (
        '{"prompt": "x", "n": 2, "guidance_scale": 3, "seed": null}',
        '{ "guidance_scale": 3.0, "n": 2, "unknown": 1, "prompt": "\\u0078" }',
    )
    replies = [await http.post(where, content=body, headers=headers) for body in bodies]
    assert [is_replay(reply) for reply in replies] == [False, True]
    assert replies[0].json()["seeds"] == replies[1].json()["seeds"]


CHANGES: dict[str, Any] = {
    "prompt": "y",
    "model": "black-forest-labs/FLUX.1-schnell",
    "n": 2,
    "size": "512x512",
    "quality": "low",
    "response_format": "b64_json",
    "output_format": "jpeg",
    "output_compression": 50,
    "seed": 1,
    "num_inference_steps": 3,
    "steps": 3,
    "guidance_scale": 1.0,
    "stream": True,
    "partial_images": 1,
    "stream_progress": True,
}


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_changes_the_reply_changes_the_digest(field: str) -> None:
    plain = {"prompt": "x"}
    changed = parse_request(ImageRequest, {**plain, field: CHANGES[field]})
    assert request_digest(changed) != request_digest(parse_request(ImageRequest, plain))


async def test_a_key_of_another_request_is_refused_and_nothing_is_drawn(world: World) -> None:
    await draw(world, seed=1)
    reply = await draw(world, seed=2)
    assert reply.status_code == 409
    assert error_of(reply)["code"] == "idempotency_key_reused"
    assert reply.headers["x-should-retry"] == "false"
    assert len(world.generator.jobs) == 1
    await assert_charged_once(world)


async def test_accounts_do_not_share_keys(world: World) -> None:
    await world.ledger.admin.create_account("bob")
    await world.ledger.admin.grant("bob", UNITS_1024)
    bob = (await world.ledger.admin.create_key("bob")).secret
    first = await draw(world)
    second = await draw(world, {**KEY, "authorization": f"Bearer {bob}"})
    assert [is_replay(first), is_replay(second)] == [False, False]
    assert len(world.generator.jobs) == 2


async def test_an_empty_account_gets_what_it_has_paid_for(make_world: MakeWorld) -> None:
    world = await make_world(granted=UNITS_1024)
    first, second = await draw(world), await draw(world)
    assert await opened(world, first) == await opened(world, second)
    assert (await draw(world, {"idempotency-key": "other"})).status_code == 402


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "schlüssel".encode(), "tab\tbed"])
async def test_a_bad_key_is_refused_by_name(world: World, key: Any) -> None:
    reply = await draw(world, {"idempotency-key": key})
    assert reply.status_code == 400
    assert error_of(reply)["param"] == "Idempotency-Key"
    assert world.generator.jobs == []


@pytest.mark.parametrize("key", ["x", "x" * 255, "!\"#~'; DROP TABLE holds; --".replace(" ", "")])
async def test_any_visible_ascii_is_a_key(world: World, key: str) -> None:
    replies = [await draw(world, {"idempotency-key": key}) for _ in range(2)]
    assert [is_replay(reply) for reply in replies] == [False, True]


async def test_two_keys_in_one_request_are_refused(world: World) -> None:
    reply = await world.http.post(
        "/v1/images/generations",
        json={"prompt": "x"},
        headers=[("idempotency-key", "a"), ("idempotency-key", "b")],
    )
    assert (reply.status_code, error_of(reply)["param"]) == (400, "Idempotency-Key")


async def test_without_a_store_a_key_is_refused(make_world: MakeWorld) -> None:
    world = await make_world(store=None)
    reply = await draw(world)
    assert (reply.status_code, error_of(reply)["param"]) == (400, "Idempotency-Key")
    assert (await draw(world, {})).status_code == 200


async def test_nothing_is_charged_under_a_key_unless_its_pictures_are_stored(world: World) -> None:
    assert world.store is not None

    async def no_put(data: bytes, output_format: str, **_: bool) -> str:
        raise StoreUnavailable("The image store cannot be written right now.")

    put, world.store.put = world.store.put, no_put  # type: ignore[method-assign]
    reply = await draw(world, response_format="b64_json")
    assert reply.status_code == 503
    assert (await world.balance()).captured == 0
    world.store.put = put  # type: ignore[method-assign]
    assert (await draw(world, response_format="b64_json")).status_code == 200
    await assert_charged_once(world)


async def test_a_stream_that_sent_nothing_frees_its_key(world: World) -> None:
    world.generator.play = world.generator.showing_before(
        0, world.generator.failing(GenerationFailed("The model failed."))
    )
    (only,) = events(await draw(world, stream=True))
    assert only["error"]["code"] == "generation_failed"
    world.generator.play = world.generator.show
    second = await draw(world, stream=True)
    assert (second.status_code, is_replay(second)) == (200, False)
    await assert_charged_once(world)


async def test_a_key_is_forgotten_with_its_reply_and_then_draws_anew(world: World) -> None:
    await draw(world)
    assert await world.ledger.forget_replies(datetime.now(UTC)) == 1
    reply = await draw(world)
    assert (reply.status_code, is_replay(reply)) == (200, False)
    await assert_charged_once(world, images=2)
