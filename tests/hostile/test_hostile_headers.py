"""Headers that no honest client sends: without effect, or refused, and never written elsewhere."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from hostile import (
    GENERATIONS,
    JSON,
    QUOTE,
    Logs,
    assert_charged_for_200s,
    assert_harmless,
    body_of,
)
from scripted import World, error_of
from starlette.types import Receive, Scope, Send

from serve_app.deployments.proxy import ProxyGuard

METHODS = [
    "HEAD",
    "OPTIONS",
    "TRACE",
    "PUT",
    "PATCH",
    "DELETE",
    "PROPFIND",
    "QUERY",
    "get",
    "X" * 99,
]


async def raw(world: World, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> Any:
    """A reply to exactly these headers: httpx would refuse to send some."""
    sent: list[Any] = []
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": headers, "scheme": "http", "server": ("test", 80),
    }  # fmt: skip

    incoming = [{"type": "http.request", "body": body_of(), "more_body": False}]

    async def receive() -> Any:
        if not incoming:
            await asyncio.Event().wait()  # the client waits for its reply
        return incoming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    await ProxyGuard(world.app)(scope, receive, send)
    start, *bodies = sent
    content = b"".join(message["body"] for message in bodies)
    return httpx.Response(start["status"], headers=start["headers"], content=content)


@pytest.mark.parametrize(
    "spell",
    [
        lambda key: [f"Bearer {key}", f"Bearer {key}"],
        lambda key: [f"Bearer {key}", "Basic YTpi"],
        lambda key: ["Basic YTpi", f"Bearer {key}"],
        lambda key: [f"Basic {key}"],
        lambda key: [f"Bearer\t{key}"],
        lambda key: [f"\tBearer {key}"],
        lambda key: [f"Bearer={key}"],
        lambda key: [f"Bearer: {key}"],
        lambda key: [f'Bearer "{key}"'],
        lambda key: [f"Bearer {key},"],
        lambda key: [f"Bearer {key} {key}"],
        lambda key: [f"Bearer {key}\0"],
        lambda key: [f"Bearer {key.upper()}"],
        lambda key: [f"Bearer {key[:-1]}"],
        lambda key: [f"Bearer {key}" + "x" * 1_000_000],
        lambda key: ["Bearer " + "\xff" * 200],
        lambda key: ["Bearer ключ".encode().decode("latin-1")],
        lambda key: ["Bearer ' OR 1=1 --"],
        lambda key: ["Bearer %"],
        lambda key: ["Bearer " + " " * 100_000],
        lambda key: [key],
        lambda key: [""],
        lambda key: [],
    ],
)  # fmt: skip
async def test_an_odd_authorization_opens_nothing(world: World, logs: Logs, spell: Any) -> None:
    logs.keep_secret(world.key)
    headers = [(b"authorization", value.encode("latin-1")) for value in spell(world.key)]
    for method, path in (("GET", "/v1/account"), ("POST", GENERATIONS)):
        reply = await raw(world, method, path, [*headers, (b"content-type", b"application/json")])
        assert_harmless(reply, world)
        assert reply.status_code == 401
        assert world.key not in reply.text
    assert world.generator.jobs == []


@pytest.mark.parametrize(
    "elsewhere", ["?api_key=", "?key=", "?access_token=", "?authorization=Bearer%20"]
)
async def test_a_key_in_the_url_opens_nothing_and_is_not_logged(
    world: World, logs: Logs, elsewhere: str
) -> None:
    logs.keep_secret(world.key)
    reply = await world.client(None).get(f"/v1/account{elsewhere}{world.key}")
    assert_harmless(reply, world)
    assert reply.status_code == 401


HOSTILE_TEXTS = [
    b"a\r\nx-injected: yes", b"a\nb", b"a\rb", b"\0", b"\xff\xfe", "ключ".encode(), b"x" * 10_000,
    b"", b" ", b"%0d%0ax-injected:%20yes", b"'; DROP TABLE holds; --", b"../../etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        b"x-request-id", b"host", b"accept", b"cookie", b"x-forwarded-host",
        b"forwarded", b"traceparent", b"range",
    ],
)  # fmt: skip
async def test_a_hostile_header_changes_nothing(world: World, name: bytes) -> None:
    drawn = []
    for value in HOSTILE_TEXTS:
        headers = [
            (b"authorization", f"Bearer {world.key}".encode()),
            (b"content-type", b"application/json"),
            (name, value),
        ]
        reply = await raw(world, "POST", GENERATIONS, headers)
        assert_harmless(reply, world)
        assert reply.status_code == 200
        assert reply.json()["data"][0]["url"].startswith("http://test/v1/images/")
        assert "x-injected" not in reply.headers
        assert "\n" not in str(reply.headers)
        drawn.append(reply)
    assert len({reply.headers["x-request-id"] for reply in drawn}) == len(drawn)
    await assert_charged_for_200s(world, drawn)


async def test_a_hostile_idempotency_key_is_refused_or_only_a_key(world: World) -> None:
    replies = []
    for value in HOSTILE_TEXTS:
        headers = [
            (b"authorization", f"Bearer {world.key}".encode()),
            (b"content-type", b"application/json"),
            (b"idempotency-key", value),
        ]
        reply = await raw(world, "POST", GENERATIONS, headers)
        assert_harmless(reply, world)
        visible = 1 <= len(value) <= 255 and all(0x21 <= byte <= 0x7E for byte in value)
        assert reply.status_code == (200 if visible else 400), value
        replies.append(reply)
    assert sum(reply.status_code == 200 for reply in replies) == 2
    await assert_charged_for_200s(world, replies)


async def test_two_request_ids_give_one_harmless_one(world: World) -> None:
    headers = [(b"x-request-id", b"bad id"), (b"x-request-id", b"good"), (b"X-Request-Id", b"b")]
    reply = await raw(world, "GET", "/health", headers)
    assert_harmless(reply, world)
    assert reply.headers["x-request-id"].startswith("req_")


async def test_thousands_of_headers_are_read_past(world: World) -> None:
    headers = [(b"x-%d" % i, b"y" * 50) for i in range(5000)]
    headers.append((b"authorization", f"Bearer {world.key}".encode()))
    reply = await raw(world, "GET", "/v1/account", headers)
    assert_harmless(reply, world)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "header", ["x-http-method-override", "x-http-method", "x-method-override", "_method"]
)
async def test_a_method_is_what_the_request_line_says(world: World, header: str) -> None:
    http = world.http
    got = await http.get(f"{GENERATIONS}?_method=POST", headers={header: "POST"})
    posted = await http.post(QUOTE, content=body_of(), headers={**JSON, header: "DELETE"})
    for reply in (got, posted):
        assert_harmless(reply, world)
    assert (got.status_code, posted.status_code) == (405, 200)
    assert world.generator.jobs == []


@pytest.mark.parametrize("method", METHODS)
async def test_other_methods_are_a_405_that_draws_nothing(world: World, method: str) -> None:
    headers = [
        (b"authorization", f"Bearer {world.key}".encode()),
        (b"content-type", b"application/json"),
        (b"cookie", b"secret=of-a-browser"),
    ]
    for path in (GENERATIONS, QUOTE):
        reply = await raw(world, method, path, headers)
        assert_harmless(reply, world)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        assert "of-a-browser" not in reply.text  # what TRACE is known for
    assert world.generator.jobs == []


async def test_no_control_header_of_serve_passes_the_proxy(world: World) -> None:
    seen: list[Mapping[str, str]] = []

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append({name.decode().lower(): value.decode() for name, value in scope["headers"]})
        await world.app(scope, receive, send)

    guarded = httpx.AsyncClient(
        transport=httpx.ASGITransport(ProxyGuard(behind)), base_url="http://test"
    )
    controls = {
        "X-Request-Timeout-Seconds": "0.001",
        "x-request-disconnect-disabled": "1",
        "serve_multiplexed_model_id": "x",
        "x-session-id": "x",
    }
    async with guarded as http:
        reply = await http.get("/v1/account", headers={**controls, "x-kept": "1"})
    assert_harmless(reply, world)
    assert seen[0]["x-kept"] == "1"
    assert not {name.lower() for name in controls} & set(seen[0])


async def test_no_origin_is_allowed_and_a_preflight_is_refused(world: World) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = await world.http.options(GENERATIONS, headers=headers)
    reply = await world.http.get("/v1/account", headers=headers)
    assert (preflight.status_code, reply.status_code) == (405, 200)
    for found in (preflight, reply):
        assert not [name for name in found.headers if name.startswith("access-control")]
    assert error_of(preflight)["code"] == "method_not_allowed"
