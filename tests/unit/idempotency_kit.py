"""Generations with an idempotency key over HTTP, and what their replies and the books say."""

import json
from typing import Any
from urllib.parse import urlsplit

import httpx
from scripted import UNITS_1024, World

from serve_app.idempotency import request_digest
from serve_app.metering.types import HoldRequest
from serve_app.schema import ImageRequest

KEY = {"idempotency-key": "order-17"}


async def draw(world: World, headers: dict[str, str] = KEY, **fields: Any) -> httpx.Response:
    """One generation over HTTP with an idempotency key."""
    body = {"prompt": "a red circle", **fields}
    return await world.http.post("/v1/images/generations", json=body, headers=headers)


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


async def hold_key(world: World) -> str:
    """A hold like one of a gateway that has died: open, and nobody works on it."""
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
        request_sha256=request_digest(ImageRequest(prompt="a red circle")),
    )
    return (await world.ledger.hold(held)).id
