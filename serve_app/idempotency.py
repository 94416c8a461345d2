"""Idempotency keys: the first request with a key does the work, all others get its answer.

Data flow: header `Idempotency-Key` -> `key_from`; request -> `request_digest` -> `Claims.claim` ->
a `Hold` for the first, and for the others, once that one was captured, its `HoldRecord` with the
`KeptReply`. What is unique is the key's row in the ledger, so the requests may come to any
gateways. Must not import HTTP, Ray or SQL.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from serve_app.errors import IdempotencyKeyInUse, IdempotencyKeyReused, InvalidValue
from serve_app.metering.bounds import IDEMPOTENCY_KEY
from serve_app.metering.types import (
    IDEMPOTENCY_KEY_CHARS_MAX,
    Hold,
    HoldRecord,
    HoldRequest,
    HoldState,
    Ledger,
)
from serve_app.schema import ImageRequest

HEADER = "Idempotency-Key"
POLL_S = 0.25
"""Between looks at a hold that others wait for: a fraction of what an image takes. A gateway looks
once for all that wait for one key, so a thousand of them cost no more than one."""
IN_USE_RETRY_AFTER_S = 5
"""Whoever has waited for a whole deadline is near the end of the first request's, too."""


class KeptImage(BaseModel):
    """A delivered image: its place among the `n`, its id in the store, its seed, its Unix time."""

    model_config = ConfigDict(frozen=True)

    index: int
    id: str
    seed: int
    created: int


class KeptReply(BaseModel):
    """What a replay needs beside the request and the hold: a few hundred bytes, never pixels."""

    model_config = ConfigDict(frozen=True)

    images: tuple[KeptImage, ...]


def kept_reply(images: Iterable[KeptImage]) -> str:
    """The `KeptReply` as the ledger keeps it."""
    return KeptReply(images=tuple(images)).model_dump_json()


def key_from(values: Sequence[str]) -> str | None:
    """The idempotency key of a request's headers, None without one, or `InvalidValue`."""
    if not values:
        return None
    if len(values) > 1:  # a proxy on the way may have read another one than we would
        raise InvalidValue(f"Send one '{HEADER}' header.").at(HEADER)
    if not IDEMPOTENCY_KEY.fullmatch(values[0]):
        text = f"'{HEADER}' must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters."
        raise InvalidValue(text).at(HEADER)
    return values[0]


def request_digest(request: ImageRequest) -> str:
    """SHA-256 of what was asked for, in hex.

    Equal for bodies that say the same fields with the same values, in whatever order; fields that
    are null or that this server does not know say nothing.
    """
    said = request.model_dump(mode="json", exclude_none=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


class Claims:
    """One for a gateway; holds no state but the looks under way."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._looks: dict[tuple[str, str], asyncio.Task[HoldRecord | None]] = {}

    async def claim(self, request: HoldRequest, deadline: float) -> Hold | HoldRecord:
        """A hold: do the work. A record: it was done, and this is what was kept of it.

        Whoever waits for another request takes over when that one fails. Raises what
        `Ledger.hold` does, `IdempotencyKeyReused` when the key belongs to another request, and
        `IdempotencyKeyInUse` when that is not decided at `deadline`, by the loop's clock.
        """
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    try:
                        return await self._ledger.hold(request)
                    except IdempotencyKeyReused:
                        record = await self._until_decided(request)
                    if record is not None:
                        return record
        except TimeoutError:
            text = "The first request with this idempotency key is still running."
            raise IdempotencyKeyInUse(text).after(IN_USE_RETRY_AFTER_S) from None

    async def _until_decided(self, request: HoldRequest) -> HoldRecord | None:
        """The captured hold of the key; None when it failed, and the key is free again."""
        key = (request.account_id, request.idempotency_key or "")
        record = await self._ledger.find_hold(*key)
        while record is not None:
            if record.request_sha256 != request.request_sha256:
                raise IdempotencyKeyReused(
                    "This idempotency key was used for another request: choose a new one."
                )
            if record.state is HoldState.CAPTURED:
                return record
            record = await self._look_later(key)
        return None

    async def _look_later(self, key: tuple[str, str]) -> HoldRecord | None:
        looking = self._looks.get(key)
        if looking is None:
            looking = self._looks[key] = asyncio.create_task(self._look(key))
            looking.add_done_callback(_seen)
        return await asyncio.shield(looking)  # who leaves must not take the others' look along

    async def _look(self, key: tuple[str, str]) -> HoldRecord | None:
        try:
            await asyncio.sleep(POLL_S)
            return await self._ledger.find_hold(*key)
        finally:
            # Here, and not when its waiters are told: who came in between would find a look that is
            # over, again and again, and never let the loop go on.
            del self._looks[key]


def _seen(done: "asyncio.Task[HoldRecord | None]") -> None:
    """Take note of a failed look, should everybody who waited for it have left."""
    if not done.cancelled():
        done.exception()
