"""Keys with limits: what their clients are told, and which models they may use."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from scripted import UNITS_1024, World, error_of

from serve_app.ingress.headers import rate_headers
from serve_app.metering.limits import Rate

MakeWorld = Callable[..., Awaitable[World]]
RATE = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests")
TWO_MODELS = [
    {"id": "flux-mini", "aliases": ["black-forest-labs/FLUX.1-schnell"]},
    {"id": "big", "source": "embedded:flux-mini", "aliases": ["bigger"]},
]


async def limited(world: World, **limits: Any) -> httpx.AsyncClient:
    """A client with a key of its own, whose rate does not recover while the test runs."""
    now = world.ledger._clock()
    world.ledger._clock = lambda: now
    return world.client((await world.ledger.admin.create_key("alice", **limits)).secret)


async def draw(http: httpx.AsyncClient, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    body = {"prompt": "a red circle", **fields}
    return await http.post("/v1/images/generations", json=body, headers=headers)


def rate_of(reply: httpx.Response) -> list[int]:
    return [int(reply.headers[name]) for name in RATE]


async def test_replies_say_where_a_limited_key_stands(world: World) -> None:
    http = await limited(world, rpm=2)
    assert rate_of(await draw(http)) == [2, 1]
    streamed = await draw(http, stream=True)
    assert rate_of(streamed) == [2, 0]
    assert streamed.headers["x-ratelimit-reset-requests"] == "1m0s"
    refused = await draw(http)
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "rate_limit_exceeded"
    assert rate_of(refused) == [2, 0]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-should-retry"] == "true"
    assert len(world.generator.jobs) == 2
    assert await world.charged() == 2 * UNITS_1024


async def test_a_replay_is_never_refused_by_a_limit_and_uses_none_of_it(world: World) -> None:
    http = await limited(world, rpm=1)
    assert (await draw(http, "order-17")).status_code == 200
    replay = await draw(http, "order-17")
    assert (replay.status_code, replay.headers["idempotent-replayed"]) == (200, "true")
    assert rate_of(replay) == [1, 0]
    assert (await draw(http, "order-18")).status_code == 429


async def test_a_streams_replay_says_where_the_key_stands(world: World) -> None:
    http = await limited(world, rpm=2)
    assert rate_of(await draw(http, "order-17", stream=True)) == [2, 1]
    replay = await draw(http, "order-17", stream=True)
    assert (rate_of(replay), replay.headers["idempotent-replayed"]) == ([2, 1], "true")
    unlimited = await draw(world.http, "order-17", stream=True)
    assert unlimited.headers["idempotent-replayed"] == "true"
    assert not [name for name in unlimited.headers if name.startswith("x-ratelimit")]


async def test_a_key_without_a_limit_has_no_rate_headers(world: World) -> None:
    reply = await draw(world.http)
    assert reply.status_code == 200
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


async def test_too_many_images_at_once_come_back_soon(world: World) -> None:
    http = await limited(world, images_max=1)
    reply = await draw(http, n=2)
    assert (reply.status_code, error_of(reply)["code"]) == (429, "rate_limit_exceeded")
    assert int(reply.headers["retry-after"]) <= 120
    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
    assert world.generator.jobs == []


async def test_too_many_images_at_once_say_where_a_limited_key_stands(world: World) -> None:
    http = await limited(world, images_max=1, rpm=5)
    assert rate_of(await draw(http)) == [5, 4]
    refused = await draw(http, n=2)
    assert (refused.status_code, rate_of(refused)) == (429, [5, 4])  # it took nothing


async def test_a_spent_budget_is_not_to_be_retried(world: World) -> None:
    await world.ledger.admin.set_budgets("alice", UNITS_1024, None)
    assert (await draw(world.http)).status_code == 200
    reply = await draw(world.http)
    assert (reply.status_code, error_of(reply)["code"]) == (429, "budget_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    assert 1 <= int(reply.headers["retry-after"]) <= 86_400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.2, "1s"), (59.2, "1m0s"), (360.0, "6m0s"), (61.0, "1m1s")],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert rate_headers(Rate(9, 8, seconds))["x-ratelimit-reset-requests"] == text


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/quote"])
@pytest.mark.parametrize("model", ["flux-mini", "black-forest-labs/FLUX.1-schnell"])
async def test_a_key_for_one_model_may_not_use_another(
    make_world: MakeWorld, path: str, model: str
) -> None:
    world = await make_world(models=TWO_MODELS)
    http = await limited(world, models=["big"])
    reply = await http.post(path, json={"prompt": "x", "model": model})
    assert reply.status_code == 403
    error = error_of(reply)
    assert (error["code"], error["param"]) == ("model_not_allowed", "model")
    assert world.generator.jobs == []
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, 0)


@pytest.mark.parametrize("fields", [{"model": "big"}, {"model": "bigger"}, {}])
async def test_a_key_for_one_model_uses_it_by_every_name_and_by_default(
    make_world: MakeWorld, fields: dict[str, Any]
) -> None:
    world = await make_world(models=TWO_MODELS)
    http = await limited(world, models=["big"])
    reply = await draw(http, **fields)
    assert (reply.status_code, reply.headers["x-model"]) == (200, "big")


async def test_a_key_sees_only_its_models(make_world: MakeWorld) -> None:
    world = await make_world(models=TWO_MODELS)
    http = await limited(world, models=["big"])
    listed = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["big"]
    assert (await http.get("/v1/models/bigger")).json()["id"] == "big"
    other = await http.get("/v1/models/flux-mini")
    assert (other.status_code, error_of(other)["code"]) == (403, "model_not_allowed")
    unknown = await http.get("/v1/models/nope")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    assert "flux-mini" not in error_of(unknown)["message"]


async def test_a_key_for_no_model_that_is_served_may_use_none(world: World) -> None:
    http = await limited(world, models=["gone"])
    assert (await http.get("/v1/models")).json()["data"] == []
    reply = await draw(http)
    assert (reply.status_code, error_of(reply)["code"]) == (403, "model_not_allowed")


async def test_a_reply_is_not_replayed_to_a_key_for_other_models(make_world: MakeWorld) -> None:
    world = await make_world(models=TWO_MODELS)
    assert (await draw(world.http, "order-17", model="flux-mini")).status_code == 200
    http = await limited(world, models=["big"])
    assert (await draw(http, "order-17", model="flux-mini")).status_code == 403
