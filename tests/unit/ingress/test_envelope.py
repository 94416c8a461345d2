"""What every reply carries, and what becomes of a reply that breaks off."""

import logging
import re

import httpx
import pytest
from scripted import World
from starlette.types import Message, Receive, Scope, Send

from serve_app.ingress.middleware import RequestEnvelope

MADE = re.compile(r"req_[0-9a-f]{32}")


async def test_every_reply_has_one_request_id_of_its_own(world: World) -> None:
    replies = [
        await world.draw(),
        await world.client(None).get("/health"),
        await world.client(None).get("/nope"),
        await world.client(None).get("/v1/account"),
        await world.http.post("/v1/images/generations", content=b"{"),
    ]
    ids = [reply.headers.get_list("x-request-id") for reply in replies]
    assert all(len(found) == 1 and MADE.fullmatch(found[0]) for found in ids)
    assert len({found[0] for found in ids}) == len(replies)
    assert all(int(reply.headers["openai-processing-ms"]) >= 0 for reply in replies)


@pytest.mark.parametrize("wanted", ["a", "trace-1.2:3_4", "A" * 64])
async def test_a_harmless_request_id_is_echoed(world: World, wanted: str) -> None:
    reply = await world.client(None).get("/health", headers={"x-request-id": wanted})
    assert reply.headers.get_list("x-request-id") == [wanted]


@pytest.mark.parametrize(
    "wanted", ["", "A" * 65, "a b", "a;b", "<script>", "a\tb", 'a"b', "é".encode(), b"\xff", "a/b"]
)
async def test_a_harmful_request_id_is_replaced(world: World, wanted: str | bytes) -> None:
    reply = await world.client(None).get("/health", headers={"x-request-id": wanted})
    (found,) = reply.headers.get_list("x-request-id")
    assert MADE.fullmatch(found)


async def test_two_requests_may_choose_one_request_id(world: World) -> None:
    """The engine and the ledger must not mistake them for one job."""
    for _ in range(2):
        reply = await world.http.post(
            "/v1/images/generations", json={"prompt": "x"}, headers={"x-request-id": "same"}
        )
        assert reply.status_code == 200
    assert len({job.job_id for job in world.generator.jobs}) == 2
    assert await world.charged() == 2 * 1024 * 1024


async def test_a_request_is_logged_without_its_secrets(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        reply = await world.draw(prompt="a private picture")
        await world.client(None).get(reply.json()["data"][0]["url"])
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    text = "\n".join(record.getMessage() for record in ours)
    assert "POST /v1/images/generations 200" in text
    assert "/content 200" in text
    for secret in (world.key, "a private picture", "sig="):
        assert secret not in text


def client_of(app: RequestEnvelope) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


START: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def test_a_failure_before_the_reply_is_an_opaque_500() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("secret")

    async with client_of(RequestEnvelope(app)) as http:
        reply = await http.get("/")
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal_error"
    assert "x-request-id" in reply.headers


async def test_a_failure_inside_the_reply_breaks_it_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("secret")

    async with client_of(RequestEnvelope(app)) as http:
        with pytest.raises(RuntimeError, match="secret"):
            await http.get("/")


async def test_a_failure_after_the_reply_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"all"})
        raise RuntimeError("too late")

    async with client_of(RequestEnvelope(app)) as http:
        reply = await http.get("/")
    assert reply.content == b"all"
    assert "too late" in caplog.text


async def test_an_application_may_not_add_a_second_request_id() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-request-id", b"one"), (b"x-request-id", b"two")]
        await send({**START, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with client_of(RequestEnvelope(app)) as http:
        reply = await http.get("/", headers={"x-request-id": "mine"})
    assert reply.headers.get_list("x-request-id") == ["mine"]


async def test_other_protocols_pass_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def unused(*args: object) -> Message:
        raise AssertionError("nothing to exchange")

    await RequestEnvelope(app)({"type": "lifespan"}, unused, unused)
    assert seen == ["lifespan"]
