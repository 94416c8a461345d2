"""`flux-serve generate` against a real gateway over HTTP, and against servers that misbehave."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from commands_server import Use, listening
from scripted import UNITS_1024, World

from serve_app.client import drawing
from serve_app.engine.job import Event, Finished, GenerationJob, Queued, Step, Timings
from serve_app.errors import GenerationFailed, Overloaded

MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries are noted, not slept."""
    found: list[float] = []
    monkeypatch.setattr(drawing.time, "sleep", found.append)
    return found


def content(name: str) -> bytes:
    return Path(name).read_bytes()


def leave(name: str, data: bytes) -> None:
    Path(name).write_bytes(data)


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


async def test_a_picture_is_saved_and_paid_for(world: World, use: Use) -> None:
    async with listening(world.app) as url:
        done = await use("generate", "a red circle", "-o", "a.png", "--url", url, key=world.key)
    seed = world.generator.jobs[0].seeds[0]
    assert content("a.png") == f"png 1024x1024 seed {seed}".encode()
    assert done.stdout.startswith(f"a.png  1024x1024, seed {seed}\nflux-mini, 1,048,576 compute")
    assert done.stderr == ""
    assert await world.charged() == UNITS_1024


async def test_every_option_reaches_the_model(world: World, use: Use) -> None:
    options = ["--size", "256x512", "--steps", "3", "--seed", "9", "-n", "2", "--guidance", "1.5"]
    options += ["--model", "black-forest-labs/FLUX.1-schnell", "-o", "a.webp", "--json"]
    async with listening(world.app) as url:
        done = await use("generate", "-", *options, "--url", url, key=world.key, input="a prompt\n")
    (job,) = world.generator.jobs
    assert (job.prompt, job.width, job.height, job.steps) == ("a prompt", 256, 512, 3)
    assert (job.seeds, job.guidance, job.output_format) == ((9, 10), 1.5, "webp")
    assert job.previews == 0  # nobody would see them
    found = json.loads(done.stdout)
    assert [(image["file"], image["seed"]) for image in found["images"]] == [
        ("a-1.webp", 9),
        ("a-2.webp", 10),
    ]
    assert found["units"] == await world.charged()
    assert found["units_available"] == (await world.balance()).available
    assert content("a-2.webp") == b"webp 256x512 seed 10"


async def test_nothing_is_asked_for_what_could_not_be_saved(world: World, use: Use) -> None:
    leave("a.png", b"mine")
    async with listening(world.app) as url:
        done = await use("generate", "x", "-o", "a.png", "--url", url, key=world.key, code=1)
    assert done.stderr == "error: a.png exists already; --force replaces it\n"
    assert content("a.png") == b"mine"
    assert world.generator.jobs == []


async def test_an_empty_account_is_told_so(make_world: MakeWorld, use: Use) -> None:
    world = await make_world(granted=1)
    async with listening(world.app) as url:
        done = await use("generate", "x", "--json", "--url", url, key=world.key, code=5)
    error = json.loads(done.stdout)["error"]
    assert (error["status"], error["code"]) == (402, "credit_balance_exhausted")
    assert f"request {error['request_id']}]" in done.stderr
    assert files() == []


@pytest.mark.parametrize(
    ("words", "key", "code", "said"),
    [
        (["--size", "100x100"], None, 6, "edges must be"),
        (["--model", "dall-e-2"], None, 6, "model_not_found"),
        ([], "sk-wrong", 4, "The key is from FLUX_SERVE_API_KEY."),
        (["--n", "0"], None, 2, "greater than or equal to 1"),
        (["-o", "a.gif"], None, 1, ".png, .jpg"),
        (["--url", "nonsense"], None, 1, "no URL such as"),
        (["--key-file", "absent"], None, 1, "No such file"),
    ],
)
async def test_a_refusal_is_a_sentence(
    world: World, use: Use, words: list[str], key: str | None, code: int, said: str
) -> None:
    async with listening(world.app) as url:
        done = await use("generate", "x", "--url", url, *words, key=key or world.key, code=code)
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert await world.charged() == 0


async def test_nobody_there(use: Use, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    for command in (["generate", "x"], ["quote", "x"], ["status"]):
        done = await use(*command, "--url", url, code=3)
        assert done.stderr.startswith(f"error: no server answers at {url}")


async def test_a_server_without_a_development_key_asks_for_one(world: World, use: Use) -> None:
    async with listening(world.app) as url:
        done = await use("generate", "x", "--url", url, code=4)
    assert "FLUX_SERVE_API_KEY" in done.stderr  # this server has none to give


async def test_a_busy_server_is_tried_again_as_it_says(
    world: World, use: Use, waits: list[float]
) -> None:
    tries: list[GenerationJob] = []

    async def busy_once(job: GenerationJob) -> Any:
        tries.append(job)
        if len(tries) == 1:
            raise Overloaded("The queue is full.").after(7)
        return await world.generator.draw(job)

    world.generator.play = lambda job: queued_after(world, job, busy_once)
    async with listening(world.app) as url:
        done = await use("generate", "x", "-o", "a.png", "--url", url, key=world.key)
    assert waits == [7.0]
    assert "trying again in 7.0 s" in done.stderr
    assert await world.charged() == UNITS_1024


async def queued_after(world: World, job: GenerationJob, act: Any) -> AsyncGenerator[Event, None]:
    result = await act(job)
    yield Queued(job.job_id, 0)
    for image in result.images:
        yield image


async def test_tries_end_and_share_an_idempotency_key(use: Use, waits: list[float]) -> None:
    keys = []

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        keys.append(dict(scope["headers"])[b"idempotency-key"])
        body = json.dumps({"error": {"message": "Busy.", "type": "x", "param": None, "code": None}})
        headers = [(b"x-should-retry", b"true"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    async with listening(refusing) as url:
        await use("generate", "x", "--url", url, "--retries", "3", key="sk-x", code=7)
        assert (waits, len(keys), len(set(keys))) == ([1.0, 2.0, 4.0], 4, 1)
        await use("generate", "x", "--url", url, "--retries", "0", key="sk-x", code=7)
    assert len(keys) == 5
    assert keys[4] != keys[0]


async def test_pictures_before_a_failure_are_saved_and_named(world: World, use: Use) -> None:
    failing = world.generator.failing(GenerationFailed("The model failed."))
    world.generator.play = world.generator.showing_before(1, failing)
    async with listening(world.app) as url:
        done = await use("generate", "x", "-n", "2", "--url", url, key=world.key, code=7)
    assert "saved image-1.png\nerror: The model failed. [generation_failed, req" in done.stderr
    assert files() == ["image-1.png"]
    assert await world.charged() == UNITS_1024


async def test_a_log_tells_the_queue_and_no_steps(world: World, use: Use) -> None:
    async def waits_behind_two(job: GenerationJob) -> AsyncGenerator[Event, None]:
        yield Queued(job.job_id, 2, 1.5)
        yield Step(job.job_id, 0, 1, 4)
        yield Finished(job.job_id, 0, job.seeds[0], b"image", Timings(0, 0, 0, 0, 0))

    world.generator.play = waits_behind_two
    async with listening(world.app) as url:
        done = await use("generate", "x", "--url", url, key=world.key)
    assert done.stderr == "2 pictures ahead, about 1.5 s\n"


def speaking(*bodies: bytes, kind: bytes = b"text/event-stream", cut: bool = False) -> Any:
    """A server that sends this, and with `cut` hangs up in the middle."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind), *([(b"content-length", b"100000")] if cut else [])]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        if not cut:
            await send({"type": "http.response.body", "body": b""})

    return asgi


IMAGE = b'data: {"type":"image_generation.completed","b64_json":"aGk=","size":"1x1"%s}\n\n'


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (speaking(b": keep-alive\n\n"), "ended the stream before its last image"),
        (speaking(b": keep-alive\n\n", cut=True), "broke off"),
        (speaking(b"data: nonsense\n\n"), "cannot be read"),
        (speaking(IMAGE % b',"image_index":7'), "not asked for"),
        (speaking(IMAGE % b"", IMAGE % b""), "not asked for"),
        (speaking(b"<html>", kind=b"text/html"), "not as flux-serve does"),
    ],
)
async def test_a_server_that_misbehaves_is_said(
    use: Use, waits: list[float], server: Any, said: str
) -> None:
    async with listening(server) as url:
        done = await use("generate", "x", "--url", url, key="sk-x", code=3)
    assert said in done.stderr
    assert waits == []  # a stream that began is never tried again


async def test_a_lost_connection_before_the_stream_is_tried_again(
    use: Use, waits: list[float]
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        done = await use("generate", "x", "--url", f"http://127.0.0.1:{port}", key="sk-x", code=3)
    assert waits == [1.0, 2.0]
    assert "did not reply" in done.stderr
