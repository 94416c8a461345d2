"""Bytes that no HTTP library sends, to a real server on a real socket, as Serve's proxy runs it."""

import asyncio
import base64
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvicorn
from hostile import GENERATIONS, QUOTE, Logs, body_of
from scripted import World
from waiting import within

from serve_app.deployments.proxy import ProxyGuard

MakeWorld = Callable[..., Awaitable[World]]
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
BODY_TIMEOUT_S = 0.3
"""Of tests of slow bodies only: a slow machine would be too slow for it."""


class Server:
    """uvicorn as Serve's proxy runs it: no access log, no lifespan, our guard in front."""

    def __init__(self, world: World, port: int) -> None:
        self.world = world
        self.port = port

    def head(self, line: str, *more: str) -> bytes:
        headers = ["host: test", f"authorization: Bearer {self.world.key}", *more]
        return "\r\n".join([line, *headers, "", ""]).encode("latin-1")

    def post(self, path: str, *more: str) -> bytes:
        return self.head(f"POST {path} HTTP/1.1", "content-type: application/json", *more)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(self, data: bytes, replies: int = 1) -> bytes:
        """What comes back, up to so many replies or the end of the connection."""
        reader, writer = await self.connect()
        async with within("a reply"):
            writer.write(data)
            answer = await read_replies(reader, replies)
        writer.close()
        return answer

    async def alive(self) -> None:
        """Whatever was done to it, it serves the next client and has charged nobody."""
        answer = await self.talk(self.head("GET /v1/account HTTP/1.1"))
        assert statuses(answer) == [200]
        assert b'"held":0' in answer


async def read_replies(reader: asyncio.StreamReader, replies: int) -> bytes:
    answer = b""
    while chunk := await reader.read(65536):
        answer += chunk
        ends = len(re.findall(rb"\}\s*(?=HTTP/1|$)", answer))
        if len(STATUS.findall(answer)) >= replies and ends >= replies:
            break
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(found) for found in STATUS.findall(answer)]


@pytest.fixture
async def server(
    make_world: MakeWorld, logs: Logs, request: pytest.FixtureRequest
) -> AsyncIterator[Server]:
    world = await make_world(limits=getattr(request, "param", {}))
    logs.keep_secret(world.key)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        ProxyGuard(world.app), http="httptools", lifespan="off", log_config=None, access_log=False,
    )  # fmt: skip
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve(sockets=[listening]))
    try:
        yield Server(world, listening.getsockname()[1])
    finally:
        running.should_exit = running.force_exit = True
        await task
        listening.close()


MALFORMED = {
    "nothing like HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    "a line without a version": b"GET\r\n\r\n",
    "a version of the future": b"GET /health HTTP/9.9\r\n\r\n",
    "two lengths": b"POST /v1/images/quote HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n"
    b"content-length: 2\r\n\r\nxx",
    "a negative length": b"POST /v1/images/quote HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "a length that is no number": b"POST /v1/images/quote HTTP/1.1\r\nhost: x\r\n"
    b"content-length: 1e3\r\n\r\n",
    "length and chunks": b"POST /v1/images/quote HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    "a chunk size that is none": b"POST /v1/images/quote HTTP/1.1\r\nhost: x\r\n"
    b"transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n",
    "a header with a line break": b"GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: a\rb\r\n\r\n",
    "a header without a colon": b"GET /health HTTP/1.1\r\nhost: x\r\nnonsense\r\n\r\n",
    "a blank in a header's name": b"GET /health HTTP/1.1\r\nhost : x\r\n\r\n",
    "a NUL in a header": b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: a\0b\r\n\r\n",
    "a CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n",
    "HTTP/2 from the start": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("what", list(MALFORMED))
async def test_malformed_bytes_end_in_a_4xx_or_a_closed_connection(
    server: Server, what: str
) -> None:
    reader, writer = await server.connect()
    writer.write(MALFORMED[what])
    writer.write_eof()
    async with within("a reply"):
        answer = await reader.read()
    writer.close()
    assert all(status < 500 for status in statuses(answer)), answer
    assert b"Traceback" not in answer
    await server.alive()


async def test_a_large_body_without_a_key_is_a_401_before_it_is_sent(server: Server) -> None:
    head = (
        f"POST {GENERATIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        "expect: 100-continue\r\ncontent-length: 10000000\r\n\r\n"
    )
    answer = await server.talk(head.encode())
    assert statuses(answer) == [401]  # and no 100: the client need not send it
    assert answer.lower().count(b"x-request-id:") == 1
    await server.alive()


async def test_a_client_that_sends_ten_megabytes_without_a_key_gets_its_401(
    server: Server,
) -> None:
    head = f"POST {QUOTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000\r\n\r\n".encode()
    answer = await server.talk(head + b" " * 10_000_000)
    assert statuses(answer) == [401]
    await server.alive()


async def test_a_large_body_with_a_key_is_a_413_before_it_is_sent(server: Server) -> None:
    head = server.post(GENERATIONS, "expect: 100-continue", "content-length: 10000000")
    assert statuses(await server.talk(head)) == [413]
    await server.alive()


async def test_chunks_without_an_end_are_cut_off(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(server.post(GENERATIONS, "transfer-encoding: chunked"))

    async def flood() -> None:
        while True:
            writer.write(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            await writer.drain()

    flooding = asyncio.create_task(flood())
    async with within("a reply"):
        answer = await read_replies(reader, 1)
    flooding.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
        await flooding
    writer.close()
    assert statuses(answer) == [413]
    await server.alive()


@pytest.mark.parametrize("server", [{"body_timeout_s": BODY_TIMEOUT_S}], indirect=True)
@pytest.mark.parametrize("framing", ["content-length: 1000", "transfer-encoding: chunked"])
async def test_a_body_that_drips_is_a_408(server: Server, framing: str) -> None:
    reader, writer = await server.connect()
    writer.write(server.post(GENERATIONS, framing))

    async def drip() -> None:
        while True:
            writer.write(b"1\r\n \r\n" if "chunked" in framing else b" ")
            await asyncio.sleep(BODY_TIMEOUT_S / 5)  # what is tested: slowness

    dripping = asyncio.create_task(drip())
    async with within("a reply"):
        answer = await read_replies(reader, 1)
    dripping.cancel()
    writer.close()
    assert statuses(answer) == [408]
    await server.alive()


async def test_a_body_shorter_than_declared_draws_nothing(server: Server) -> None:
    reader, writer = await server.connect()
    writer.write(server.post(GENERATIONS, "content-length: 1000") + body_of())
    writer.write_eof()
    async with within("a reply"):
        await reader.read()
    writer.close()
    assert server.world.generator.jobs == []
    await server.alive()


async def test_what_follows_the_declared_length_is_another_request(server: Server) -> None:
    body = b'{"prompt": "x"}'
    smuggled = b"GET /v1/images/generations HTTP/1.1\r\nhost: x\r\n\r\n"
    head = server.post(QUOTE, f"content-length: {len(body)}")
    answer = await server.talk(head + body + smuggled, replies=2)
    assert statuses(answer) == [200, 405]
    await server.alive()


async def test_pipelined_requests_are_answered_in_order_and_each_is_charged(
    server: Server,
) -> None:
    body = body_of()
    one = server.post(GENERATIONS, f"content-length: {len(body)}") + body
    other = server.head("GET /v1/models HTTP/1.1")
    answer = await server.talk(one + other + one + b"GET /nope HTTP/1.1\r\nhost: x\r\n\r\n", 4)
    assert statuses(answer) == [200, 200, 200, 404]
    assert (await server.world.balance()).captured == 2 * 128 * 128
    assert len(set(re.findall(rb"x-request-id: (\S+)", answer))) == 4
    await server.alive()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_old_clients_are_served(server: Server, version: str) -> None:
    head = f"GET /v1/account HTTP/{version}\r\nauthorization: Bearer {server.world.key}\r\n"
    head += "" if version == "1.0" else "host: test\r\n"
    assert statuses(await server.talk(f"{head}\r\n".encode())) == [200]
    body = body_of()
    streamed = body_of(stream=True)
    for sent in (body, streamed):
        lines = [
            f"POST {GENERATIONS} HTTP/{version}", "host: test", "connection: close",
            f"authorization: Bearer {server.world.key}", "content-type: application/json",
            f"content-length: {len(sent)}", "", "",
        ]  # fmt: skip
        answer = await server.talk("\r\n".join(lines).encode() + sent, replies=99)
        assert statuses(answer) == [200]
    await server.alive()


@pytest.mark.parametrize("target", ["*", "http://evil.example/health", "//evil.example/health"])
@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "GET"])
async def test_odd_targets_get_a_plain_answer(server: Server, method: str, target: str) -> None:
    answer = await server.talk(server.head(f"{method} {target} HTTP/1.1", "connection: close"), 99)
    assert all(status < 500 for status in statuses(answer)), answer
    assert server.world.key.encode() not in answer
    await server.alive()


@pytest.mark.parametrize("path", ["/v1/account", GENERATIONS, "/nope", "/"])
async def test_a_websocket_is_refused_and_not_left_open(server: Server, path: str) -> None:
    upgrade = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"]
    key = base64.b64encode(b"x" * 16).decode()
    head = server.head(f"GET {path} HTTP/1.1", *upgrade, f"sec-websocket-key: {key}")
    answer = await server.talk(head)
    (status,) = statuses(answer)
    assert 200 <= status < 500
    assert b"101 " not in answer.split(b"\r\n")[0]
    assert answer.lower().count(b"x-request-id:") == 1
    await server.alive()


async def test_a_client_that_leaves_at_any_byte_is_not_charged(server: Server) -> None:
    body = body_of()
    whole = server.post(GENERATIONS, f"content-length: {len(body)}") + body
    for end in range(0, len(whole), 7):
        _, writer = await server.connect()
        writer.write(whole[:end])
        await writer.drain()
        writer.transport.abort()
    await server.alive()
    assert server.world.generator.jobs == []
