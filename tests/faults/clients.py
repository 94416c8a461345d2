"""A steady, seeded load of real HTTP clients, and what each of them saw.

Data flow: `Load` runs `CLIENTS` clients on an event loop of its own thread -> each draws requests
from its own seeded random numbers -> one `Attempt` for each HTTP request. Clients leave in the
middle now and then; those with an idempotency key try again until they have their pictures. Must
not import Ray: clients know a server by its API only.
"""

import asyncio
import base64
import io
import json
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from tests.machine import MACHINE, eventually

CLIENTS = 4
"""Enough that every moment finds jobs under way, few enough for two cores."""
THINK_S = (0.0, 0.25)
TIMEOUT_S = 40.0
"""Of a client; far beyond the server's deadline, so it never fires unless a reply is lost."""
KEYED = 0.4
"""Share of the jobs that have an idempotency key."""
KEYED_TIMEOUT_S = 300.0
"""How long a client with a key keeps trying: far longer than a busy machine takes to recover."""
RETRY_S = 0.2
RECONNECT_S = 1.0
"""A client that finds nobody listening, while the proxy is down, does not knock all the time."""
SIZES = ("256x256", "320x256", "512x512")
SMALL = {"prompt": "a red circle", "size": "256x256", "n": 1, "output_format": "png"}
FORMATS = ("png", "jpeg", "webp")


@dataclass
class Attempt:
    """One HTTP request for pictures and everything its client saw of it."""

    request_id: str
    body: dict[str, Any]
    key: str | None = None
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    status: int | None = None
    """None: no reply, or none that was read."""
    error: dict[str, Any] | None = None
    """OpenAI's error object, from a reply or from the last event of a stream."""
    units: int = 0
    """What the reply said that it costs."""
    pictures: dict[int, bytes] = field(default_factory=dict)
    """Files by index, as they came."""
    urls: list[str] = field(default_factory=list)
    finished: bool = False
    """The reply was read to its end."""
    left: bool = False
    """The client went away on purpose."""
    broken: str = ""
    """How the connection failed."""
    wrong: str = ""
    """What a reply held that no client should ever be sent."""

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def n(self) -> int:
        return int(self.body["n"])

    @property
    def served(self) -> bool:
        """The client has everything that it asked for."""
        return self.status == 200 and self.finished and not self.error and not self.wrong

    def forget_bytes(self) -> None:
        """The pictures were looked at: a long run cannot keep them all."""
        self.pictures = dict.fromkeys(self.pictures, b"")
        self.urls = []

    def price(self, images: int) -> int:
        """Compute units of so many images: the reference number of steps, so their pixels."""
        width, height = (int(edge) for edge in self.body["size"].split("x"))
        return images * width * height


class Load:
    """The clients, who begin when they are told to `resume`; what they saw is in `attempts`."""

    def __init__(self, url: str, key: str, seed: int) -> None:
        self.attempts: list[Attempt] = []
        self.served = 0
        """Replies that had everything."""
        self._url = url
        self._headers = {"authorization": f"Bearer {key}"}
        self._seed = seed
        self._paused = True
        self._busy = 0
        self._stopped = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._clients: list[Future[None]] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        for number in range(CLIENTS):
            work = self._client(random.Random(f"{self._seed}/{number}"), number)
            self._clients.append(asyncio.run_coroutine_threadsafe(work, self._loop))
        return self

    def __exit__(self, *why: object) -> None:
        self._stopped = True
        try:
            for client in self._clients:
                client.result(MACHINE.allow(KEYED_TIMEOUT_S + TIMEOUT_S))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def resume(self) -> None:
        self._paused = False

    def pause(self) -> None:
        """Nobody asks for anything; when this returns, those under way have ended."""
        self._paused = True
        wait_s = KEYED_TIMEOUT_S + TIMEOUT_S
        eventually(lambda: not self._busy or self._dead(), "clients end", wait_s)
        self._dead()

    def round(self) -> list[Attempt]:
        """One request of every shape, one after the other, with no fault around."""

        async def ask() -> list[Attempt]:
            async with httpx.AsyncClient(
                timeout=MACHINE.allow(TIMEOUT_S), headers=self._headers
            ) as http:
                shapes = [
                    {**SMALL, "stream": False, "response_format": "url"},
                    {**SMALL, "stream": False, "response_format": "b64_json"},
                    {**SMALL, "stream": True},
                ]
                found = []
                for body in shapes:
                    found.append(await self._ask(http, body, f"calm-{time.time_ns()}"))
                return found

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(
            MACHINE.allow(TIMEOUT_S * 4)
        )

    def fetch(self, urls: list[str]) -> list[tuple[str, httpx.Response]]:
        """What the links open."""

        async def get() -> list[tuple[str, httpx.Response]]:
            async with httpx.AsyncClient(timeout=MACHINE.allow(TIMEOUT_S)) as http:
                return [(url, await http.get(url)) for url in urls]

        return asyncio.run_coroutine_threadsafe(get(), self._loop).result(
            MACHINE.allow(TIMEOUT_S * 4)
        )

    def _dead(self) -> bool:
        """Raise what ended a client: a bug of this file."""
        for client in self._clients:
            if client.done() and not self._stopped:
                client.result()
        return False

    async def _client(self, rng: random.Random, number: int) -> None:
        async with httpx.AsyncClient(
            timeout=MACHINE.allow(TIMEOUT_S), headers=self._headers
        ) as http:
            count = 0
            while not self._stopped:
                await asyncio.sleep(rng.uniform(*THINK_S))
                if self._paused:
                    continue
                count += 1
                name = f"faults-{number}-{count}"
                self._busy += 1
                try:
                    if rng.random() < KEYED:
                        await self._insist(http, rng, name)
                    else:
                        body = self._body(rng)
                        leaves = rng.uniform(0.0, 0.6) if rng.random() < 0.15 else None
                        await self._ask(http, body, name, leaves_s=leaves)
                finally:
                    self._busy -= 1

    async def _insist(self, http: httpx.AsyncClient, rng: random.Random, name: str) -> None:
        """One job under one idempotency key, until its pictures are here."""
        body = self._body(rng, streams=0.0)
        deadline = time.monotonic() + MACHINE.allow(KEYED_TIMEOUT_S)
        tries = 0
        while time.monotonic() < deadline:
            tries += 1
            leaves = rng.uniform(0.0, 0.6) if rng.random() < 0.2 else None
            attempt = await self._ask(http, body, f"{name}-try-{tries}", leaves_s=leaves, key=name)
            refused = attempt.status is not None and 400 <= attempt.status < 500
            if attempt.served or attempt.wrong or (refused and attempt.status != 409):
                return
            await asyncio.sleep(RETRY_S)

    def _body(self, rng: random.Random, streams: float = 0.3) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": f"a red circle, number {rng.randrange(10**6)}",
            "size": rng.choice(SIZES),
            "n": rng.choice((1, 1, 2, 3)),
            "output_format": rng.choice(FORMATS),
            "stream": rng.random() < streams,
        }
        if not body["stream"]:
            body["response_format"] = rng.choice(("url", "b64_json"))
        elif rng.random() < 0.5:
            body["partial_images"] = 1
        return body

    async def _ask(
        self,
        http: httpx.AsyncClient,
        body: dict[str, Any],
        request_id: str,
        *,
        leaves_s: float | None = None,
        key: str | None = None,
    ) -> Attempt:
        attempt = Attempt(request_id, body, key)
        self.attempts.append(attempt)
        headers = {"x-request-id": request_id}
        if key is not None:
            headers["idempotency-key"] = key
        url = f"{self._url}/v1/images/generations"
        try:
            async with asyncio.timeout(leaves_s):
                async with http.stream("POST", url, json=body, headers=headers) as reply:
                    await _read(reply, attempt)
        except TimeoutError:
            attempt.left = True
        except httpx.TransportError as exc:
            attempt.broken = repr(exc)
        finally:
            attempt.ended = time.time()
            self.served += attempt.served
        if attempt.broken:
            await asyncio.sleep(RECONNECT_S)
        return attempt


async def _read(reply: httpx.Response, attempt: Attempt) -> None:
    attempt.status = reply.status_code
    attempt.units = int(reply.headers.get("x-compute-units", 0))
    if reply.headers.get_list("x-request-id") != [attempt.request_id]:
        attempt.wrong = f"x-request-id: {reply.headers.get_list('x-request-id')}"
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        await _read_events(reply, attempt)
    else:
        _read_json(await reply.aread(), attempt)
    attempt.finished = True


async def _read_events(reply: httpx.Response, attempt: Attempt) -> None:
    async for line in reply.aiter_lines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            _take_error(event, attempt)
        elif event["type"] == "image_generation.completed":
            attempt.pictures[event["image_index"]] = base64.b64decode(event["b64_json"])
            if event["url"]:
                attempt.urls.append(event["url"])


def _read_json(data: bytes, attempt: Attempt) -> None:
    try:
        body = json.loads(data)
    except ValueError:
        attempt.wrong = f"status {attempt.status}, no JSON: {data[:200]!r}"
        return
    if attempt.status != 200:
        _take_error(body, attempt)
        return
    for index, one in enumerate(body["data"]):
        if one.get("url"):
            attempt.urls.append(one["url"])
        if "b64_json" in one:
            attempt.pictures[index] = base64.b64decode(one["b64_json"])
        elif not one.get("url"):
            attempt.wrong = "an image without bytes and without a URL"
    if len(body["data"]) != attempt.n:
        attempt.wrong = f"{len(body['data'])} images instead of {attempt.n}"


def _take_error(body: Any, attempt: Attempt) -> None:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        attempt.wrong = f"not OpenAI's error: {body}"
    else:
        attempt.error = error


def show(data: bytes, attempt: Attempt) -> str:
    """Why `data` is no picture of this request; empty if it is one."""
    image = Image.open(io.BytesIO(data))
    image.load()
    if f"{image.width}x{image.height}" != attempt.body["size"]:
        return f"{image.width}x{image.height} instead of {attempt.body['size']}"
    if (image.format or "").lower() != attempt.body["output_format"]:
        return f"{image.format} instead of {attempt.body['output_format']}"
    return ""
