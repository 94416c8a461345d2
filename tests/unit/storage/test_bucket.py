"""The image store on S3, spoken to over HTTP."""

import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from serve_app.errors import StoreUnavailable


async def test_an_image_comes_back_through_a_presigned_url(bucket: Any, clock: Any) -> None:
    store = bucket.open(clock)
    url = await store.url(await store.put(b"picture", "webp"))
    async with httpx.AsyncClient() as client:
        reply = await client.get(url)
    assert (reply.status_code, reply.content) == (200, b"picture")
    assert reply.headers["content-type"] == "image/webp"
    assert reply.headers["cache-control"] == "private, max-age=60, immutable"
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["60"]
    assert [key.rsplit("/", 2)[0] for key in bucket.listed()] == ["some/prefix"]


async def test_a_bucket_is_swept_of_what_is_ours_and_expired(bucket: Any, clock: Any) -> None:
    clock.now_s = time.time()
    store = bucket.open(clock)
    for _ in range(3):
        await store.put(b"picture", "png")
    others = ["img_mine.png", "some/prefix/readme.txt", "some/prefix/ab/img_ab.png"]
    for key in others:
        bucket.put(key)
    assert await store.sweep() == 0
    clock.now_s += 60 + 301
    assert await store.sweep() == 3
    assert sorted(bucket.listed()) == sorted(others)


async def test_a_bucket_that_is_gone_is_unavailable_soon(bucket: Any, clock: Any) -> None:
    store = bucket.open(clock, timeout_s=5)
    image_id = await store.put(b"picture", "png")
    bucket.stop()
    with pytest.raises(StoreUnavailable):
        await store.put(b"picture", "png")
    with pytest.raises(StoreUnavailable):
        await store.sweep()
    with pytest.raises(StoreUnavailable):
        await store.delete(image_id)


async def test_a_bucket_that_does_not_exist_is_unavailable(bucket: Any, clock: Any) -> None:
    store = bucket.open(clock, url="s3://another/prefix")
    with pytest.raises(StoreUnavailable):
        await store.put(b"picture", "png")
