"""ImageService: one job from quote to charged pictures. No HTTP, no Ray.

Data flow: `ImageRequest` -> `plan` (limits, price) -> `ledger.hold` -> `Generator.generate` ->
metadata -> `store.put` -> `ledger.capture` -> `Delivery`. Whatever fails, times out or is cancelled
after the hold releases it, shielded from the cancellation that caused it; a crash leaves it to
the other gateways, which release the hold, or refund the charge unless `sent` was called. A store
that fails is no failure where the reply holds the picture itself. So a client is charged for
exactly the pictures it was sent. `ImageService.stream` is the same image by image, as
`streaming.py` tells. Under an idempotency key a request that was charged before is replayed instead
(`idempotency.py`, `replay.py`).
"""

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from serve_app.config import AppConfig
from serve_app.delivery import Delivery, Image
from serve_app.engine.job import Event, GenerationJob, GenerationResult, OutputFormat
from serve_app.engine.metadata import Origin
from serve_app.engine.metadata import describe as describe_file
from serve_app.errors import DeadlineExceeded, GenerationFailed, UnsupportedValue
from serve_app.idempotency import HEADER, Claims, KeptImage, kept_reply, request_digest
from serve_app.metering.types import Hold, HoldRecord, HoldRequest, Ledger, Principal, Resolution
from serve_app.observability import request_facts
from serve_app.plan import Catalogue, Plan, plan_job
from serve_app.replay import Replayer
from serve_app.schema import SEED_MAX, ImageRequest
from serve_app.settle import Put, Settler
from serve_app.storage.store import ImageStore
from serve_app.streaming import CompletedImage, Describe, StreamEvent, deliver

logger = logging.getLogger(__name__)


class Generator(Protocol):
    """Something that draws: a Serve handle in production, an engine itself in tests."""

    async def generate(self, job: GenerationJob) -> GenerationResult: ...

    def stream(self, job: GenerationJob) -> AsyncGenerator[Event, None]:
        """`Queued`, then `Preview`s and one `Finished` per seed, as they come."""
        ...

    async def estimate(self, job: GenerationJob) -> float | None:
        """Seconds until the job would be done, were it sent now; None when nobody knows."""
        ...


@dataclass(frozen=True)
class Quote:
    plan: Plan
    affordable: bool
    estimated_s: float | None


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
        self._settler = Settler(ledger, store)
        self._claims = Claims(ledger)
        self._replayer = None if store is None else Replayer(ledger, store, catalogue)

    def plan(self, principal: Principal, request: ImageRequest, key: str | None = None) -> Plan:
        """Resolve a request against the catalogue, or raise the error that names its field."""
        facts = request_facts()
        facts.user = request.user
        plan = plan_job(request, self.catalogue, random_seed, principal.models)
        facts.model = plan.model.config.id
        if self.store is not None:
            return replace(plan, replayable=key is not None)
        if key is not None:
            text = f"This server keeps no images to replay; leave '{HEADER}' out."
            raise UnsupportedValue(text).at(HEADER)
        if request.response_format == "url":
            text = "This server keeps no images; ask for 'b64_json'."
            raise UnsupportedValue(text).at("response_format")
        return replace(plan, response_format="b64_json")

    async def quote(self, principal: Principal, request: ImageRequest) -> Quote:
        """What a request would cost and take, and whether the account could hold it now."""
        plan = self.plan(principal, request)
        balance = await self.ledger.balance(principal.account_id)
        job = plan.job("quote", principal.account_id, self.config.limits.request_timeout_s)
        estimated_s = await self._generators[plan.model.config.id].estimate(job)
        return Quote(plan, plan.units <= balance.available, estimated_s)

    async def generate(
        self, principal: Principal, request: ImageRequest, request_id: str, key: str | None = None
    ) -> Delivery:
        """Draw, store and charge, or replay; any failure after the hold charges nothing."""
        plan = self.plan(principal, request, key)
        deadline = self._deadline()
        hold = await self._hold(principal, request, plan, request_id, key, deadline)
        if isinstance(hold, HoldRecord):
            assert self._replayer is not None  # else `plan` has refused the key
            return await self._replayer.delivery(principal, plan, hold)
        settler = self._settler
        describe = self._describer(plan, request_id)
        puts: list[Put] = []
        capture: asyncio.Task[Resolution] | None = None
        try:
            async with asyncio.timeout_at(deadline):
                # The hold's id and not the request's: clients choose that one, maybe twice.
                job = plan.job(hold.id, principal.account_id, _left_s(deadline), request_id)
                images = await self._draw(plan, job, describe, puts)
            created_s = int(self._now())
            reply = _reply(images, puts, created_s) if plan.replayable else None
            capture = settler.in_background(settler.capture(hold, plan.units, reply))
            resolution = await asyncio.shield(capture)
        except BaseException as exc:  # also CancelledError: a client that left is not charged
            await asyncio.shield(settler.in_background(settler.undo(hold, puts, capture)))
            if isinstance(exc, TimeoutError):
                raise DeadlineExceeded("The image was not ready in time.") from exc
            raise
        facts = request_facts()
        facts.images, facts.units = plan.n, resolution.captured_units
        return Delivery(
            plan=plan,
            images=images,
            units=resolution.captured_units,
            available_units=resolution.available_units,
            created_s=created_s,
            rate=hold.rate,
            unconfirmed=None if plan.replayable else hold.id,
        )

    def sent(self, delivery: Delivery) -> None:
        """To be called once a delivery is with the client's server, or its client has left."""
        if delivery.unconfirmed is not None:
            self.ledger.delivered(delivery.unconfirmed)

    async def stream(
        self, principal: Principal, request: ImageRequest, request_id: str, key: str | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Draw, store, hand out and charge image by image, or replay; see `streaming.deliver`."""
        plan = self.plan(principal, request, key)
        deadline = self._deadline()
        hold = await self._hold(principal, request, plan, request_id, key, deadline)
        if isinstance(hold, HoldRecord):
            assert self._replayer is not None  # else `plan` has refused the key
            delivery = self._replayer.stream(principal, plan, hold, deadline)
        else:
            job = plan.job(hold.id, principal.account_id, _left_s(deadline), request_id)
            source = self._generators[plan.model.config.id].stream(job)
            describe = self._describer(plan, request_id)
            delivery = deliver(plan, hold, source, describe, self._settler, deadline)
        facts = request_facts()
        async with aclosing(delivery) as events:
            async for event in events:
                yield event
                if isinstance(event, CompletedImage) and not facts.replayed:  # it was sent
                    facts.images = (facts.images or 0) + 1
                    facts.units = (facts.units or 0) + event.units

    def _deadline(self) -> float:
        """Of a request that comes now, by the clock of the event loop."""
        return asyncio.get_running_loop().time() + self.config.limits.request_timeout_s

    async def _hold(
        self,
        principal: Principal,
        request: ImageRequest,
        plan: Plan,
        request_id: str,
        key: str | None,
        deadline: float,
    ) -> Hold | HoldRecord:
        wanted = HoldRequest(
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
            idempotency_key=key,
            request_sha256=None if key is None else request_digest(request),
        )
        if key is None:
            hold: Hold | HoldRecord = await self.ledger.hold(wanted)
        else:
            hold = await self._claims.claim(wanted, deadline)
        facts = request_facts()
        facts.hold_id, facts.replayed = hold.id, isinstance(hold, HoldRecord)
        if self.config.log_prompts and not facts.replayed:
            # Quoted: a line break in it must not forge a line.
            logger.info("the prompt of job %s is %r", hold.id, plan.prompt)
        return hold

    def _describer(self, plan: Plan, request_id: str) -> Describe:
        metadata = self.config.metadata
        if not metadata.enabled:
            return lambda data, seed: data
        prompt = plan.prompt if metadata.prompt else None
        origin = Origin(plan.model.config.id, plan.steps, request_id, prompt)
        return partial(_describe, plan.output_format, origin)

    async def _draw(
        self, plan: Plan, job: GenerationJob, describe: Describe, puts: list[Put]
    ) -> tuple[Image, ...]:
        result = await self._generators[plan.model.config.id].generate(job)
        if len(result.images) != plan.n:
            logger.error("model %s returned %d images", plan.model.config.id, len(result.images))
            raise GenerationFailed("The model returned the wrong number of images.")
        drawn = [(describe(image.image, image.seed), image.seed) for image in result.images]
        return tuple(
            await asyncio.gather(*(self._keep(data, seed, plan, puts) for data, seed in drawn))
        )

    async def _keep(self, data: bytes, seed: int, plan: Plan, puts: list[Put]) -> Image:
        wants_base64 = plan.response_format == "b64_json"
        url = await self._settler.keep(
            data,
            plan.output_format,
            puts,
            needed=not wants_base64,
            replayable=plan.replayable,
        )
        encoded = base64.b64encode(data).decode("ascii") if wants_base64 else None
        return Image(url=url, b64_json=encoded, seed=seed)

    async def drain(self) -> None:
        """Wait for the resolutions under way; called before the process ends."""
        await self._settler.drain()


def _left_s(deadline: float) -> float:
    """What a job may take: less than a whole deadline where the request has waited for another."""
    return max(0.001, deadline - asyncio.get_running_loop().time())


def _reply(images: tuple[Image, ...], puts: list[Put], created_s: int) -> str:
    """What a replay needs; the puts are in the order of the images, and done."""
    return kept_reply(
        KeptImage(index=index, id=put.result(), seed=image.seed, created=created_s)
        for index, (image, put) in enumerate(zip(images, puts, strict=True))
    )


def _describe(output_format: OutputFormat, origin: Origin, data: bytes, seed: int) -> bytes:
    try:
        return describe_file(data, output_format, origin, seed)
    except ValueError as exc:
        raise GenerationFailed("The model returned a file of another format.") from exc
