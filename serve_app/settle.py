"""Settler: keeps images and ends holds, in tasks that outlive the request they belong to.

Data flow: `service` and `streaming` -> `keep` stores an image -> `capture`, `undo` or `settle` ends
the hold, again and again until its outcome is known. A hold ends once, so trying again is safe.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from serve_app.engine.job import OutputFormat
from serve_app.errors import (
    AppError,
    DeadlineExceeded,
    LedgerUnavailable,
    StoreUnavailable,
    Unavailable,
)
from serve_app.metering.types import Hold, HoldState, Ledger, Resolution
from serve_app.storage.store import ImageStore

logger = logging.getLogger(__name__)

RESOLVE_BACKOFF_S = (0.1, 0.4, 1.6)
"""Waits between the tries to resolve a hold; after them its expiry does it."""
LATE_RETRY_S = 3.0
"""Waits between rounds of tries to charge for images that were delivered already."""
SETTLE_WAIT_S = 5.0
"""How long the end of a stream waits for its charge, which goes on alone after that."""

T = TypeVar("T")
Put = asyncio.Task[str]
"""An image on its way into the store; its result is the image's id."""


class Settler:
    """One for a gateway; holds no state but the tasks under way."""

    def __init__(self, ledger: Ledger, store: ImageStore | None) -> None:
        self._ledger = ledger
        self._store = store
        self._unfinished: set[asyncio.Task[Any]] = set()

    async def keep(
        self,
        data: bytes,
        output_format: OutputFormat,
        puts: list[Put],
        *,
        needed: bool,
        replayable: bool,
    ) -> str:
        """Store an image and sign its URL. The put is added to `puts`, before anything is awaited.

        Empty without a store, and, unless the URL is `needed`, while the store is unavailable: an
        image that the client gets anyway is not lost for want of its URL. A `replayable` image
        stays in the store for as long as its idempotency key.
        """
        if self._store is None:
            return ""
        # Not cut short by a cancellation: a picture half stored could not be deleted.
        put = self.in_background(self._store.put(data, output_format, replayable=replayable))
        puts.append(put)
        try:
            return await self._store.url(await asyncio.shield(put))
        except StoreUnavailable:
            if needed or replayable:
                raise
            logger.warning("the store is unavailable: an image has no URL", exc_info=True)
            return ""

    async def capture(self, hold: Hold, units: int, reply: str | None) -> Resolution:
        """Charge, and keep `reply`; or raise: what cannot be charged must not be handed out.

        A charge without a `reply` to keep is given back unless `Ledger.delivered` confirms it.

        A charge in doubt has perhaps been made, and nobody may pay for pictures that are thrown
        away: these are handed out, while this goes on in the background until it is made.
        """
        try:
            resolution = await self._resolve(
                lambda: self._ledger.capture(hold.id, units, reply, undelivered=reply is None),
                hold,
            )
        except LedgerUnavailable as exc:
            if not exc.in_doubt:
                raise
            self.in_background(self._charge_delivered(hold, units, reply))
            return Resolution(hold.id, HoldState.CAPTURED, units, hold.available_units)
        if resolution.state is not HoldState.CAPTURED:
            # It expired or was refunded under us, in a stall as long: the units may be spent.
            raise DeadlineExceeded("The image was not ready in time.")
        return resolution

    async def undo(
        self, hold: Hold, puts: list[Put], capture: asyncio.Task[Resolution] | None
    ) -> None:
        """Release the hold and drop the stored pictures, unless a `capture` under way charges."""
        if capture is not None:
            await asyncio.wait([capture])
            if capture.exception() is None:
                # Its client has left, and may have the pictures under its key.
                self._ledger.delivered(hold.id)
                return
        await self._release(hold)
        self.in_background(self._drop(puts))  # the reply need not wait for the store

    async def settle(
        self, hold: Hold, units: int, undelivered: list[Put], reply: str | None
    ) -> None:
        """Charge `units` for images that the client has; 0 releases. Drops the other images.

        `reply` is kept with the charge.

        Goes on in the background when it takes long, also when the caller is cancelled.
        """
        self.in_background(self._drop(undelivered))
        work = self._charge_delivered(hold, units, reply) if units else self._release(hold)
        await asyncio.wait({self.in_background(work)}, timeout=SETTLE_WAIT_S)

    async def _release(self, hold: Hold) -> None:
        try:
            await self._resolve(lambda: self._ledger.release(hold.id), hold)
        except AppError:
            logger.exception("hold %s is left to its expiry", hold.id)

    async def _charge_delivered(self, hold: Hold, units: int, reply: str | None) -> None:
        """The images are out already: try until it is known. What has expired may yet be charged,
        as long as nobody has swept.
        """
        while True:
            try:
                resolution = await self._resolve(
                    lambda: self._ledger.capture(hold.id, units, reply), hold
                )
            except Unavailable:
                logger.warning("hold %s: %d units delivered, not charged yet", hold.id, units)
                await asyncio.sleep(LATE_RETRY_S)
                continue
            if resolution.state is not HoldState.CAPTURED:
                state = resolution.state.value
                logger.error("hold %s is %s: %d units were delivered free", hold.id, state, units)
            return

    async def _drop(self, puts: list[Put]) -> None:
        for put in puts:
            try:
                image_id = await put
                if self._store is not None:
                    await self._store.delete(image_id)
            except AppError:
                logger.warning("an undelivered image was not deleted")

    async def _resolve(
        self, attempt: Callable[[], Awaitable[Resolution]], hold: Hold
    ) -> Resolution:
        """Try a resolution until its outcome is known: resolving is idempotent, doubt is not."""
        in_doubt = False
        for wait_s in RESOLVE_BACKOFF_S:
            try:
                return await attempt()
            except LedgerUnavailable as exc:
                in_doubt = in_doubt or exc.in_doubt
                logger.warning("the ledger did not resolve hold %s; trying again", hold.id)
                await asyncio.sleep(wait_s)
        try:
            return await attempt()
        except LedgerUnavailable as exc:
            if exc.in_doubt or not in_doubt:
                raise
            doubt = LedgerUnavailable(exc.message)  # a new one: others are told of this one, too
            doubt.in_doubt = True
            raise doubt from exc

    def in_background(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
        """Run work that must end even when the request is cancelled."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)  # the loop itself keeps only weak references to tasks
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever awaited it has it, and a client that left does not

    async def drain(self) -> None:
        """Wait for the resolutions under way; called before the process ends."""
        while self._unfinished:  # and for what these start
            await asyncio.wait(self._unfinished)
