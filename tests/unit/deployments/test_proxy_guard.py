"""ProxyGuard as plain ASGI: Serve's own failures become ours, and its control headers are ours."""

import logging
import re
from typing import Any

import httpx
import pytest
from scripted import error_of
from starlette.types import Message, Receive, Scope, Send

from serve_app.deployments.proxy import (
    CALLBACK_PATH,
    CALLBACK_VARIABLE,
    ProxyGuard,
    middlewares,
    warn_if_unguarded,
)
from serve_app.observability import LOGGER_NAME

MADE = re.compile(r"req_[0-9a-f]{32}")
Headers = list[tuple[bytes, bytes]]
TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8")]
JSON: Headers = [(b"content-type", b"application/json")]


class ServesProxy:
    """Answers as Serve's proxy would; remembers what came through the guard."""

    def __init__(self, status: int, headers: Headers, *chunks: bytes) -> None:
        self.status, self.headers, self.chunks = status, headers, chunks
        self.seen: Headers = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen = list(scope["headers"])
        headers = [*self.headers, (b"x-request-id", b"of-the-proxy")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def ask(proxy: ServesProxy, path: str = "/v1/models", **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(ProxyGuard(proxy))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path, **options)


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (404, 503, "service_unavailable"),  # nothing is deployed yet
        (408, 504, "timeout"),
        (500, 500, "internal_error"),
        (502, 500, "internal_error"),
        (503, 503, "service_unavailable"),
    ],
)
@pytest.mark.parametrize("headers", [TEXT, [], [(b"content-type", b"text/html")]])
async def test_a_failure_of_serve_itself_has_our_shape(
    status: int, expected: int, code: str, headers: Headers
) -> None:
    proxy = ServesProxy(status, headers, b"Request abc timed out after 0.5s.", b" traceback")
    reply = await ask(proxy)
    assert reply.status_code == expected
    assert error_of(reply)["code"] == code
    assert "traceback" not in reply.text
    assert ("retry-after" in reply.headers) == (expected == 503)


class FailingProxy(ServesProxy):
    """Gives up after what it had to send, as when a gateway dies at the wrong moment."""

    def __init__(self, failure: Exception | None, *sent: Message) -> None:
        super().__init__(200, [])
        self.failure, self.sent = failure, sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for message in self.sent:
            await send(message)
        if self.failure is not None:
            raise self.failure


@pytest.mark.parametrize("failure", [RuntimeError("secret"), None], ids=["raises", "returns"])
async def test_a_proxy_that_answers_nothing_is_a_500_in_our_shape(
    failure: Exception | None,
) -> None:
    reply = await ask(FailingProxy(failure), headers={"x-request-id": "mine-1"})
    assert reply.status_code == 500
    assert error_of(reply)["code"] == "internal_error"
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert "secret" not in reply.text


async def test_a_reply_that_breaks_off_is_not_made_to_look_whole() -> None:
    started = {"type": "http.response.start", "status": 200, "headers": JSON}
    with pytest.raises(RuntimeError, match="gone"):
        await ask(FailingProxy(RuntimeError("gone"), started))


@pytest.mark.parametrize("status", [200, 400, 402, 500])
async def test_a_json_reply_passes_byte_for_byte(status: int) -> None:
    headers = [*JSON, (b"x-compute-units", b"7"), (b"retry-after", b"3")]
    reply = await ask(ServesProxy(status, headers, b'{"a":', b" 1}"))
    assert (reply.status_code, reply.content) == (status, b'{"a": 1}')
    assert reply.headers["x-compute-units"] == "7"
    assert reply.headers["retry-after"] == "3"


async def test_a_picture_passes_byte_for_byte() -> None:
    reply = await ask(ServesProxy(200, [(b"content-type", b"image/png")], b"\x89PNG", b"\0"))
    assert reply.content == b"\x89PNG\0"
    assert reply.headers["content-type"] == "image/png"


@pytest.mark.parametrize("status", [200, 402, 404])
async def test_there_is_exactly_one_request_id(status: int) -> None:
    proxy = ServesProxy(status, [*JSON, (b"x-request-id", b"of-the-gateway")], b"{}")
    reply = await ask(proxy)
    (found,) = reply.headers.get_list("x-request-id")
    assert MADE.fullmatch(found)
    assert [value for name, value in proxy.seen if name == b"x-request-id"] == [found.encode()]


async def test_a_harmless_request_id_of_the_client_is_kept_throughout() -> None:
    proxy = ServesProxy(500, TEXT, b"x")
    reply = await ask(proxy, headers={"x-request-id": "mine-1"})
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    assert (b"x-request-id", b"mine-1") in proxy.seen


async def test_two_request_ids_of_a_client_become_one() -> None:
    proxy = ServesProxy(200, JSON, b"{}")
    await ask(proxy, headers=[("x-request-id", "one"), ("X-Request-ID", "two")])
    assert sum(name == b"x-request-id" for name, _ in proxy.seen) == 1


@pytest.mark.parametrize(
    "name",
    [
        "x-request-timeout-seconds",
        "X-Request-Timeout-Seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "serve-multiplexed-model-id",
        "x-session-id",
    ],
)
async def test_a_client_cannot_steer_serve(name: str) -> None:
    proxy = ServesProxy(200, JSON, b"{}")
    await ask(proxy, headers={name: "0.001", "x-harmless": "kept"})
    names = [header.lower() for header, _ in proxy.seen]
    assert name.lower().encode() not in names
    assert b"x-harmless" in names


@pytest.mark.parametrize("path", ["/-/healthz", "/-/routes"])
async def test_the_operators_routes_are_as_serve_writes_them(path: str) -> None:
    proxy = ServesProxy(503, TEXT, b"This node is being drained.")
    reply = await ask(proxy, path, headers={"x-session-id": "s"})
    assert (reply.status_code, reply.text) == (503, "This node is being drained.")
    assert (b"x-session-id", b"s") in proxy.seen


async def test_a_lifespan_passes_and_a_websocket_is_closed() -> None:
    seen: list[str] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    for kind in ("lifespan", "websocket"):
        await ProxyGuard(app)({"type": kind, "path": "/", "headers": []}, receive, send)
    assert seen == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_serve_finds_the_guard_by_the_path_that_the_configs_name(own_loggers: None) -> None:
    module, _, name = CALLBACK_PATH.rpartition(".")
    assert (module, name) == (middlewares.__module__, middlewares.__name__)
    assert [middleware.cls for middleware in middlewares()] == [ProxyGuard]


@pytest.mark.parametrize(
    ("direct_ingress", "callback", "warned"),
    [
        (True, None, True),
        (True, "other.path", True),
        (True, CALLBACK_PATH, False),
        (False, None, False),
    ],
)
def test_a_gateway_that_clients_reach_unguarded_says_so(
    direct_ingress: bool,
    callback: str | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv(CALLBACK_VARIABLE, raising=False)
    if callback is not None:
        monkeypatch.setenv(CALLBACK_VARIABLE, callback)
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    warn_if_unguarded(direct_ingress)
    assert (CALLBACK_PATH in caplog.text) == warned
