"""The image store on a real local folder: bytes come back, forged and old URLs do not."""

import resource
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from serve_app.config import StoreConfig
from serve_app.errors import (
    BadSignature,
    ConfigError,
    ImageExpired,
    ImageNotFound,
    StoreUnavailable,
)
from serve_app.storage.store import ImageStore


def query(url: str) -> tuple[str, str, str]:
    parts = urlsplit(url)
    values = parse_qs(parts.query)
    return parts.path.split("/")[-2], values["exp"][0], values["sig"][0]


async def test_a_stored_image_comes_back_through_its_signed_url(store: ImageStore) -> None:
    url = await store.url(await store.put(b"picture", "webp"))
    assert url.startswith("https://images.example/base/v1/images/img_")
    image = await store.read(*query(url))
    assert image.data == b"picture"
    assert image.content_type == "image/webp"


async def test_a_forged_signature_is_refused(store: ImageStore) -> None:
    image_id, exp, sig = query(await store.url(await store.put(b"picture", "png")))
    for forged in (
        (image_id, str(int(exp) + 1), sig),
        (image_id, exp, sig[:-1] + ("0" if sig[-1] != "0" else "1")),
        (image_id, exp, ""),
        (image_id, "١٢٣", sig),
        (image_id, "9" * 5000, sig),
        (image_id, exp, "é"),
    ):
        with pytest.raises(BadSignature):
            await store.read(*forged)


async def test_an_expired_url_says_so(store: ImageStore, clock: Any) -> None:
    parts = query(await store.url(await store.put(b"picture", "png")))
    clock.now_s += 60
    with pytest.raises(ImageExpired):
        await store.read(*parts)


async def test_an_id_that_is_a_path_is_not_found(store: ImageStore) -> None:
    for image_id in ("../key", "img_../../key.png", "", "img_" + "0" * 48, "img_x.png"):
        with pytest.raises(ImageNotFound):
            await store.read(image_id, "1", "x")


async def test_a_deleted_image_is_not_found_and_deleting_twice_is_fine(store: ImageStore) -> None:
    image_id = await store.put(b"picture", "png")
    parts = query(await store.url(image_id))
    await store.delete(image_id)
    await store.delete(image_id)
    with pytest.raises(ImageNotFound):
        await store.read(*parts)


async def test_a_folder_that_cannot_be_written_is_unavailable(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "images").rmdir()
    (tmp_path / "images").write_text("a file where the folder was")
    with pytest.raises(StoreUnavailable):
        await store.put(b"picture", "png")


async def test_a_disk_that_is_full_is_unavailable_and_keeps_no_part(
    store: ImageStore, tmp_path: Path
) -> None:
    """A limit on the size of files stands for the disk: the write fails half way, likewise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(StoreUnavailable):
            await store.put(b"x" * 1_500_000, "png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in (tmp_path / "images").rglob("*") if path.is_file()] == []
    assert await store.put(b"x" * 1_500_000, "png")


def test_gateways_that_start_together_share_one_key(tmp_path: Path) -> None:
    from serve_app.storage.signing import load_signing_key

    path = tmp_path / "deep" / "signing.key"
    assert load_signing_key(path) == load_signing_key(path)
    assert path.stat().st_mode & 0o077 == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["signing.key"]


def test_a_short_signing_key_is_refused(tmp_path: Path) -> None:
    from serve_app.storage.signing import load_signing_key

    (tmp_path / "key").write_text("short")
    with pytest.raises(ConfigError, match="at least 32 bytes"):
        load_signing_key(tmp_path / "key")


def test_an_unknown_store_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store\.url"):
        ImageStore.open(StoreConfig(url="gopher://x"), "http://x")
