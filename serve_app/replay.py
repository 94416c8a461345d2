"""Replays: a reply that was charged before, once more, under its idempotency key. Charges nothing.

Data flow: `Claims.claim` -> `HoldRecord` with a `KeptReply` -> images from the store, freshly
signed -> `Delivery`, or the events of a stream. No HTTP, no Ray.
"""

import asyncio
import base64
from collections.abc import AsyncGenerator
from dataclasses import replace

from serve_app.delivery import Delivery, Image
from serve_app.errors import IdempotencyKeyReused, StreamIncomplete
from serve_app.idempotency import KeptImage, KeptReply
from serve_app.metering.types import HoldRecord, Ledger, Principal
from serve_app.plan import Catalogue, Plan
from serve_app.storage.store import ImageStore
from serve_app.streaming import CompletedImage, Opened, StreamEvent


class Replayer:
    """Reads; nothing here changes an account or the store."""

    def __init__(self, ledger: Ledger, store: ImageStore, catalogue: Catalogue) -> None:
        self._ledger = ledger
        self._store = store
        self._catalogue = catalogue

    async def delivery(self, principal: Principal, plan: Plan, record: HoldRecord) -> Delivery:
        """The reply to a request that was not streamed. Raises `ImageExpired`."""
        kept = _kept(record)
        images = await asyncio.gather(*(self._image(image, plan) for image in kept))
        balance = await self._ledger.balance(principal.account_id)
        rate = await self._ledger.rate(principal.key_id)
        return Delivery(
            plan=self._as_drawn(plan, record),
            images=tuple(images),
            units=record.captured_units,
            available_units=balance.available,
            created_s=kept[0].created,
            rate=rate,
            replayed=True,
        )

    async def stream(
        self, principal: Principal, plan: Plan, record: HoldRecord, deadline: float
    ) -> AsyncGenerator[StreamEvent, None]:
        """The images of a stream, as they were sent and charged, without its previews.

        Raises:
            ImageExpired: before the first event.
            StreamIncomplete: after the last one, when the first stream ended early.
        """
        kept = _kept(record)
        await asyncio.gather(*(self._store.require(image.id) for image in kept))
        balance = await self._ledger.balance(principal.account_id)
        rate = await self._ledger.rate(principal.key_id)
        plan = self._as_drawn(plan, record)
        units = record.captured_units
        yield Opened(plan, units, balance.available, deadline, rate, replayed=True)
        for done, image in enumerate(kept):
            yield CompletedImage(
                index=image.index,
                seed=image.seed,
                url=await self._store.url(image.id),
                units=plan.units_of_next(done),
                created_s=image.created,
                data=await self._store.load(image.id),
            )
        if len(kept) < record.n:
            raise StreamIncomplete(
                f"The first stream with this idempotency key ended after {len(kept)} of "
                f"{record.n} images; only these were charged. Ask for others under a new key."
            )

    async def _image(self, image: KeptImage, plan: Plan) -> Image:
        if plan.response_format == "b64_json":
            encoded = base64.b64encode(await self._store.load(image.id)).decode("ascii")
        else:
            await self._store.require(image.id)
            encoded = None
        return Image(await self._store.url(image.id), encoded, image.seed)

    def _as_drawn(self, plan: Plan, record: HoldRecord) -> Plan:
        """The plan that was followed: defaults may have changed, and its seed was drawn anew."""
        return replace(
            plan,
            model=self._catalogue.find(record.model),
            width=record.width,
            height=record.height,
            steps=record.steps,
            units=record.units,
            seeds=tuple(image.seed for image in _kept(record)),
        )


def _kept(record: HoldRecord) -> tuple[KeptImage, ...]:
    if record.reply is None:  # captured by a version that kept nothing
        raise IdempotencyKeyReused(
            "The request with this idempotency key was answered and charged."
        )
    return KeptReply.model_validate_json(record.reply).images
