"""Idempotency keys: whatever is sent again, it is charged once, and everybody gets the pictures."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from scripted import UNITS_1024, Connection, World, error_of
from second_gateway import second_gateway

from serve_app import idempotency, settle
from serve_app.errors import GenerationFailed, LedgerUnavailable, StoreUnavailable
from serve_app.idempotency import request_digest
from serve_app.metering.types import HoldRequest
from serve_app.schema import ImageRequest, parse_request

MakeWorld = Callable[..., Awaitable[World]]
KEY = {"idempotency-key": "order-17"}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "RESOLVE_BACKOFF_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(settle, "LATE_RETRY_S", 0.0)
    monkeypatch.setattr(idempotency, "POLL_S", 0.01)


async def draw(world: World, headers: dict[str, str] = KEY, **fields: Any) -> httpx.Response:
    """One generation over HTTP with an idempotency key."""
    body = {"prompt": "a red circle", **fields}
    return await world.http.post("/v1/images/generations", json=body, headers=headers)


async def files(world: World) -> list[Path]:
    """Pictures in the store once all is settled."""
    await world.service.drain()
    assert world.config.store is not None
    return files_under(Path(world.config.store.url.removeprefix("file://")))


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def opened(world: World, reply: httpx.Response) -> list[bytes]:
    """The bytes behind the URLs of a reply."""
    urls = [urlsplit(image["url"]) for image in reply.json()["data"]]
    replies = [await world.client(None).get(f"{url.path}?{url.query}") for url in urls]
    assert {reply.status_code for reply in replies} == {200}
    return [reply.content for reply in replies]


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = reply.text.split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def is_replay(reply: httpx.Response) -> bool:
    return reply.headers.get("idempotent-replayed") == "true"


async def assert_charged_once(world: World, images: int = 1) -> None:
    await world.service.drain()
    balance = await world.balance()
    assert (balance.captured, balance.held) == (images * UNITS_1024, 0)


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


async def test_a_key_of_another_request_is_refused_while_that_one_runs(world: World) -> None:
    world.generator.act = world.generator.hang
    first = asyncio.create_task(draw(world, seed=1))
    await world.generator.started.wait()
    assert error_of(await draw(world, seed=2))["code"] == "idempotency_key_reused"
    first.cancel()
    await asyncio.wait([first])


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


async def hold_key(world: World, **fields: Any) -> str:
    """A hold like one of a gateway that has died: open, and nobody works on it."""
    request = ImageRequest(prompt="a red circle", **fields)
    held = HoldRequest(
        account_id=world.principal.account_id,
        key_id=world.principal.key_id,
        request_id="req_1",
        model="flux-mini",
        n=1,
        width=1024,
        height=1024,
        steps=4,
        units=UNITS_1024,
        ttl_s=900,
        idempotency_key=KEY["idempotency-key"],
        request_sha256=request_digest(request),
    )
    return (await world.ledger.hold(held)).id


async def test_who_waits_for_longer_than_a_deadline_is_told_to_come_back(
    make_world: MakeWorld,
) -> None:
    world = await make_world(limits={"request_timeout_s": 0.3})
    hold_id = await hold_key(world)
    reply = await draw(world)
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


async def test_a_key_is_forgotten_with_its_reply_and_then_draws_anew(world: World) -> None:
    await draw(world)
    assert await world.ledger.forget_replies(datetime.now(UTC)) == 1
    reply = await draw(world)
    assert (reply.status_code, is_replay(reply)) == (200, False)
    await assert_charged_once(world, images=2)


async def test_the_ledger_keeps_no_pixels(world: World) -> None:
    await draw(world, n=10, response_format="b64_json")
    record = await world.ledger.find_hold(world.principal.account_id, KEY["idempotency-key"])
    assert record is not None
    assert record.reply is not None
    assert len(record.reply) < 2000


async def test_a_replay_says_what_was_drawn_when_the_defaults_have_changed(world: World) -> None:
    first = await draw(world)
    (model,) = world.service.catalogue.models
    changed = model.config.model_copy(update={"default_size": "512x512"})
    catalogue = type(world.service.catalogue)((replace(model, config=changed),))
    world.service.catalogue = catalogue
    second = await draw(world)
    assert second.json()["size"] == first.json()["size"] == "1024x1024"
    assert second.json()["usage"] == first.json()["usage"]


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


async def test_two_streams_at_once_are_one_job(world: World) -> None:
    first, second = await asyncio.gather(*(draw(world, stream=True, n=2) for _ in range(2)))
    assert sorted([is_replay(first), is_replay(second)]) == [False, True]
    assert [one["b64_json"] for one in events(first)] == [two["b64_json"] for two in events(second)]
    await assert_charged_once(world, images=2)


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
