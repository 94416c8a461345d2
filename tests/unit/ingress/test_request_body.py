"""What the gateway does with a body: nothing before the key is good, and nothing unbounded."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from scripted import World, error_of
from starlette.types import Message

from serve_app.config import DevelopmentConfig

MakeWorld = Callable[..., Awaitable[World]]
POSTS = ["/v1/images/generations", "/v1/images/quote"]
JSON = {"content-type": "application/json"}


class BodyNobodyMayRead:
    """An ASGI request whose body must not be asked for."""

    def __init__(self, world: World, path: str, headers: dict[str, str]) -> None:
        self.app = world.app
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
            "scheme": "http",
            "server": ("test", 80),
        }
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        raise AssertionError("the body was read")

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def reply(self) -> httpx.Response:
        await self.app(self.scope, self.receive, self.send)
        start, *bodies = self.sent
        content = b"".join(message["body"] for message in bodies)
        return httpx.Response(start["status"], headers=start["headers"], content=content)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer  ", None),
        ("Basic YTpi", None),
        ("sk-local-development", None),
        ("Bearer sk-unknown", "invalid_api_key"),
        ("Bearer " + "x" * 10_000, "invalid_api_key"),
        ("Bearer \xe9\xff", "invalid_api_key"),
    ],
)
async def test_without_a_good_key_no_byte_of_the_body_is_read(
    world: World, path: str, authorization: str | None, code: str | None
) -> None:
    headers = {**JSON, "content-length": "99999999999"}
    if authorization is not None:
        headers["authorization"] = authorization
    reply = await BodyNobodyMayRead(world, path, headers).reply()
    error = error_of(reply)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, None)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_of_the_key_may_have_any_case(world: World, scheme: str) -> None:
    http = world.client(None)
    reply = await http.get("/v1/account", headers={"authorization": f"{scheme} {world.key} "})
    assert reply.status_code == 200


async def test_a_revoked_key_is_refused(world: World) -> None:
    await world.ledger.admin.revoke_key(world.principal.key_id)
    reply = await world.draw()
    assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")
    assert world.generator.jobs == []


@pytest.mark.parametrize("path", POSTS)
async def test_a_key_of_another_scope_is_a_403_before_the_body_is_read(
    world: World, path: str
) -> None:
    made = await world.ledger.admin.create_key("alice", scopes=("admin",))
    reply = await BodyNobodyMayRead(
        world, path, {**JSON, "authorization": f"Bearer {made.secret}"}
    ).reply()
    assert (reply.status_code, error_of(reply)["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize(("configured", "status"), [(True, 200), (False, 401)])
async def test_a_development_key_opens_only_a_server_that_is_configured_for_it(
    make_world: MakeWorld, configured: bool, status: int
) -> None:
    """Two servers may share a ledger; the one that faces the world must not know the key."""
    development = DevelopmentConfig(key="sk-local-development")
    sections = {"development": development.model_dump()} if configured else {}
    world = await make_world(**sections)
    await world.ledger.admin.ensure_development(development)
    reply = await world.client("sk-local-development").get("/v1/account")
    assert reply.status_code == status


async def test_an_outage_of_the_ledger_is_no_401(world: World) -> None:
    world.shaky.lose_requests["authenticate"] = 1
    reply = await world.draw()
    assert (reply.status_code, error_of(reply)["code"]) == (503, "ledger_unavailable")
    assert "retry-after" in reply.headers


@pytest.mark.parametrize("length", ["524289", "9" * 18, "9" * 5000])
async def test_a_body_declared_too_large_is_refused_unread(world: World, length: str) -> None:
    headers = {**JSON, "content-length": length, "authorization": f"Bearer {world.key}"}
    reply = await BodyNobodyMayRead(world, POSTS[0], headers).reply()
    assert (reply.status_code, error_of(reply)["code"]) == (413, "body_too_large")


async def test_a_body_streamed_too_large_is_cut_off(make_world: MakeWorld) -> None:
    world = await make_world(limits={"body_max_bytes": 1000})
    asked = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield b" " * 100

    reply = await world.http.post(POSTS[0], content=endless(), headers=JSON)
    assert (reply.status_code, error_of(reply)["code"]) == (413, "body_too_large")
    assert asked == 11


async def test_a_body_of_exactly_the_limit_is_read(make_world: MakeWorld) -> None:
    world = await make_world(limits={"body_max_bytes": 1000})
    body = b'{"prompt": "x"}'.ljust(1000)
    assert (await world.http.post(POSTS[1], content=body, headers=JSON)).status_code == 200
    body += b" "
    assert (await world.http.post(POSTS[1], content=body, headers=JSON)).status_code == 413


@pytest.mark.parametrize("length", ["-5", "\xb2", "nonsense", "+3", "1_0", ""])
async def test_an_odd_content_length_harms_nobody(world: World, length: str) -> None:
    """A real server refuses these before us; ours must not fall over if one does not."""
    request = BodyNobodyMayRead(
        world,
        POSTS[1],
        {**JSON, "content-length": length, "authorization": f"Bearer {world.key}"},
    )
    request.receive = _one_message(b'{"prompt": "x"}')  # type: ignore[method-assign]
    assert (await request.reply()).status_code == 200


def _one_message(body: bytes) -> Callable[[], Awaitable[Message]]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def test_a_body_that_stops_half_way_times_out(make_world: MakeWorld) -> None:
    world = await make_world(limits={"body_timeout_s": 0.01})

    async def half() -> AsyncIterator[bytes]:
        yield b'{"prompt":'
        await asyncio.Event().wait()

    reply = await world.http.post(POSTS[0], content=half(), headers=JSON)
    assert (reply.status_code, error_of(reply)["code"]) == (408, "request_timeout")
    assert reply.headers["x-should-retry"] == "true"


async def test_a_client_that_leaves_while_sending_holds_nothing(world: World) -> None:
    request = BodyNobodyMayRead(world, POSTS[0], {**JSON, "authorization": f"Bearer {world.key}"})

    async def leave() -> Message:
        return {"type": "http.disconnect"}

    request.receive = leave  # type: ignore[method-assign]
    assert (await request.reply()).status_code == 400
    assert world.generator.jobs == []


NOT_JSON = {
    "empty": b"",
    "text": b"a red circle",
    "bad UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "x"}',
    "NaN": b'{"prompt": "x", "guidance_scale": NaN}',
    "infinity": b'{"prompt": "x", "extra": -Infinity}',
    "a key twice": b'{"prompt": "x", "n": 1, "n": 10}',
    "a key twice inside": b'{"prompt": "x", "extra": {"a": 1, "a": 2}}',
    "too deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "an integer of 5000 digits": b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "cut off": b'{"prompt": "x"',
    "two values": b'{"prompt": "x"}{}',
    "a trailing comma": b'{"prompt": "x",}',
    "an array": b'[{"prompt": "x"}]',
    "a string": b'"x"',
    "null": b"null",
    "a number": b"1",
}


async def test_what_is_no_json_object_is_a_400_without_a_code(
    world: World, subtests: pytest.Subtests
) -> None:
    http = world.http
    for path in POSTS:
        for name, body in NOT_JSON.items():
            with subtests.test(name, path=path):
                reply = await http.post(path, content=body, headers=JSON)
                error = error_of(reply)
                assert reply.status_code == 400
                assert (error["type"], error["code"]) == ("invalid_request_error", None)
                assert error["param"] is None
                assert reply.headers["x-should-retry"] == "false"
    assert world.generator.jobs == []


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"],
)
async def test_a_body_of_another_type_is_a_415(world: World, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    reply = await world.http.post(POSTS[0], content=b'{"prompt": "x"}', headers=headers)
    error = error_of(reply)
    assert (reply.status_code, error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_json_is_json_however_it_is_labelled(world: World, content_type: str) -> None:
    body = json.dumps({"prompt": "x"}).encode()
    reply = await world.http.post(POSTS[1], content=body, headers={"content-type": content_type})
    assert reply.status_code == 200


async def test_a_prompt_may_hold_any_text(world: World) -> None:
    prompts = ["漢字 🎨", "tab\tnewline\n", "nul\0", "\u202e", "'; DROP TABLE holds; --"]
    for prompt in prompts:
        assert (await world.draw(prompt=prompt, size="128x128")).status_code == 200
    assert [job.prompt for job in world.generator.jobs] == prompts


@pytest.mark.parametrize("field", ["prompt", "model", "size", "user", "style", "quality"])
async def test_a_lone_surrogate_is_a_400_of_its_field(world: World, field: str) -> None:
    fields: dict[str, Any] = {"prompt": "x", field: "\ud800"}
    body = json.dumps(fields).encode("ascii")
    reply = await world.http.post(POSTS[0], content=body, headers=JSON)
    assert (reply.status_code, error_of(reply)["param"]) == (400, field)


async def test_surrogates_in_unknown_fields_are_ignored_like_the_fields(world: World) -> None:
    body = b'{"prompt": "x", "\\ud800": "\\udfff", "extra": {"\\udc00": ["\\ud800"]}}'
    assert (await world.http.post(POSTS[1], content=body, headers=JSON)).status_code == 200
