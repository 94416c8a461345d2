"""One job from quote to charged pictures: whatever goes wrong, the books and the store agree."""

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scripted import UNITS_1024, World, picture, pictures
from sqlalchemy import select
from stored import files
from waiting import skip

from serve_app.delivery import Delivery
from serve_app.engine import codec
from serve_app.engine.job import GenerationJob, GenerationResult
from serve_app.errors import (
    AppError,
    DeadlineExceeded,
    GenerationFailed,
    InsufficientQuota,
    InvalidKey,
    LedgerUnavailable,
    Overloaded,
    StoreUnavailable,
)
from serve_app.metering.tables import holds
from serve_app.metering.types import HoldState
from serve_app.schema import ImageRequest

MakeWorld = Callable[..., Awaitable[World]]
pytestmark = pytest.mark.usefixtures("no_waiting")
REQUEST = ImageRequest(prompt="a red circle")


async def generate(world: World, request: ImageRequest = REQUEST) -> Delivery:
    return await world.service.generate(world.principal, request, "req_1")


def break_folder(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("a file where the folder was")


async def assert_nothing_happened(world: World) -> None:
    assert await files(world) == []
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, 0)


async def only_hold_of(world: World) -> Any:
    async with world.ledger._database.read() as connection:
        return (await connection.execute(select(holds))).one()


@pytest.mark.parametrize("n", [1, 3, 10])
async def test_a_delivery_is_charged_exactly_its_quote(world: World, n: int) -> None:
    request = ImageRequest(prompt="x", n=n, size="272x128", quality="hd")
    quote = await world.service.quote(world.principal, request)
    delivery = await generate(world, request)
    assert delivery.units == quote.plan.units == n * 272 * 128 * 2
    assert len(delivery.images) == len(await files(world)) == n
    balance = await world.balance()
    assert (balance.held, balance.captured) == (0, delivery.units)
    assert delivery.available_units == balance.available


async def test_images_come_in_the_order_of_their_seeds(world: World) -> None:
    delivery = await generate(world, ImageRequest(prompt="x", n=3, seed=5))
    assert [image.seed for image in delivery.images] == [5, 6, 7]


async def test_the_hold_on_file_says_what_was_asked_for(world: World) -> None:
    await generate(world, ImageRequest(prompt="x", n=2, size="512x256", quality="low"))
    hold = await only_hold_of(world)
    assert (hold.model, hold.n, hold.width, hold.height, hold.steps) == (
        "flux-mini",
        2,
        512,
        256,
        2,
    )
    assert (hold.request_id, hold.key_id) == ("req_1", world.principal.key_id)
    assert (hold.state, hold.captured_units) == (HoldState.CAPTURED, hold.units)


async def test_units_are_held_while_the_model_draws(world: World) -> None:
    seen: list[int] = []

    async def look(job: Any) -> Any:
        seen.append((await world.balance()).held)
        return await world.generator.draw(job)

    world.generator.act = look
    await generate(world)
    assert seen == [UNITS_1024]


async def test_an_empty_account_never_reaches_the_model(make_world: MakeWorld) -> None:
    world = await make_world(granted=UNITS_1024 - 1)
    with pytest.raises(InsufficientQuota):
        await generate(world)
    assert world.generator.jobs == []
    await assert_nothing_happened(world)


async def test_a_key_revoked_since_it_was_checked_never_reaches_the_model(world: World) -> None:
    await world.ledger.admin.revoke_key(world.principal.key_id)
    with pytest.raises(InvalidKey):
        await generate(world)
    assert world.generator.jobs == []


async def test_two_jobs_on_a_balance_for_one_get_one_picture_and_one_402(
    make_world: MakeWorld,
) -> None:
    world = await make_world(granted=UNITS_1024)
    results = await asyncio.gather(*(generate(world) for _ in range(2)), return_exceptions=True)
    kinds = sorted(type(result).__name__ for result in results)
    assert kinds == ["Delivery", "InsufficientQuota"]
    assert len(world.generator.jobs) == 1
    balance = await world.balance()
    assert (balance.available, balance.captured) == (0, UNITS_1024)


async def test_many_jobs_at_once_never_overdraw(make_world: MakeWorld) -> None:
    world = await make_world(granted=5 * UNITS_1024 + 1)
    results = await asyncio.gather(*(generate(world) for _ in range(12)), return_exceptions=True)
    assert sum(isinstance(result, Delivery) for result in results) == 5
    assert sum(isinstance(result, InsufficientQuota) for result in results) == 7
    assert (await world.balance()).available == 1


@pytest.mark.parametrize(
    "error",
    [GenerationFailed("x"), Overloaded("x"), AppError("x"), RuntimeError("x"), ValueError("x")],
    ids=lambda error: type(error).__name__,
)
async def test_a_model_that_fails_is_not_charged_for(world: World, error: Exception) -> None:
    world.generator.act = world.generator.failing(error)
    with pytest.raises(type(error)):
        await generate(world)
    await assert_nothing_happened(world)
    assert (await only_hold_of(world)).state == HoldState.RELEASED


@pytest.mark.parametrize("act", ["draw_one_too_few", "draw_one_too_many"])
async def test_a_wrong_number_of_images_is_a_failure_and_free(world: World, act: str) -> None:
    world.generator.act = getattr(world.generator, act)
    with pytest.raises(GenerationFailed):
        await generate(world, ImageRequest(prompt="x", n=2))
    await assert_nothing_happened(world)


async def test_a_job_past_its_deadline_is_cancelled_and_free(world: World) -> None:
    world.generator.act = world.generator.outlast
    with pytest.raises(DeadlineExceeded):
        await generate(world)
    assert world.generator.cancelled.is_set()
    await assert_nothing_happened(world)


async def test_a_cancelled_job_stops_the_model_and_is_free(world: World) -> None:
    world.generator.act = world.generator.hang
    job = asyncio.create_task(generate(world))
    await world.generator.started.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert world.generator.cancelled.is_set()
    await assert_nothing_happened(world)


async def test_a_job_cancelled_twice_is_released_all_the_same(world: World) -> None:
    """The second cancellation comes while the release that the first one caused is under way."""
    release, releasing, may_finish = world.ledger.release, asyncio.Event(), asyncio.Event()

    async def slow_release(hold_id: str) -> Any:
        releasing.set()
        await may_finish.wait()
        return await release(hold_id)

    world.ledger.release = slow_release  # type: ignore[method-assign]
    world.generator.act = world.generator.hang
    job = asyncio.create_task(generate(world))
    await world.generator.started.wait()
    job.cancel()
    await releasing.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    may_finish.set()
    await assert_nothing_happened(world)


@pytest.mark.parametrize("good", [0, 1, 2])
async def test_a_store_that_fails_makes_the_job_free_and_keeps_no_picture(
    world: World, good: int
) -> None:
    assert world.store is not None
    put, left = world.store.put, good

    async def failing_put(data: bytes, output_format: str, **_: bool) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoreUnavailable("The image store cannot be written right now.")
        return await put(data, output_format)

    world.store.put = failing_put  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await generate(world, ImageRequest(prompt="x", n=3))
    await assert_nothing_happened(world)


async def test_pictures_in_the_reply_need_no_store(world: World) -> None:
    """Only their URLs are missing: what the client asked for is there, and is charged."""
    assert world.config.store is not None
    break_folder(Path(world.config.store.url.removeprefix("file://")))
    request = ImageRequest(prompt="x", n=2, seed=5, response_format="b64_json")
    delivery = await generate(world, request)
    assert [image.url for image in delivery.images] == ["", ""]
    drawn = [base64.b64decode(image.b64_json or "") for image in delivery.images]
    assert drawn == [picture(world.generator.jobs[0], index) for index in range(2)]
    balance = await world.balance()
    assert (balance.captured, balance.held) == (2 * UNITS_1024, 0)
    with pytest.raises(StoreUnavailable):
        await generate(world)
    balance = await world.balance()
    assert (balance.captured, balance.held) == (2 * UNITS_1024, 0)


async def test_files_carry_metadata_and_previews_too(make_world: MakeWorld) -> None:
    world = await make_world(metadata={"enabled": True, "prompt": True})
    plain = codec.encode(np.zeros((16, 16, 3), np.uint8), "png")

    async def real_files(job: GenerationJob) -> GenerationResult:
        drawn = pictures(job, len(job.seeds)).images
        return GenerationResult(tuple(replace(image, image=plain) for image in drawn))

    world.generator.act = real_files
    request = ImageRequest(prompt="a red circle", n=2, seed=5, response_format="b64_json")
    delivery = await generate(world, request)
    for image in delivery.images:
        data = base64.b64decode(image.b64_json or "")
        assert f'Seed="{image.seed}"'.encode() in data
        assert b"trainedAlgorithmicMedia" in data
        assert b'"a red circle"' in data
        assert np.array_equal(Image.open(io.BytesIO(data)), np.zeros((16, 16, 3)))
    stored = (await files(world))[0]
    assert b"trainedAlgorithmicMedia" in stored.read_bytes()


async def test_a_file_of_another_format_is_a_failure_that_costs_nothing(
    make_world: MakeWorld,
) -> None:
    world = await make_world(metadata={"enabled": True})
    with pytest.raises(GenerationFailed):
        await generate(world)
    await assert_nothing_happened(world)


async def test_a_store_that_hangs_meets_the_deadline(world: World) -> None:
    assert world.store is not None
    put, may_finish = world.store.put, asyncio.Event()

    async def slow_put(data: bytes, output_format: str, **_: bool) -> str:
        skip(world.config.limits.request_timeout_s)
        await may_finish.wait()
        return await put(data, output_format)

    world.store.put = slow_put  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded):
        await generate(world)
    may_finish.set()
    await assert_nothing_happened(world)


async def test_a_store_that_cannot_sign_makes_the_job_free(world: World) -> None:
    assert world.store is not None

    async def no_url(image_id: str) -> str:
        raise StoreUnavailable("The image store cannot sign URLs right now.")

    world.store.url = no_url  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await generate(world)
    await assert_nothing_happened(world)


async def test_pictures_that_cannot_be_deleted_do_not_hide_the_failure(world: World) -> None:
    assert world.store is not None

    async def no_delete(image_id: str) -> None:
        raise StoreUnavailable("The image store cannot be written right now.")

    world.store.delete = no_delete  # type: ignore[method-assign]
    world.shaky.lose_requests["capture"] = 99
    with pytest.raises(LedgerUnavailable):
        await generate(world)
    assert len(await files(world)) == 1
    assert await world.charged() == 0


@pytest.mark.parametrize("lost", [1, 2, 3])
@pytest.mark.parametrize("kind", ["lose_requests", "lose_answers"])
async def test_a_charge_in_doubt_is_tried_until_known_and_charged_once(
    world: World, kind: str, lost: int
) -> None:
    getattr(world.shaky, kind)["capture"] = lost
    delivery = await generate(world)
    assert delivery.units == UNITS_1024
    assert await world.charged() == UNITS_1024
    assert len(await files(world)) == 1


async def test_a_charge_that_cannot_be_made_delivers_nothing(world: World) -> None:
    world.shaky.lose_requests["capture"] = 99
    with pytest.raises(LedgerUnavailable):
        await generate(world)
    await assert_nothing_happened(world)


async def test_a_charge_that_went_through_unheard_is_delivered(world: World) -> None:
    world.shaky.lose_answers["capture"] = 30
    delivery = await generate(world)
    assert delivery.units == await world.charged() == UNITS_1024
    assert len(await files(world)) == 1


@pytest.mark.parametrize("kind", ["lose_requests", "lose_answers"])
async def test_a_release_in_doubt_is_tried_again(world: World, kind: str) -> None:
    getattr(world.shaky, kind)["release"] = 2
    world.generator.act = world.generator.failing(GenerationFailed("x"))
    with pytest.raises(GenerationFailed):
        await generate(world)
    await assert_nothing_happened(world)


async def test_a_ledger_that_is_gone_leaves_the_hold_to_its_expiry(world: World) -> None:
    world.shaky.lose_requests["release"] = 99
    world.generator.act = world.generator.failing(GenerationFailed("x"))
    with pytest.raises(GenerationFailed):
        await generate(world)
    assert (await world.balance()).held == UNITS_1024
    expire_all(world)
    assert await world.ledger.expire_holds() == 1
    await assert_nothing_happened(world)


async def test_a_hold_that_expired_under_the_model_is_a_504_and_free(world: World) -> None:
    async def too_late(job: Any) -> Any:
        expire_all(world)
        await world.ledger.expire_holds()
        return await world.generator.draw(job)

    world.generator.act = too_late
    with pytest.raises(DeadlineExceeded):
        await generate(world)
    await assert_nothing_happened(world)
    assert (await only_hold_of(world)).state == HoldState.EXPIRED


def expire_all(world: World) -> None:
    """Let the ledger's clock run past every hold."""
    world.ledger._clock = lambda: datetime.now(UTC) + timedelta(days=1)


async def test_draining_waits_for_a_release_under_way(world: World) -> None:
    release, releasing = world.ledger.release, asyncio.Event()

    async def slow_release(hold_id: str) -> Any:
        releasing.set()
        await asyncio.sleep(0)
        return await release(hold_id)

    world.ledger.release = slow_release  # type: ignore[method-assign]
    world.generator.act = world.generator.hang
    job = asyncio.create_task(generate(world))
    await world.generator.started.wait()
    job.cancel()
    await releasing.wait()
    job.cancel()
    await world.service.drain()
    assert (await world.balance()).held == 0
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_a_bad_request_holds_nothing(world: World) -> None:
    with pytest.raises(AppError):
        await generate(world, ImageRequest(prompt="x", size="1x1"))
    assert (await world.balance()).held == 0
    assert world.generator.jobs == []
