"""The gateway without Ray: every real part but the model, which follows a script."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp, Message
from waiting import skip

from serve_app.adminschema import ReplicaStatus
from serve_app.config import AppConfig
from serve_app.engine.job import (
    Event,
    Finished,
    GenerationJob,
    GenerationResult,
    ModelInfo,
    Preview,
    Queued,
    Timings,
)
from serve_app.errors import LedgerUnavailable
from serve_app.ingress.admin import Fleet
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import Balance, Principal, Resolution
from serve_app.plan import Catalogue, ServedModel
from serve_app.service import ImageService
from serve_app.storage.store import ImageStore

FLUX_MINI = ModelInfo(size_multiple_px=16, text_tokens_max=64, guidance=False)
UNITS_1024 = 1024 * 1024
"""Price of one image of default size and quality."""
Act = Callable[[GenerationJob], Awaitable[GenerationResult]]
Play = Callable[[GenerationJob], AsyncGenerator[Event, None]]


def picture(job: GenerationJob, index: int) -> bytes:
    return f"{job.output_format} {job.width}x{job.height} seed {job.seeds[index]}".encode()


def preview(job: GenerationJob, index: int, number: int) -> Preview:
    data = f"preview {number} of seed {job.seeds[index]}".encode()
    return Preview(job.job_id, index, number, data)


def pictures(job: GenerationJob, count: int) -> GenerationResult:
    none = Timings(0, 0, 0, 0, 0)
    images = [
        Finished(
            job.job_id, i, job.seeds[i % len(job.seeds)], picture(job, i % len(job.seeds)), none
        )
        for i in range(count)
    ]
    return GenerationResult(tuple(images))


class ScriptedGenerator:
    """Draws every job unless `act` says otherwise; remembers what it was asked.

    A stream is the same with previews before the pictures, unless `play` says otherwise.
    """

    def __init__(self) -> None:
        self.jobs: list[GenerationJob] = []
        self.estimated_s: float | None = 2.5
        self.act: Act = self.draw
        self.play: Play = self.show
        self.started = asyncio.Event()
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def estimate(self, job: GenerationJob) -> float | None:
        return self.estimated_s

    async def generate(self, job: GenerationJob) -> GenerationResult:
        self.jobs.append(job)
        self.started.set()
        try:
            return await self.act(job)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def stream(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        self.jobs.append(job)
        self.started.set()
        try:
            async with aclosing(self.play(job)) as events:
                async for event in events:
                    yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def show(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        yield Queued(job.job_id, 0)
        result = await self.act(job)
        for number in range(job.previews):
            for index in range(len(job.seeds)):
                yield preview(job, index, number)
        for image in result.images:
            yield image

    def showing_before(self, images: int, then: Act) -> Play:
        """So many pictures, and then whatever `then` does."""

        async def play(job: GenerationJob) -> AsyncGenerator[Event, None]:
            yield Queued(job.job_id, 0)
            for image in pictures(job, images).images:
                yield image
            for image in (await then(job)).images[images:]:
                yield image

        return play

    async def draw(self, job: GenerationJob) -> GenerationResult:
        return pictures(job, len(job.seeds))

    async def draw_one_too_few(self, job: GenerationJob) -> GenerationResult:
        return pictures(job, len(job.seeds) - 1)

    async def draw_one_too_many(self, job: GenerationJob) -> GenerationResult:
        return pictures(job, len(job.seeds) + 1)

    async def hang(self, job: GenerationJob) -> GenerationResult:
        self.hanging.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def outlast(self, job: GenerationJob) -> GenerationResult:
        """Hang, and let the deadline pass at once."""
        skip(job.timeout_s)
        return await self.hang(job)

    def failing(self, error: Exception) -> Act:
        async def act(job: GenerationJob) -> GenerationResult:
            raise error

        return act


class ShakyLedger:
    """The real ledger over a connection that fails when a test says so.

    `lose_requests` fail before the ledger has heard of them, `lose_answers` after it has done them:
    to the caller both are `LedgerUnavailable`.
    """

    def __init__(self, ledger: SqlLedger) -> None:
        self.ledger = ledger
        self.lose_requests: dict[str, int] = {}
        self.lose_answers: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ledger, name)

        async def call(*args: Any, **options: Any) -> Any:
            if _take(self.lose_requests, name):
                raise LedgerUnavailable("The ledger is unavailable right now.")
            answer = await method(*args, **options)
            if _take(self.lose_answers, name):
                lost = LedgerUnavailable("The ledger is unavailable right now.")
                lost.in_doubt = True
                raise lost
            return answer

        return call

    def delivered(self, hold_id: str) -> None:
        self.ledger.delivered(hold_id)

    async def capture(
        self, hold_id: str, units: int, reply: str | None = None, *, undelivered: bool = False
    ) -> Resolution:
        kept = () if reply is None else (reply,)
        options = {"undelivered": True} if undelivered else {}
        resolution: Resolution = await self.__getattr__("capture")(hold_id, units, *kept, **options)
        return resolution


def _take(budget: dict[str, int], name: str) -> bool:
    left = budget.get(name, 0)
    budget[name] = max(0, left - 1)
    return left > 0


@dataclass
class World:
    """One gateway with its ledger, store and model; `http` is a client with a paying key."""

    config: AppConfig
    ledger: SqlLedger
    shaky: ShakyLedger
    store: ImageStore | None
    generator: ScriptedGenerator
    service: ImageService
    app: ASGIApp
    key: str
    principal: Principal
    models_ready: bool = True
    replicas: dict[str, ReplicaStatus] = field(
        default_factory=lambda: {
            "flux-mini": ReplicaStatus(running=2, starting=1, stopping=0, target=3)
        }
    )
    """What Serve's controller would say, unless `ask_fleet` says otherwise."""
    ask_fleet: Fleet | None = None
    clients: list[httpx.AsyncClient] = field(default_factory=list)
    abandoned_units: int = 0
    """Units that a test leaves held on purpose."""

    async def fleet(self) -> Mapping[str, ReplicaStatus]:
        return await self.ask_fleet() if self.ask_fleet is not None else self.replicas

    @property
    def http(self) -> httpx.AsyncClient:
        return self.client(self.key)

    def client(self, key: str | None, **options: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(self.app, **options)
        made = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)
        self.clients.append(made)
        return made

    async def balance(self) -> Balance:
        return await self.ledger.balance(self.principal.account_id)

    async def charged(self) -> int:
        return (await self.balance()).captured

    async def draw(self, **fields: Any) -> httpx.Response:
        """One generation over HTTP."""
        return await self.http.post(
            "/v1/images/generations", json={"prompt": "a red circle", **fields}
        )


def catalogue(config: AppConfig) -> Catalogue:
    return Catalogue(tuple(ServedModel(model, FLUX_MINI) for model in config.models))


class Connection:
    """A client that sends one generation and hangs up when told to."""

    def __init__(self, world: World, body: dict[str, Any] | None = None) -> None:
        self.world = world
        self.sent: list[Message] = []
        self._news = asyncio.Condition()
        self._hung_up = asyncio.Event()
        data = json.dumps(body or {"prompt": "a red circle"}).encode()
        self._incoming = [{"type": "http.request", "body": data, "more_body": False}]
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/images/generations",
            "raw_path": b"/v1/images/generations",
            "query_string": b"",
            "headers": [
                (b"authorization", f"Bearer {world.key}".encode()),
                (b"content-type", b"application/json"),
            ],
            "scheme": "http",
            "server": ("test", 80),
        }

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    async def receive(self) -> Message:
        if self._incoming:
            return self._incoming.pop()
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        async with self._news:
            self.sent.append(message)
            self._news.notify_all()

    async def until_sent(self, messages: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: len(self.sent) >= messages)

    def hang_up(self) -> None:
        self._hung_up.set()

    def open(self) -> "asyncio.Task[None]":
        return asyncio.create_task(self.run())

    async def run(self) -> None:
        await self.world.app(self.scope, self.receive, self.send)


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """The error of a reply, which must be exactly in OpenAI's shape."""
    assert reply.headers["content-type"] == "application/json"
    body = reply.json()
    assert list(body) == ["error"], body
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert len(reply.headers.get_list("x-request-id")) == 1
    assert reply.headers["x-should-retry"] in {"true", "false"}
    return error
