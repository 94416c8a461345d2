"""ImageService: one job from quote to charged pictures. No HTTP, no Ray.

Data flow: `ImageRequest` -> `plan` (limits, price) -> `ledger.hold` -> `Generator.generate` ->
`store.put` -> `ledger.capture` -> `Delivery`. Whatever fails, times out or is cancelled after the
hold releases it, shielded from the cancellation that caused it; a crash leaves it to expire. So a
client is charged for exactly the pictures it was sent.
"""

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from serve_app.config import AppConfig
from serve_app.engine.job import GenerationJob, GenerationResult
from serve_app.errors import (
    AppError,
    DeadlineExceeded,
    GenerationFailed,
    Unavailable,
    UnsupportedValue,
)
from serve_app.metering.types import Hold, HoldRequest, HoldState, Ledger, Principal, Resolution
from serve_app.plan import Catalogue, Plan, plan_job
from serve_app.schema import SEED_MAX, ImageRequest
from serve_app.storage.store import ImageStore

logger = logging.getLogger(__name__)

RESOLVE_BACKOFF_S = (0.1, 0.4, 1.6)
"""Waits between the tries to resolve a hold; after them its expiry does it."""

T = TypeVar("T")


class Generator(Protocol):
    """Something that draws: a Serve handle in production, an engine itself in tests."""

    async def generate(self, job: GenerationJob) -> GenerationResult: ...


@dataclass(frozen=True)
class Image:
    """One delivered image: `url` is empty only without a store."""

    url: str
    b64_json: str | None
    seed: int


@dataclass(frozen=True)
class Delivery:
    """A finished job as its client gets it."""

    plan: Plan
    images: tuple[Image, ...]
    units: int
    available_units: int
    created_s: int


@dataclass(frozen=True)
class Quote:
    plan: Plan
    affordable: bool


def random_seed() -> int:
    """A fresh seed for a request that names none."""
    return secrets.randbelow(SEED_MAX + 1)


class ImageService:
    """Everything a request needs, injected; holds no state of its own between requests."""

    def __init__(
        self,
        config: AppConfig,
        catalogue: Catalogue,
        ledger: Ledger,
        store: ImageStore | None,
        generators: Mapping[str, Generator],
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.catalogue = catalogue
        self.ledger = ledger
        self.store = store
        self._generators = generators
        self._now = now
        self._unfinished: set[asyncio.Task[Any]] = set()

    def plan(self, request: ImageRequest) -> Plan:
        """Resolve a request against the catalogue, or raise the error that names its field."""
        plan = plan_job(request, self.catalogue, random_seed)
        if self.store is not None:
            return plan
        if request.response_format == "url":
            text = "This server keeps no images; ask for 'b64_json'."
            raise UnsupportedValue(text).at("response_format")
        return replace(plan, response_format="b64_json")

    async def quote(self, principal: Principal, request: ImageRequest) -> Quote:
        """What a request would cost, and whether the account could hold it now."""
        plan = self.plan(request)
        balance = await self.ledger.balance(principal.account_id)
        return Quote(plan, plan.units <= balance.available)

    async def generate(
        self, principal: Principal, request: ImageRequest, request_id: str
    ) -> Delivery:
        """Draw, store and charge; any failure after the hold charges nothing."""
        plan = self.plan(request)
        hold = await self.ledger.hold(self._hold_request(principal, plan, request_id))
        self._log_job(principal, request, plan, hold)
        stored: list[asyncio.Task[str]] = []
        capture: asyncio.Task[Resolution] | None = None
        try:
            async with asyncio.timeout(self.config.limits.request_timeout_s):
                images = await self._draw(principal, plan, hold, stored)
            capture = self._in_background(self._capture(hold, plan))
            resolution = await asyncio.shield(capture)
        except BaseException as exc:  # also CancelledError: a client that left is not charged
            undoing = self._in_background(self._undo(hold, stored, capture))
            charged = await asyncio.shield(undoing)
            if isinstance(exc, TimeoutError):
                raise DeadlineExceeded("The image was not ready in time.") from exc
            if charged is None or not isinstance(exc, Unavailable):
                raise
            resolution = charged  # only the answer was lost: who has paid gets the pictures
        return Delivery(
            plan=plan,
            images=images,
            units=resolution.captured_units,
            available_units=resolution.available_units,
            created_s=int(self._now()),
        )

    def _hold_request(self, principal: Principal, plan: Plan, request_id: str) -> HoldRequest:
        return HoldRequest(
            account_id=principal.account_id,
            key_id=principal.key_id,
            request_id=request_id,
            model=plan.model.config.id,
            n=plan.n,
            width=plan.width,
            height=plan.height,
            steps=plan.steps,
            units=plan.units,
            ttl_s=self.config.ledger.hold_ttl_s,
        )

    def _log_job(self, principal: Principal, request: ImageRequest, plan: Plan, hold: Hold) -> None:
        prompt = plan.prompt if self.config.log_prompts else f"({len(plan.prompt)} characters)"
        logger.info(
            "job %s: account %s, user %r, %d images %s, %d units, prompt %r",
            hold.id,
            principal.account_id,
            request.user,  # quoted, as the prompt: a line break in it must not forge a line
            plan.n,
            plan.size,
            plan.units,
            prompt,
        )

    async def _draw(
        self, principal: Principal, plan: Plan, hold: Hold, stored: list[asyncio.Task[str]]
    ) -> tuple[Image, ...]:
        generator = self._generators[plan.model.config.id]
        # The hold's id and not the request's: clients may choose that one, and choose it twice.
        job = plan.job(hold.id, principal.account_id, self.config.limits.request_timeout_s)
        result = await generator.generate(job)
        if len(result.images) != plan.n:
            logger.error("model %s returned %d images", plan.model.config.id, len(result.images))
            raise GenerationFailed("The model returned the wrong number of images.")
        return tuple(
            [await self._keep(image.image, image.seed, plan, stored) for image in result.images]
        )

    async def _keep(
        self, data: bytes, seed: int, plan: Plan, stored: list[asyncio.Task[str]]
    ) -> Image:
        wants_base64 = plan.response_format == "b64_json"
        url = ""
        if self.store is not None:
            # Not cut short by a cancellation: a picture half stored could not be deleted.
            put = self._in_background(self.store.put(data, plan.output_format))
            stored.append(put)
            url = await self.store.url(await asyncio.shield(put))
        encoded = base64.b64encode(data).decode("ascii") if wants_base64 else None
        return Image(url=url, b64_json=encoded, seed=seed)

    async def _capture(self, hold: Hold, plan: Plan) -> Resolution:
        resolution = await self._resolve(lambda: self.ledger.capture(hold.id, plan.units), hold)
        if resolution.state is not HoldState.CAPTURED:
            # The hold expired under us (a stall longer than its life): the units may be spent.
            raise DeadlineExceeded("The image was not ready in time.")
        return resolution

    async def _undo(
        self,
        hold: Hold,
        stored: list[asyncio.Task[str]],
        capture: asyncio.Task[Resolution] | None,
    ) -> Resolution | None:
        """Release the hold and drop the stored pictures; the capture if that went through."""
        if capture is not None:
            await asyncio.wait([capture])
        try:
            resolution = await self._resolve(lambda: self.ledger.release(hold.id), hold)
        except AppError:
            logger.exception("hold %s is left to its expiry", hold.id)
        else:
            if resolution.state is HoldState.CAPTURED:
                return resolution
        self._in_background(self._drop(stored))  # the reply need not wait for the store
        return None

    async def _drop(self, stored: list[asyncio.Task[str]]) -> None:
        for put in stored:
            try:
                image_id = await put
                if self.store is not None:
                    await self.store.delete(image_id)
            except AppError:
                logger.warning("an undelivered image was not deleted")

    async def _resolve(
        self, attempt: Callable[[], Awaitable[Resolution]], hold: Hold
    ) -> Resolution:
        """Try a resolution until its outcome is known: resolving is idempotent, doubt is not."""
        for wait_s in RESOLVE_BACKOFF_S:
            try:
                return await attempt()
            except Unavailable:
                logger.warning("the ledger did not resolve hold %s; trying again", hold.id)
                await asyncio.sleep(wait_s)
        return await attempt()

    def _in_background(self, work: Coroutine[None, None, T]) -> asyncio.Task[T]:
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
