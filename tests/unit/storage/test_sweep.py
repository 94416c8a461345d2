"""Expired images go, and nothing else does."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from serve_app.config import StoreConfig
from serve_app.errors import ImageExpired, ImageNotFound, StoreUnavailable
from serve_app.storage.store import REPLAY_MARGIN_S, SWEEP_CHUNK, SWEEP_MARGIN_S, ImageStore
from serve_app.storage.sweep import sweep_forever
from tests.machine import until

TTL_S = 60
IDEMPOTENCY_TTL_S = StoreConfig().idempotency_ttl_s


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "images").rglob("*") if path.is_file()]


async def test_an_image_lives_as_long_as_its_url_and_not_much_longer(
    store: ImageStore, clock: Any, tmp_path: Path
) -> None:
    clock.now_s = time.time()
    await store.put(b"picture", "png")
    clock.now_s += TTL_S + SWEEP_MARGIN_S - 5
    assert await store.sweep() == 0
    assert len(files(tmp_path)) == 1
    clock.now_s += 10
    assert await store.sweep() == 1
    assert files(tmp_path) == []
    assert await store.sweep() == 0


async def test_a_replayable_image_outlives_its_idempotency_key_and_the_last_url(
    store: ImageStore, clock: Any, tmp_path: Path
) -> None:
    clock.now_s = time.time()
    await store.put(b"picture", "png")
    image_id = await store.put(b"picture", "png", replayable=True)
    clock.now_s += IDEMPOTENCY_TTL_S + TTL_S + REPLAY_MARGIN_S
    assert await store.sweep() == 1
    assert [path.name for path in files(tmp_path)] == [image_id]
    assert await store.load(image_id) == b"picture"
    clock.now_s += SWEEP_MARGIN_S + 10
    assert await store.sweep() == 1
    with pytest.raises(ImageExpired):
        await store.load(image_id)
    with pytest.raises(ImageExpired):
        await store.require(image_id)


async def test_a_replayable_image_opens_by_its_url(store: ImageStore) -> None:
    image_id = await store.put(b"picture", "webp", replayable=True)
    query = parse_qs(urlsplit(await store.url(image_id)).query)
    image = await store.read(image_id, query["exp"][0], query["sig"][0])
    assert (image.data, image.content_type) == (b"picture", "image/webp")


async def test_what_the_server_did_not_name_is_left_alone(
    store: ImageStore, clock: Any, tmp_path: Path
) -> None:
    image_id = await store.put(b"picture", "png")
    folder = tmp_path / "images"
    others = [folder / "notes.txt", folder / "img_1.png", folder / "zz" / image_id]
    others[2].parent.mkdir()
    for path in others:
        path.write_text("mine")
    clock.now_s = time.time() + 10_000
    assert await store.sweep() == 1
    assert sorted(files(tmp_path)) == sorted(others)


async def test_a_store_of_many_images_is_swept_by_several_gateways_at_once(
    store: ImageStore, clock: Any, tmp_path: Path
) -> None:
    expired = 2 * SWEEP_CHUNK + 7
    for number in range(expired):
        name = f"img_{number:048x}.png"
        path = tmp_path / "images" / name[4:6] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    clock.now_s = time.time()
    kept = await store.put(b"picture", "png")
    while sum(await asyncio.gather(*(store.sweep() for _ in range(3)))):
        pass
    assert [path.name for path in files(tmp_path)] == [kept]


async def test_a_swept_image_is_not_found(store: ImageStore, clock: Any) -> None:
    url = await store.url(await store.put(b"picture", "png"))
    image_id = url.split("/")[-2]
    exp, sig = (part.split("=")[1] for part in url.split("?")[1].split("&"))
    now_s, clock.now_s = clock.now_s, time.time() + 10_000
    assert await store.sweep() == 1
    clock.now_s = now_s
    with pytest.raises(ImageNotFound):
        await store.read(image_id, exp, sig)


async def test_a_gateway_goes_on_sweeping_after_an_outage(
    store: ImageStore, clock: Any, tmp_path: Path
) -> None:
    await store.put(b"picture", "png")
    clock.now_s = time.time() + 10_000
    sweep, outages = store.sweep, 2

    async def failing_sweep() -> int:
        nonlocal outages
        outages -= 1
        if outages >= 0:
            raise StoreUnavailable("The image store cannot be swept right now.")
        return await sweep()

    store.sweep = failing_sweep  # type: ignore[method-assign]
    sweeper = asyncio.create_task(sweep_forever(store, 0.01))
    await until(lambda: not files(tmp_path), "the image to go")
    sweeper.cancel()
    await asyncio.wait([sweeper])
    assert sweeper.cancelled()
