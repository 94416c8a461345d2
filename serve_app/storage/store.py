"""ImageStore: finished images in a local folder or an object store, reached by signed URLs.

Data flow: encoded bytes -> `put` -> image id -> `url` -> the client. A local folder is served by
the gateway under HMAC-signed URLs (`read` after `UrlSigner.verify`); S3, GCS and Azure sign their
own. `sweep` deletes what no URL opens any more, and of replayable images also no idempotency key:
their ids say which they are, as a listing tells nothing else. obstore does the I/O. Must not import
HTTP or Ray.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from serve_app.config import StoreConfig
from serve_app.errors import ConfigError, ImageExpired, ImageNotFound, StoreUnavailable
from serve_app.metrics import IMAGES_SWEPT, SILENT, STORE_FAILURES, STORE_PUT_SECONDS, Recorder
from serve_app.observability import traced
from serve_app.storage.signing import UrlSigner, load_signing_key
from serve_app.tracing import STORE

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_ID_BYTES = 24  # 192 random bits: ids cannot be guessed even without the signature
_ID_PATTERN = re.compile(r"(img|kept)_([0-9a-f]{48})\.(png|jpeg|webp)")
_REPLAYABLE = "kept"
_LOCAL_PREFIX = "file://"
SWEEP_MARGIN_S = 300
"""Kept beyond the life of its URL: clocks differ, and a picture may be read just now."""
REPLAY_MARGIN_S = 3600
"""Kept beyond its idempotency key, which lives from the charge (at most a hold's life after the
image was stored) to the next sweep of the ledger."""
SWEEP_CHUNK = 1000
"""Names listed and deleted at once: as many as one S3 request takes."""
CONNECT_TIMEOUT_S = 2
"""Of a bucket; a store that does not even accept is down."""
UNREADABLE = "The image store cannot be read right now."
RETRIES_MAX = 2
"""obstore's own 10 would keep a request waiting for three minutes."""


@dataclass(frozen=True)
class StoredImage:
    data: bytes
    content_type: str


class ImageStore:
    """Images by random id. Every failure of the backend is `StoreUnavailable`."""

    def __init__(
        self,
        backend: Any,  # an obstore store; obstore's classes share no public base type
        public_url: str,
        config: StoreConfig,
        signer: UrlSigner | None,
        now: Callable[[], float] = time.time,
        record: Recorder = SILENT,
    ) -> None:
        self._record = record
        self._backend = backend
        self._timeout_s = config.timeout_s
        self._public_url = public_url.rstrip("/")
        self._ttl_s = config.image_ttl_s
        self._replay_s = config.idempotency_ttl_s + REPLAY_MARGIN_S
        self._signer = signer
        self._now = now

    @classmethod
    def open(
        cls,
        config: StoreConfig,
        public_url: str,
        now: Callable[[], float] = time.time,
        record: Recorder = SILENT,
    ) -> "ImageStore":
        """Open the configured store; a local folder is made when missing."""
        signer = None
        url = config.url
        options: dict[str, Any] = {}
        if url.startswith(_LOCAL_PREFIX):
            folder = Path(url.removeprefix(_LOCAL_PREFIX)).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            url, options = folder.as_uri(), {"mkdir": True}
            signer = UrlSigner(load_signing_key(config.signing_key_file))
        else:
            options = _client_options(config.timeout_s)
        try:
            backend = from_url(url, **options)
        except (BaseError, ValueError) as exc:
            raise ConfigError(f"store.url {config.url!r} cannot be opened: {exc}") from exc
        return cls(backend, public_url, config, signer, now, record)

    async def put(self, data: bytes, output_format: str, *, replayable: bool = False) -> str:
        """Store one encoded image, atomically; returns its id.

        A `replayable` one is kept for as long as an idempotency key.
        """
        kind = _REPLAYABLE if replayable else "img"
        image_id = f"{kind}_{secrets.token_hex(_ID_BYTES)}.{output_format}"
        attributes = None
        if self._signer is None:  # a bucket serves the image itself; a folder keeps no attributes
            cache = f"private, max-age={self._ttl_s}, immutable"
            attributes = {"Content-Type": CONTENT_TYPES[output_format], "Cache-Control": cache}
        started = time.perf_counter()
        try:
            with traced(STORE, bytes=len(data)):
                await self._write(_path(image_id), data, attributes)
        except (BaseError, OSError) as exc:  # TimeoutError is an OSError
            raise self._failed("put", "The image store cannot be written right now.") from exc
        self._record.observe(STORE_PUT_SECONDS, time.perf_counter() - started)
        return image_id

    async def _write(self, path: str, data: bytes, attributes: dict[str, str] | None) -> None:
        async with asyncio.timeout(self._timeout_s):
            await obstore.put_async(self._backend, path, data, attributes=attributes)

    async def url(self, image_id: str) -> str:
        """A URL that works without a key until `image_ttl_s` from now."""
        if self._signer is None:
            ttl = timedelta(seconds=self._ttl_s)
            try:
                signed: str = await obstore.sign_async(self._backend, "GET", _path(image_id), ttl)
            except (BaseError, OSError) as exc:
                raise self._failed("sign", "The image store cannot sign URLs right now.") from exc
            return signed
        expires_at_s = int(self._now()) + self._ttl_s
        signature = self._signer.sign(image_id, expires_at_s)
        path = f"/v1/images/{image_id}/content"
        return f"{self._public_url}{path}?exp={expires_at_s}&sig={signature}"

    async def read(self, image_id: str, exp: str, sig: str) -> StoredImage:
        """The image behind a signed URL of this server.

        Raises `ImageNotFound` (also for ids that this server never makes, so that no path can be
        forged), `BadSignature`, `ImageExpired` or `StoreUnavailable`.
        """
        match = _ID_PATTERN.fullmatch(image_id)
        if match is None or self._signer is None:
            raise ImageNotFound("No such image.")
        self._signer.verify(image_id, exp, sig, self._now())
        data = await self._get(image_id)
        if data is None:
            raise ImageNotFound("No such image.")
        return StoredImage(data, CONTENT_TYPES[match.group(3)])

    async def load(self, image_id: str) -> bytes:
        """An image that this server itself asks for; `ImageExpired` when it is gone."""
        data = await self._get(image_id)
        if data is None:
            raise _gone()
        return data

    async def require(self, image_id: str) -> None:
        """Return if the image is there, else raise `ImageExpired`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await obstore.head_async(self._backend, _path(image_id))
        except FileNotFoundError:
            raise _gone() from None
        except (BaseError, OSError) as exc:
            raise self._failed("read", UNREADABLE) from exc

    async def _get(self, image_id: str) -> bytes | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await obstore.get_async(self._backend, _path(image_id))
                return bytes(await result.bytes_async())
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as exc:
            raise self._failed("read", UNREADABLE) from exc

    async def delete(self, image_id: str) -> None:
        """Remove an image that will not be delivered; missing ones are fine."""
        try:
            await obstore.delete_async(self._backend, _path(image_id))
        except FileNotFoundError:
            return
        except (BaseError, OSError) as exc:
            raise self._failed("delete", "The image store cannot be written right now.") from exc

    async def sweep(self) -> int:
        """Delete the images that no URL opens any more and no key replays; returns how many.

        Safe beside anything, other sweeps included. What this server did not name is left alone.
        Memory does not grow with the number of images.
        """
        latest = self._now() - self._ttl_s - SWEEP_MARGIN_S
        before = datetime.fromtimestamp(latest, UTC)
        before_replayable = datetime.fromtimestamp(latest - self._replay_s, UTC)
        deleted = 0
        try:
            async for listed in obstore.list(self._backend, chunk_size=SWEEP_CHUNK):
                expired = [
                    one["path"]
                    for one in listed
                    if one["last_modified"] < before
                    and _is_image(one["path"])
                    and (
                        one["last_modified"] < before_replayable or not _is_replayable(one["path"])
                    )
                ]
                deleted += await self._delete_all(expired)
        except FileNotFoundError:  # another sweep deletes what this one lists; the next one goes on
            return deleted
        except (BaseError, OSError) as exc:
            raise self._failed("sweep", "The image store cannot be swept right now.") from exc
        return deleted

    def _failed(self, operation: str, message: str) -> StoreUnavailable:
        self._record.count(STORE_FAILURES, operation=operation)
        return StoreUnavailable(message)

    async def _delete_all(self, paths: list[str]) -> int:
        if not paths:
            return 0
        try:
            await obstore.delete_async(self._backend, paths)
        except FileNotFoundError:  # one of them is gone already, and the rest may be left
            deleted = sum([await self._delete_one(path) for path in paths])
        else:
            deleted = len(paths)
        self._record.count(IMAGES_SWEPT, deleted)
        return deleted

    async def _delete_one(self, path: str) -> bool:
        try:
            await obstore.delete_async(self._backend, path)
        except FileNotFoundError:
            return False
        return True


def _is_image(path: str) -> bool:
    name = path.rpartition("/")[2]
    return _ID_PATTERN.fullmatch(name) is not None and path.endswith(_path(name))


def _is_replayable(path: str) -> bool:
    return path.rpartition("/")[2].startswith(_REPLAYABLE)


def _gone() -> ImageExpired:
    return ImageExpired("The images of this request are no longer kept.")


def _client_options(timeout_s: float) -> dict[str, Any]:
    return {
        "client_options": {
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "timeout": timedelta(seconds=timeout_s),
            "allow_http": True,  # where the environment names an endpoint with http://
        },
        "retry_config": {
            "max_retries": RETRIES_MAX,
            "retry_timeout": timedelta(seconds=timeout_s),
        },
    }


def _path(image_id: str) -> str:
    """Two levels, so that no folder grows to millions of entries."""
    return f"{image_id.partition('_')[2][:2]}/{image_id}"
