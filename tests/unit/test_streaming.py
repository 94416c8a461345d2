"""A streamed job: whatever becomes of it, the client pays for the images that were sent to it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

import pytest
from scripted import UNITS_1024, World, pictures, preview
from sqlalchemy import select
from stored import files

from serve_app.engine.job import Event, GenerationJob, Queued, Step
from serve_app.errors import (
    AppError,
    DeadlineExceeded,
    GenerationFailed,
    InsufficientQuota,
    Overloaded,
    StoreUnavailable,
)
from serve_app.metering.tables import holds
from serve_app.metering.types import HoldState
from serve_app.schema import ImageRequest
from serve_app.streaming import (
    Admitted,
    CompletedImage,
    Opened,
    PreviewImage,
    StepDone,
    StreamEvent,
)

MakeWorld = Callable[..., Awaitable[World]]
pytestmark = pytest.mark.usefixtures("no_waiting")
THREE = ImageRequest(prompt="a red circle", n=3, seed=5, stream=True)


def stream(world: World, request: ImageRequest = THREE) -> AsyncGenerator[StreamEvent, None]:
    return world.service.stream(world.principal, request, "req_1")


async def read(world: World, request: ImageRequest = THREE) -> list[StreamEvent]:
    """All events of a stream."""
    seen: list[StreamEvent] = []
    await read_into(seen, world, request)
    return seen


async def read_into(seen: list[StreamEvent], world: World, request: ImageRequest = THREE) -> None:
    async with aclosing(stream(world, request)) as events:
        async for event in events:
            seen.append(event)


async def failed_after(world: World, error: type[AppError]) -> list[int]:
    """The images that came before the stream failed with `error`."""
    seen: list[StreamEvent] = []
    with pytest.raises(error):
        await read_into(seen, world)
    return [event.index for event in seen if is_image(event)]


async def assert_charged_for(world: World, images: int) -> None:
    await world.service.drain()
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, images * UNITS_1024)
    assert len(await files(world)) == images
    async with world.ledger._database.read() as connection:
        hold = (await connection.execute(select(holds))).one()
    assert hold.state == (HoldState.CAPTURED if images else HoldState.RELEASED)
    assert hold.captured_units == images * UNITS_1024


async def test_events_come_as_the_engine_sends_them(world: World) -> None:
    async def play(job: GenerationJob) -> AsyncGenerator[Event, None]:
        images = pictures(job, 2).images
        yield Queued(job.job_id, 3)
        yield Step(job.job_id, 0, 1, 4)
        yield preview(job, 0, 0)
        yield preview(job, 1, 0)
        yield images[1]
        yield preview(job, 0, 1)
        yield images[0]

    world.generator.play = play
    events = await read(world, ImageRequest(prompt="x", n=2, seed=5, stream=True, partial_images=2))
    opened, admitted, *rest = events
    assert isinstance(opened, Opened)
    assert opened.plan.n == 2
    assert opened.available_units == (await world.balance()).available
    assert admitted == Admitted(ahead=3, estimated_s=None)
    assert [type(event).__name__ for event in rest] == [
        "PreviewImage", "PreviewImage", "CompletedImage", "PreviewImage", "CompletedImage",
    ]  # fmt: skip
    first = rest[0]
    assert first == PreviewImage(0, 0, b"preview 0 of seed 5")
    done = rest[2]
    assert isinstance(done, CompletedImage)
    assert (done.index, done.seed, done.units) == (1, 6, UNITS_1024)
    assert done.data == b"png 1024x1024 seed 6"
    assert (await world.client(None).get(done.url)).content == done.data
    await assert_charged_for(world, 2)


async def test_steps_are_told_of_where_the_request_asks_for_it(world: World) -> None:
    async def play(job: GenerationJob) -> AsyncGenerator[Event, None]:
        yield Queued(job.job_id, 3, 1.5)
        yield Step(job.job_id, 0, 1, 4)
        yield pictures(job, 1).images[0]

    world.generator.play = play
    events = await read(world, ImageRequest(prompt="x", stream=True, stream_progress=True))
    assert events[1:3] == [Admitted(ahead=3, estimated_s=1.5), StepDone(index=0, step=1, steps=4)]
    await read(world, ImageRequest(prompt="x", stream=True, stream_progress=False))
    assert [job.progress for job in world.generator.jobs] == [True, False]
    assert await world.charged() == 2 * UNITS_1024


async def test_the_job_asks_for_the_previews_that_were_asked_for(world: World) -> None:
    await read(world, ImageRequest(prompt="x", stream=True))
    await read(world, ImageRequest(prompt="x", stream=True, partial_images=3))
    assert [job.previews for job in world.generator.jobs] == [0, 3]


async def test_shares_of_a_price_that_does_not_divide_add_up_to_the_charge(
    make_world: MakeWorld,
) -> None:
    world = await make_world(models=[{"id": "flux-mini", "reference_steps": 7}])
    request = ImageRequest(prompt="x", n=3, size="256x256", num_inference_steps=1, stream=True)
    shares = [event.units for event in await read(world, request) if is_image(event)]
    assert shares == [9363, 9362, 9362]  # 65536 / 7 = 9362.29
    assert sum(shares) == await world.charged()


def is_image(event: StreamEvent) -> TypeGuard[CompletedImage]:
    return isinstance(event, CompletedImage)


async def test_nothing_is_charged_before_the_end_and_all_after_it(world: World) -> None:
    async with aclosing(stream(world)) as events:
        async for _ in events:
            balance = await world.balance()
            assert (balance.held, balance.captured) == (3 * UNITS_1024, 0)
    await assert_charged_for(world, 3)


async def test_an_empty_account_never_reaches_the_model(make_world: MakeWorld) -> None:
    world = await make_world(granted=3 * UNITS_1024 - 1)
    with pytest.raises(InsufficientQuota):
        await read(world)
    assert world.generator.jobs == []
    assert (await world.balance()).held == 0


@pytest.mark.parametrize("error", [Overloaded("x"), GenerationFailed("x"), AppError("x")])
async def test_a_job_that_no_replica_takes_is_free(world: World, error: AppError) -> None:
    async def refuse(job: GenerationJob) -> AsyncGenerator[Event, None]:
        raise error
        yield

    world.generator.play = refuse
    events = stream(world)
    assert isinstance(await anext(events), Opened)
    with pytest.raises(type(error)):
        await anext(events)
    await assert_charged_for(world, 0)


@pytest.mark.parametrize("images", [0, 1, 2])
async def test_a_model_that_fails_midway_is_paid_for_what_it_gave(
    world: World, images: int
) -> None:
    failing = world.generator.failing(GenerationFailed("x"))
    world.generator.play = world.generator.showing_before(images, failing)
    assert await failed_after(world, GenerationFailed) == list(range(images))
    await assert_charged_for(world, images)


async def test_a_stream_that_ends_too_early_is_a_failure(world: World) -> None:
    world.generator.act = world.generator.draw_one_too_few
    assert await failed_after(world, GenerationFailed) == [0, 1]
    await assert_charged_for(world, 2)


async def test_an_image_too_many_is_not_asked_for(world: World) -> None:
    world.generator.act = world.generator.draw_one_too_many
    await read(world)
    await assert_charged_for(world, 3)


async def test_an_image_that_comes_twice_is_a_failure(world: World) -> None:
    async def play(job: GenerationJob) -> AsyncGenerator[Event, None]:
        yield pictures(job, 1).images[0]
        yield pictures(job, 1).images[0]

    world.generator.play = play
    assert await failed_after(world, GenerationFailed) == [0]
    await assert_charged_for(world, 1)


async def test_images_that_cannot_be_stored_are_delivered_and_charged(world: World) -> None:
    assert world.store is not None
    put, left = world.store.put, 1

    async def failing_put(data: bytes, output_format: Any, **_: bool) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("The image store cannot be written right now.")
        return await put(data, output_format)

    world.store.put = failing_put  # type: ignore[method-assign]
    images = [event for event in await read(world) if is_image(event)]
    assert [bool(image.url) for image in images] == [True, False, False]
    assert all(image.data for image in images)
    await world.service.drain()
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, 3 * UNITS_1024)
    assert len(await files(world)) == 1


async def test_past_the_deadline_only_what_came_before_is_charged(world: World) -> None:
    world.generator.play = world.generator.showing_before(1, world.generator.outlast)
    assert await failed_after(world, DeadlineExceeded) == [0]
    assert world.generator.cancelled.is_set()
    await assert_charged_for(world, 1)


@pytest.mark.parametrize("asked", [0, 1, 2, 3])
async def test_a_reader_that_stops_pays_for_the_images_it_asked_beyond(
    world: World, asked: int
) -> None:
    """It has image k only when it asks for what follows; the one in its hand may be half sent."""
    events = stream(world)
    for _ in range(2 + asked):
        await anext(events)
    await events.aclose()
    assert world.generator.cancelled.is_set()
    await assert_charged_for(world, max(0, asked - 1))


async def test_a_reader_that_never_starts_holds_nothing(world: World) -> None:
    await stream(world).aclose()
    assert (await world.balance()).held == 0


async def test_a_reader_that_stops_at_once_is_free(world: World) -> None:
    events = stream(world)
    assert isinstance(await anext(events), Opened)
    await events.aclose()
    assert world.generator.jobs == []
    await assert_charged_for(world, 0)


@pytest.mark.parametrize("images", [0, 1, 2])
async def test_a_reader_cancelled_while_it_waits_pays_for_what_it_has(
    world: World, images: int
) -> None:
    world.generator.play = world.generator.showing_before(images, world.generator.hang)
    reader = asyncio.create_task(read(world))
    await world.generator.hanging.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert world.generator.cancelled.is_set()
    await assert_charged_for(world, images)


async def test_a_reader_cancelled_twice_pays_all_the_same(world: World) -> None:
    capture, capturing, may_finish = world.ledger.capture, asyncio.Event(), asyncio.Event()

    async def slow_capture(*values: Any) -> Any:
        capturing.set()
        await may_finish.wait()
        return await capture(*values)

    world.ledger.capture = slow_capture  # type: ignore[method-assign]
    world.generator.play = world.generator.showing_before(1, world.generator.hang)
    reader = asyncio.create_task(read(world))
    await world.generator.hanging.wait()
    reader.cancel()
    await capturing.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    may_finish.set()
    await assert_charged_for(world, 1)


@pytest.mark.parametrize("kind", ["lose_requests", "lose_answers"])
async def test_a_ledger_that_is_away_at_the_end_is_asked_until_it_is_back(
    world: World, kind: str
) -> None:
    """The images are out: giving up would give them away."""
    getattr(world.shaky, kind)["capture"] = 30
    await read(world)
    await assert_charged_for(world, 3)


@pytest.mark.parametrize("kind", ["lose_requests", "lose_answers"])
async def test_a_release_in_doubt_is_tried_again(world: World, kind: str) -> None:
    getattr(world.shaky, kind)["release"] = 2
    world.generator.act = world.generator.failing(GenerationFailed("x"))
    assert await failed_after(world, GenerationFailed) == []
    await assert_charged_for(world, 0)


async def test_a_release_that_cannot_be_made_is_left_to_the_expiry(world: World) -> None:
    world.shaky.lose_requests["release"] = 99
    world.generator.act = world.generator.failing(GenerationFailed("x"))
    assert await failed_after(world, GenerationFailed) == []
    assert (await world.balance()).held == 3 * UNITS_1024
    expire_all(world)
    assert await world.ledger.expire_holds() == 1


async def test_a_hold_that_expired_under_the_stream_is_told_to_the_operator(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def too_late(job: GenerationJob) -> Any:
        expire_all(world)
        await world.ledger.expire_holds()
        return await world.generator.draw(job)

    world.generator.act = too_late
    await read(world)
    await world.service.drain()
    assert await world.charged() == 0
    assert "delivered free" in caplog.text


def expire_all(world: World) -> None:
    """Let the ledger's clock run past every hold."""
    world.ledger._clock = lambda: datetime.now(UTC) + timedelta(days=1)


async def test_without_a_store_images_come_without_urls(make_world: MakeWorld) -> None:
    world = await make_world(store=None)
    events = await read(world)
    assert [event.url for event in events if is_image(event)] == ["", "", ""]
    assert await world.charged() == 3 * UNITS_1024
