"""Streams over HTTP: the exact bytes, ordinary errors until they begin, and clients that leave."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from scripted import UNITS_1024, Connection, World, error_of, pictures, preview
from waiting import skip, turns

from serve_app.engine.job import Event, GenerationJob, Queued, Step
from serve_app.errors import GenerationFailed, Overloaded
from serve_app.ingress import sse

MakeWorld = Callable[..., Awaitable[World]]
pytestmark = pytest.mark.usefixtures("no_waiting")
ALIVE = ": keep-alive\n\n"
STREAM = {"prompt": "a red circle", "stream": True, "seed": 5}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse.time, "time", lambda: 1795341600.7)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def parts(body: str) -> list[tuple[str, Any]]:
    """Name and data of each event; comments are left out, and nothing else may be there."""
    assert body.endswith("\n\n")
    found = []
    for block in body[:-2].split("\n\n"):
        if block == ALIVE.strip():
            continue
        *names, data = block.split("\n")
        assert data.startswith("data: ")
        name = names[0].removeprefix("event: ") if names else ""
        found.append((name, json.loads(data.removeprefix("data: "))))
    return found


async def test_the_bytes_of_a_stream_are_openais(make_world: MakeWorld) -> None:
    world = await make_world(store=None)
    reply = await world.draw(stream=True, seed=5, partial_images=2)
    assert reply.status_code == 200
    rest = '"created_at":1795341600,"size":"1024x1024","quality":"auto","background":"opaque",'
    rest += '"output_format":"png"'
    expected = ALIVE
    for number in range(2):
        expected += (
            "event: image_generation.partial_image\n"
            'data: {"type":"image_generation.partial_image",'
            f'"b64_json":"{b64(f"preview {number} of seed 5")}",{rest},'
            f'"partial_image_index":{number},"image_index":0}}\n\n'
        )
    expected += (
        "event: image_generation.completed\n"
        'data: {"type":"image_generation.completed",'
        f'"b64_json":"{b64("png 1024x1024 seed 5")}",{rest},'
        '"usage":{"input_tokens":0,"output_tokens":1048576,"total_tokens":1048576,'
        '"input_tokens_details":{"text_tokens":0,"image_tokens":0},'
        '"output_tokens_details":{"text_tokens":0,"image_tokens":1048576},'
        '"compute_units":1048576},"image_index":0,"seed":5,"url":""}\n\n'
    )
    assert reply.text == expected


async def busy(job: GenerationJob) -> AsyncGenerator[Event, None]:
    """A job that waits behind two images, and takes two steps."""
    yield Queued(job.job_id, 2, 1.2345)
    yield Step(job.job_id, 0, 1, 2)
    yield preview(job, 0, 0)
    yield Step(job.job_id, 0, 2, 2)
    yield pictures(job, 1).images[0]


async def test_progress_that_was_asked_for_comes_between_openais_events(world: World) -> None:
    world.generator.play = busy
    reply = await world.draw(stream=True, partial_images=1, stream_progress=True)
    queued, first, shown, second, done = parts(reply.text)
    name = "image_generation.queued"
    assert queued == (name, {"type": name, "ahead": 2, "estimated_s": 1.23})
    name = "image_generation.progress"
    assert first == (name, {"type": name, "image_index": 0, "step": 1, "steps": 2})
    assert second == (name, {"type": name, "image_index": 0, "step": 2, "steps": 2})
    assert [event[0] for event in (shown, done)] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]


async def test_an_estimate_that_nobody_can_give_is_null(world: World) -> None:
    reply = await world.draw(stream=True, stream_progress=True)
    (_, queued), _ = parts(reply.text)
    assert queued == {"type": "image_generation.queued", "ahead": 0, "estimated_s": None}


@pytest.mark.parametrize("body", [{}, {"stream_progress": False}, {"stream_progress": None}])
async def test_without_progress_asked_for_there_are_openais_events_only(
    world: World, body: dict[str, Any]
) -> None:
    world.generator.play = busy
    reply = await world.draw(stream=True, partial_images=1, **body)
    assert [name for name, _ in parts(reply.text)] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]


async def test_the_headers_of_a_stream(world: World) -> None:
    reply = await world.draw(stream=True, n=2, model="black-forest-labs/FLUX.1-schnell")
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-model"] == "flux-mini"
    assert reply.headers["x-compute-units"] == str(2 * UNITS_1024)
    assert reply.headers["x-compute-units-available"] == str((await world.balance()).available)
    assert len(reply.headers.get_list("x-request-id")) == 1
    assert "content-length" not in reply.headers


async def test_each_image_says_which_it_is_and_where(world: World) -> None:
    reply = await world.draw(stream=True, n=2, seed=5, partial_images=1, output_format="jpeg")
    events = parts(reply.text)
    assert [(name, data["image_index"]) for name, data in events] == [
        ("image_generation.partial_image", 0),
        ("image_generation.partial_image", 1),
        ("image_generation.completed", 0),
        ("image_generation.completed", 1),
    ]
    for _, data in events[2:]:
        drawn = (await world.client(None).get(data["url"])).content
        assert base64.b64decode(data["b64_json"]) == drawn
        assert data["output_format"] == "jpeg"
        assert data["seed"] == 5 + data["image_index"]
    assert sum(data["usage"]["compute_units"] for _, data in events[2:]) == await world.charged()


async def test_without_previews_asked_for_there_are_none(world: World) -> None:
    for body in ({}, {"partial_images": 0}, {"partial_images": None}):
        reply = await world.draw(stream=True, **body)
        assert [name for name, _ in parts(reply.text)] == ["image_generation.completed"]


@pytest.mark.parametrize("form", ["url", "b64_json"])
async def test_a_stream_always_has_the_bytes(world: World, form: str) -> None:
    reply = await world.draw(stream=True, response_format=form)
    ((_, data),) = parts(reply.text)
    assert data["b64_json"]
    assert data["url"]


async def test_stream_false_is_one_json_object(world: World) -> None:
    reply = await world.draw(stream=False)
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.json()["data"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"size": "1x1"}, 400, "size"),
        ({"partial_images": 4}, 400, "partial_images"),
        ({"stream_progress": 1}, 400, "stream_progress"),
        ({"model": "dall-e-3"}, 404, "model"),
        ({"n": 10}, 402, None),
    ],
)
async def test_a_stream_that_cannot_begin_is_an_ordinary_error(
    make_world: MakeWorld, body: dict[str, Any], status: int, param: str | None
) -> None:
    world = await make_world(granted=UNITS_1024)
    reply = await world.draw(stream=True, **body)
    assert reply.status_code == status
    assert error_of(reply)["param"] == param
    assert world.generator.jobs == []


async def test_a_stream_needs_a_key_like_everything_else(world: World) -> None:
    reply = await world.client(None).post("/v1/images/generations", json=STREAM)
    assert reply.status_code == 401
    error_of(reply)


async def test_a_ledger_that_is_away_is_an_ordinary_503(world: World) -> None:
    world.shaky.lose_requests["hold"] = 1
    reply = await world.draw(stream=True)
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "ledger_unavailable"


async def test_a_full_queue_is_an_ordinary_503(world: World) -> None:
    async def full(job: GenerationJob) -> AsyncGenerator[Event, None]:
        raise Overloaded("The model's queue is full.").after(7)
        yield

    world.generator.play = full
    reply = await world.draw(stream=True)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "7"
    assert error_of(reply)["code"] == "server_is_overloaded"
    assert await world.charged() == 0


@pytest.mark.parametrize(
    ("failure", "message", "code"),
    [
        (GenerationFailed("The model failed."), "The model failed.", "generation_failed"),
        (RuntimeError("hunter2"), "The server had an error.", "internal_error"),
    ],
)
async def test_a_failure_midway_is_the_last_event(
    world: World, failure: Exception, message: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.generator.play = world.generator.showing_before(1, world.generator.failing(failure))
    reply = await world.draw(stream=True, n=3)
    assert reply.status_code == 200
    (name, _), error = parts(reply.text)
    assert name == "image_generation.completed"
    told = {"message": message, "type": "server_error", "param": None, "code": code}
    assert error == ("", {"error": told})
    assert "hunter2" not in reply.text
    assert ("hunter2" in caplog.text) == isinstance(failure, RuntimeError)
    assert await world.charged() == UNITS_1024


async def test_a_deadline_midway_is_told(world: World) -> None:
    world.generator.play = world.generator.showing_before(1, world.generator.outlast)
    reply = await world.draw(stream=True, n=2)
    _, (_, error) = parts(reply.text)
    assert error["error"]["code"] == "timeout"
    assert await world.charged() == UNITS_1024


async def test_the_stream_opens_as_soon_as_a_replica_has_the_job(world: World) -> None:
    world.generator.play = world.generator.showing_before(0, world.generator.hang)
    connection = Connection(world, STREAM)
    request = connection.open()
    await world.generator.hanging.wait()
    await connection.until_sent(2)
    start, first = connection.sent
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert first["body"] == ALIVE.encode()
    connection.hang_up()
    await request


async def test_a_job_that_waits_for_a_replica_opens_the_stream_after_a_heartbeat(
    world: World,
) -> None:
    """A model scaled to zero takes minutes; and then a failure can only be told in the stream."""
    too_late = asyncio.Event()

    async def late(job: GenerationJob) -> AsyncGenerator[Event, None]:
        await too_late.wait()
        raise Overloaded("too late for a 503")
        yield

    world.generator.play = late
    connection = Connection(world, STREAM)
    request = connection.open()
    await world.generator.started.wait()
    await turns()
    assert connection.sent == []
    skip(sse.HEARTBEAT_S)
    await connection.until_sent(2)
    too_late.set()
    await request
    assert connection.sent[0]["status"] == 200
    assert connection.body.startswith(ALIVE.encode())
    ((_, error),) = parts(connection.body.decode())
    assert error["error"]["code"] == "server_is_overloaded"
    assert await world.charged() == 0


async def test_a_silent_stream_shows_that_it_lives(world: World) -> None:
    may_finish = asyncio.Event()

    async def slow(job: GenerationJob) -> AsyncGenerator[Event, None]:
        yield Queued(job.job_id, 0)
        yield preview(job, 0, 0)
        await may_finish.wait()
        yield pictures(job, 1).images[0]

    world.generator.play = slow
    connection = Connection(world, {**STREAM, "partial_images": 1})
    request = connection.open()
    await connection.until_sent(3)
    for beats in range(1, 4):
        await turns()
        assert len(connection.sent) == 2 + beats
        skip(sse.HEARTBEAT_S)
        await connection.until_sent(3 + beats)
    may_finish.set()
    await request
    text = connection.body.decode()
    assert [name for name, _ in parts(text)] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    between = text.split("event: ")[1]
    assert between.count(ALIVE) == 3  # one for each interval


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("how", ["the server says so", "the server cancels the handler"])
async def test_a_client_that_leaves_stops_its_job_and_pays_for_what_it_was_sent(
    world: World, how: str, images: int
) -> None:
    world.generator.play = world.generator.showing_before(images, world.generator.hang)
    connection = Connection(world, {**STREAM, "n": 3})
    request = connection.open()
    await world.generator.hanging.wait()
    await connection.until_sent(2 + images)
    if how == "the server says so":
        connection.hang_up()
        await request
    else:
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert world.generator.cancelled.is_set()
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, images * UNITS_1024)
    assert connection.body.count(b"image_generation.completed\n") == images


async def test_a_client_that_leaves_before_the_stream_opens_is_free(world: World) -> None:
    async def never(job: GenerationJob) -> AsyncGenerator[Event, None]:
        await world.generator.hang(job)
        yield Queued(job.job_id, 0)

    world.generator.play = never
    connection = Connection(world, STREAM)
    request = connection.open()
    await world.generator.hanging.wait()
    connection.hang_up()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert world.generator.cancelled.is_set()
    assert connection.sent == []
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, 0)


async def test_a_client_that_leaves_with_its_last_image_has_paid_for_it(world: World) -> None:
    connection = Connection(world, STREAM)

    async def send(message: Any) -> None:
        connection.sent.append(message)
        if b"image_generation.completed" in message.get("body", b""):
            connection.hang_up()

    await world.app(connection.scope, connection.receive, send)
    await world.service.drain()
    assert await world.charged() == UNITS_1024


async def test_an_image_that_could_not_be_sent_is_free_and_not_kept(world: World) -> None:
    """The client reads no more, so the server waits in the middle of a write."""
    connection, writing = Connection(world, STREAM), asyncio.Event()

    async def send(message: Any) -> None:
        connection.sent.append(message)
        if b"image_generation.completed" in message.get("body", b""):
            writing.set()
            await asyncio.Event().wait()

    request = asyncio.create_task(world.app(connection.scope, connection.receive, send))
    await writing.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await world.service.drain()
    assert await world.charged() == 0
    data = json.loads(connection.body.split(b"data: ")[1])
    assert (await world.client(None).get(data["url"])).status_code == 404


async def test_a_client_that_does_not_read_is_cut_off_at_the_deadline(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(world, STREAM)

    async def send(message: Any) -> None:
        connection.sent.append(message)
        if b"image_generation.completed" in message.get("body", b""):
            skip(world.config.limits.request_timeout_s)
            await asyncio.Event().wait()

    with caplog.at_level(logging.INFO):
        await world.app(connection.scope, connection.receive, send)
    assert "too slowly" in caplog.text
    assert connection.sent[-1]["more_body"]
    await world.service.drain()
    assert await world.charged() == 0


async def test_many_streams_at_once_each_pay_their_own(world: World) -> None:
    async def one(n: int) -> httpx.Response:
        return await world.draw(stream=True, n=n, partial_images=1)

    replies = await asyncio.gather(*(one(1 + n % 3) for n in range(12)))
    counts = [reply.text.count("image_generation.completed\n") for reply in replies]
    assert counts == [1 + n % 3 for n in range(12)]
    assert await world.charged() == sum(counts) * UNITS_1024
