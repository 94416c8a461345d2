"""Every endpoint over real parts: what a client gets when all is well, and what the books say."""

import base64
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scripted import UNITS_1024, World, error_of

from serve_app.metering.types import HoldRequest

MakeWorld = Callable[..., Awaitable[World]]
SCHNELL = "black-forest-labs/FLUX.1-schnell"


async def test_a_generation_answers_in_openais_shape_and_is_charged(world: World) -> None:
    before = await world.balance()
    reply = await world.draw(n=2, size="512x256", quality="hd", seed=7)
    units = 2 * 512 * 256 * 8 // 4
    assert reply.status_code == 200
    body = reply.json()
    urls = [item.pop("url") for item in body["data"]]
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "data": [{}, {}],
        "model": "flux-mini",
        "size": "512x256",
        "quality": "hd",
        "output_format": "png",
        "background": "opaque",
        "seeds": [7, 8],
        "steps": 8,
        "usage": {
            "input_tokens": 0,
            "output_tokens": units,
            "total_tokens": units,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
            "output_tokens_details": {"text_tokens": 0, "image_tokens": units},
            "compute_units": units,
        },
    }
    assert [(await world.client(None).get(url)).content for url in urls] == [
        b"png 512x256 seed 7",
        b"png 512x256 seed 8",
    ]
    after = await world.balance()
    assert (after.captured - before.captured, after.held) == (units, 0)


async def test_a_generation_carries_its_headers(world: World) -> None:
    reply = await world.draw(model=SCHNELL)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-model"] == "flux-mini"
    assert reply.headers["x-compute-units"] == str(UNITS_1024)
    available = (await world.balance()).available
    assert reply.headers["x-compute-units-available"] == str(available)
    assert int(reply.headers["openai-processing-ms"]) >= 0


async def test_an_alias_draws_with_the_model_that_it_names(world: World) -> None:
    reply = await world.draw(model=SCHNELL)
    assert reply.json()["model"] == "flux-mini"
    assert len(world.generator.jobs) == 1


@pytest.mark.parametrize("fields", [{}, {"response_format": "url"}, {"response_format": None}])
async def test_url_mode_gives_a_url_and_nothing_else(world: World, fields: dict[str, Any]) -> None:
    reply = await world.draw(seed=1, **fields)
    (item,) = reply.json()["data"]
    assert set(item) == {"url"}
    image = await world.client(None).get(item["url"])
    assert image.status_code == 200
    assert image.content == b"png 1024x1024 seed 1"
    assert image.headers["content-type"] == "image/png"


async def test_b64_mode_gives_the_bytes_and_a_url_that_works(world: World) -> None:
    reply = await world.draw(response_format="b64_json", output_format="webp", seed=1)
    (item,) = reply.json()["data"]
    assert base64.b64decode(item["b64_json"]) == b"webp 1024x1024 seed 1"
    image = await world.client(None).get(item["url"])
    assert image.content == b"webp 1024x1024 seed 1"
    assert image.headers["content-type"] == "image/webp"


@pytest.mark.parametrize("fields", [{}, {"response_format": "b64_json"}])
async def test_without_a_store_the_bytes_come_in_the_reply_and_the_url_is_empty(
    make_world: MakeWorld, fields: dict[str, Any]
) -> None:
    world = await make_world(store=None)
    reply = await world.draw(seed=1, **fields)
    encoded = base64.b64encode(b"png 1024x1024 seed 1").decode()
    assert reply.json()["data"] == [{"url": "", "b64_json": encoded}]


async def test_without_a_store_a_url_is_refused_and_not_charged(make_world: MakeWorld) -> None:
    world = await make_world(store=None)
    reply = await world.draw(response_format="url")
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (400, "response_format")
    assert await world.charged() == 0


async def test_without_a_store_no_image_is_found(make_world: MakeWorld) -> None:
    world = await make_world(store=None)
    reply = await world.client(None).get("/v1/images/img_x.png/content?exp=1&sig=x")
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "image_not_found"


async def test_a_quote_tells_the_price_and_charges_nothing(world: World) -> None:
    body = {"prompt": "x", "n": 2, "size": "256x256", "quality": "low", "model": SCHNELL}
    reply = await world.http.post("/v1/images/quote", json=body)
    assert reply.status_code == 200
    assert reply.json() == {
        "model": "flux-mini",
        "size": "256x256",
        "steps": 2,
        "n": 2,
        "units": 2 * 256 * 256 * 2 // 4,
        "affordable": True,
        "estimated_s": 2.5,
    }
    balance = await world.balance()
    assert (balance.captured, balance.held) == (0, 0)
    assert world.generator.jobs == []


async def test_a_quote_leaves_the_estimate_out_when_no_replica_can_tell(world: World) -> None:
    world.generator.estimated_s = None
    reply = await world.http.post("/v1/images/quote", json={"prompt": "x"})
    assert reply.status_code == 200
    assert "estimated_s" not in reply.json()


async def test_a_quote_equals_the_charge(world: World) -> None:
    body = {"prompt": "x", "n": 3, "size": "272x400", "num_inference_steps": 7}
    quoted = (await world.http.post("/v1/images/quote", json=body)).json()["units"]
    drawn = await world.draw(**body)
    assert drawn.headers["x-compute-units"] == str(quoted)
    assert await world.charged() == quoted


async def test_a_quote_beyond_the_balance_is_not_affordable(make_world: MakeWorld) -> None:
    world = await make_world(granted=UNITS_1024)
    for n, affordable in ((1, True), (2, False)):
        reply = await world.http.post("/v1/images/quote", json={"prompt": "x", "n": n})
        assert reply.json()["affordable"] is affordable


async def test_the_account_shows_its_balance(world: World) -> None:
    await world.draw()
    balance = await world.balance()
    assert (await world.http.get("/v1/account")).json() == {
        "id": balance.id,
        "name": "alice",
        "granted": balance.granted,
        "captured": UNITS_1024,
        "held": 0,
        "available": balance.granted - UNITS_1024,
    }


async def test_the_account_shows_what_is_held(world: World) -> None:
    hold = await world.ledger.hold(
        HoldRequest(
            world.principal.account_id, world.principal.key_id, "r", "m", 1, 1, 1, 1, 10, ttl_s=60
        )
    )
    account = (await world.http.get("/v1/account")).json()
    assert account["held"] == 10
    assert account["available"] == account["granted"] - 10
    await world.ledger.release(hold.id)


async def test_the_models_are_listed_with_all_that_clients_require(world: World) -> None:
    body = (await world.http.get("/v1/models")).json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert model["id"] == "flux-mini"
    assert model["object"] == "model"
    assert type(model["created"]) is int
    assert model["owned_by"] == "flux-serve"
    assert model["aliases"] == [SCHNELL]
    assert model["capabilities"] == {
        "size_multiple": 16,
        "min_edge": 128,
        "max_edge": 1024,
        "max_pixels": 1024 * 1024,
        "default_size": "1024x1024",
        "max_images": 10,
        "reference_steps": 4,
        "max_steps": 50,
        "quality_steps": {
            "low": 2,
            "medium": 4,
            "standard": 4,
            "auto": 4,
            "hd": 8,
            "high": 8,
            "xhigh": 8,
            "max": 8,
        },
        "guidance": False,
        "text_tokens_max": 64,
        "prompt_max_chars": 1000,
    }


@pytest.mark.parametrize("name", ["flux-mini", SCHNELL, SCHNELL.replace("/", "%2F")])
async def test_a_model_is_found_by_id_and_alias_with_its_slash_in_either_spelling(
    world: World, name: str
) -> None:
    reply = await world.http.get(f"/v1/models/{name}")
    assert reply.status_code == 200
    assert reply.json()["id"] == "flux-mini"


@pytest.mark.parametrize("name", ["nope", "a/b/c", "", "%00", "flux-mini/", "x" * 3000])
async def test_an_unknown_model_is_not_found(world: World, name: str) -> None:
    reply = await world.http.get(f"/v1/models/{name}")
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "model_not_found"


async def test_health_needs_no_key_and_no_ledger(world: World) -> None:
    world.shaky.lose_requests["ping"] = 1
    reply = await world.client(None).get("/health")
    assert (reply.status_code, reply.json()) == (200, {"message": "ok"})


async def test_ready_needs_no_key(world: World) -> None:
    reply = await world.client(None).get("/ready")
    assert (reply.status_code, reply.json()) == (200, {"message": "ready"})


@pytest.mark.parametrize(
    ("lost", "models_ready", "code"),
    [(1, True, "ledger_unavailable"), (0, False, "service_unavailable")],
)
async def test_a_gateway_that_cannot_serve_is_not_ready(
    world: World, lost: int, models_ready: bool, code: str
) -> None:
    world.shaky.lose_requests["ping"] = lost
    world.models_ready = models_ready
    reply = await world.client(None).get("/ready")
    assert reply.status_code == 503
    assert error_of(reply)["code"] == code
    assert 0 < int(reply.headers["retry-after"]) <= 120


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json"])
async def test_a_head_request_is_answered_where_a_get_is(world: World, path: str) -> None:
    assert (await world.client(None).head(path)).status_code == 200


async def test_image_urls_are_absolute_from_public_url_whatever_the_host_header(
    make_world: MakeWorld,
) -> None:
    world = await make_world(public_url="https://images.example/base")
    reply = await world.http.post(
        "/v1/images/generations", json={"prompt": "x"}, headers={"host": "evil.example"}
    )
    url = reply.json()["data"][0]["url"]
    assert re.match(r"https://images\.example/base/v1/images/img_", url)


async def test_an_image_without_a_good_signature_is_not_given(world: World) -> None:
    url = (await world.draw()).json()["data"][0]["url"]
    http = world.client(None)
    for forged in (
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.partition("?")[0],
        re.sub(r"exp=\d+", "exp=99999999999", url),
        re.sub(r"exp=\d+", "exp=x", url),
    ):
        reply = await http.get(forged)
        assert reply.status_code == 403, forged
        assert error_of(reply)["code"] == "invalid_signature"


async def test_an_image_url_past_its_time_says_so(world: World) -> None:
    assert world.store is not None
    image_id = await world.store.put(b"picture", "png")
    signer = world.store._signer
    assert signer is not None
    reply = await world.client(None).get(
        f"/v1/images/{image_id}/content?exp=1000&sig={signer.sign(image_id, 1000)}"
    )
    assert reply.status_code == 410
    assert error_of(reply)["code"] == "image_expired"


async def test_a_deleted_or_unknown_image_is_not_found(world: World) -> None:
    assert world.store is not None
    url = (await world.draw()).json()["data"][0]["url"]
    image_id = url.split("/")[-2]
    await world.store.delete(image_id)
    for gone in (url, "/v1/images/img_x.png/content?exp=1&sig=x"):
        reply = await world.client(None).get(gone)
        assert reply.status_code == 404
        assert error_of(reply)["code"] == "image_not_found"
