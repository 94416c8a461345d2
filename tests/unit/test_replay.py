"""What a second try gets: the pictures that were charged, signed anew, and nothing is drawn."""

import asyncio
import base64
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from idempotency_kit import KEY, assert_charged_once, draw, events, is_replay, opened
from scripted import Connection, World, error_of
from stored import files

from serve_app.errors import GenerationFailed

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.mark.parametrize("response_format", ["url", "b64_json"])
async def test_a_second_try_gets_the_same_pictures_and_costs_nothing(
    world: World, response_format: str
) -> None:
    first = await draw(world, n=3, response_format=response_format)
    second = await draw(world, n=3, response_format=response_format)
    assert [first.status_code, second.status_code] == [200, 200]
    assert [is_replay(first), is_replay(second)] == [False, True]
    assert await opened(world, first) == await opened(world, second)
    one, other = first.json(), second.json()
    for image in (*one["data"], *other["data"]):
        image.pop("url")  # signed anew
    assert one == other
    assert ("b64_json" in one["data"][0]) == (response_format == "b64_json")
    for header in ("x-model", "x-compute-units", "x-compute-units-available"):
        assert first.headers[header] == second.headers[header]
    assert len(world.generator.jobs) == 1
    await assert_charged_once(world, images=3)


async def test_a_replay_is_signed_anew(world: World) -> None:
    assert world.store is not None
    first = await draw(world)
    world.store._now = lambda: datetime.now(UTC).timestamp() + 1800
    second = await draw(world)
    exp = [
        int(reply.json()["data"][0]["url"].split("exp=")[1].split("&")[0])
        for reply in (first, second)
    ]
    assert exp[1] - exp[0] >= 1800


async def test_a_replay_says_what_was_drawn_when_the_defaults_have_changed(world: World) -> None:
    first = await draw(world)
    (model,) = world.service.catalogue.models
    changed = model.config.model_copy(update={"default_size": "512x512"})
    catalogue = type(world.service.catalogue)((replace(model, config=changed),))
    world.service.catalogue = catalogue
    second = await draw(world)
    assert second.json()["size"] == first.json()["size"] == "1024x1024"
    assert second.json()["usage"] == first.json()["usage"]


async def test_the_ledger_keeps_no_pixels(world: World) -> None:
    await draw(world, n=10, response_format="b64_json")
    record = await world.ledger.find_hold(world.principal.account_id, KEY["idempotency-key"])
    assert record is not None
    assert record.reply is not None
    assert len(record.reply) < 2000


@pytest.mark.parametrize("fields", [{}, {"response_format": "b64_json"}, {"stream": True}])
async def test_pictures_that_are_gone_are_410_and_not_charged_again(
    world: World, fields: dict[str, Any]
) -> None:
    await draw(world, **fields)
    for path in await files(world):
        path.unlink()
    reply = await draw(world, **fields)
    assert reply.status_code == 410
    assert error_of(reply)["code"] == "image_expired"
    assert reply.headers["x-should-retry"] == "false"
    await assert_charged_once(world)


async def test_a_charge_that_nobody_heard_of_is_replayed(world: World) -> None:
    """The ledger goes away just after it has charged, for longer than all tries take."""
    world.shaky.lose_answers["capture"] = 30
    first = await draw(world)
    assert (first.status_code, is_replay(first)) == (200, False)
    await assert_charged_once(world)
    second = await draw(world)
    assert (second.status_code, is_replay(second)) == (200, True)
    assert len(await opened(world, second)) == 1
    await assert_charged_once(world)


async def test_a_client_that_leaves_during_the_charge_has_its_pictures_under_the_key(
    world: World,
) -> None:
    capture, capturing, may_finish = world.shaky.capture, asyncio.Event(), asyncio.Event()

    async def slow_capture(*values: Any, **options: Any) -> Any:
        capturing.set()
        await may_finish.wait()
        return await capture(*values, **options)

    world.shaky.capture = slow_capture  # type: ignore[method-assign]
    first = asyncio.create_task(draw(world))
    await capturing.wait()
    first.cancel()
    may_finish.set()
    await asyncio.wait([first])
    assert first.cancelled()
    second = await draw(world)
    assert (second.status_code, is_replay(second)) == (200, True)
    assert len(await opened(world, second)) == len(world.generator.jobs) == 1
    await assert_charged_once(world)


async def test_a_streams_replay_sends_its_images_without_previews(world: World) -> None:
    fields = {"stream": True, "n": 3, "partial_images": 2, "stream_progress": True}
    first, second = await draw(world, **fields), await draw(world, **fields)
    assert [is_replay(first), is_replay(second)] == [False, True]
    done = [event for event in events(first) if event["type"] == "image_generation.completed"]
    again = events(second)
    for event in (*done, *again):
        event.pop("url")
    assert done == again
    assert len(done) == 3
    assert first.headers["x-compute-units"] == second.headers["x-compute-units"]
    await assert_charged_once(world, images=3)


async def test_a_stream_that_ended_early_is_replayed_as_far_as_it_was_charged(world: World) -> None:
    world.generator.play = world.generator.showing_before(
        2, world.generator.failing(GenerationFailed("The model failed."))
    )
    first = await draw(world, stream=True, n=3)
    assert events(first)[-1]["error"]["code"] == "generation_failed"
    world.generator.play = world.generator.show
    for _ in range(2):
        *images, last = events(await draw(world, stream=True, n=3))
        assert [image["image_index"] for image in images] == [0, 1]
        assert [image["b64_json"] for image in images] == [
            image["b64_json"] for image in events(first)[:-1]
        ]
        assert last["error"]["code"] == "stream_incomplete"
        assert "2 of 3" in last["error"]["message"]
    assert len(world.generator.jobs) == 1
    await assert_charged_once(world, images=2)


async def test_a_stream_whose_client_left_is_replayed_as_far_as_it_was_sent(world: World) -> None:
    world.generator.play = world.generator.showing_before(1, world.generator.hang)
    body = {"prompt": "a red circle", "stream": True, "n": 2}
    connection = Connection(world, body)
    connection.scope["headers"].append((b"idempotency-key", KEY["idempotency-key"].encode()))
    running = connection.open()
    await world.generator.hanging.wait()
    connection.hang_up()
    await asyncio.wait([running])
    await assert_charged_once(world)
    *images, last = events(await draw(world, stream=True, n=2))
    assert [image["image_index"] for image in images] == [0]
    assert base64.b64decode(images[0]["b64_json"]).startswith(b"png")
    assert last["error"]["code"] == "stream_incomplete"
    await assert_charged_once(world)
