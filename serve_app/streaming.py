"""One streamed job from hold to charge, as events. No HTTP, no Ray.

Data flow: engine events (`Queued`, `Step`, `Preview`, `Finished`) -> `deliver` stores each image as
it is done -> `Opened`, `Admitted`, `StepDone`, `PreviewImage`, `CompletedImage` for the client ->
`Settler.settle`.

An image counts as delivered when whoever reads the events has sent it and asks for the next one.
However the stream ends, what was delivered is charged and nothing else: images are stored before
they are sent, and the hold, made before anything is drawn, is captured after the last was sent.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from serve_app.engine.job import Event, Finished, Preview, Queued, Step
from serve_app.errors import DeadlineExceeded, GenerationFailed
from serve_app.idempotency import KeptImage, kept_reply
from serve_app.metering.limits import Rate
from serve_app.metering.types import Hold
from serve_app.plan import Plan
from serve_app.settle import Put, Settler


@dataclass(frozen=True)
class Opened:
    """The units are held."""

    plan: Plan
    units: int
    """Held; of a replay: charged, before."""
    available_units: int
    """What the account has left should every image be delivered."""
    deadline: float
    """By the clock of the event loop: when all must have been sent."""
    rate: Rate | None = None
    """Where the API key stands; None where it has no request limit."""
    replayed: bool = False


@dataclass(frozen=True)
class Admitted:
    """A replica has taken the job, with `ahead` samples of other jobs before it."""

    ahead: int
    estimated_s: float | None
    """Seconds until all is drawn; None when unknown."""


@dataclass(frozen=True)
class StepDone:
    """Image `index` has got through `step` of its `steps`; only where the plan asks for it."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class PreviewImage:
    """What image `index` will probably look like; `number` counts its previews from 0."""

    index: int
    number: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class CompletedImage:
    """Image `index`; `url` is empty without a store, or with one that is unavailable."""

    index: int
    seed: int
    url: str
    units: int
    """Its share of the charge; the shares add up to what is charged."""
    created_s: int
    """Unix time."""
    data: bytes = field(repr=False)


Describe = Callable[[bytes, int], bytes]
"""An image file and its seed -> the file with its metadata."""
StreamEvent = Opened | Admitted | StepDone | PreviewImage | CompletedImage


async def deliver(
    plan: Plan,
    hold: Hold,
    source: AsyncGenerator[Event, None],
    describe: Describe,
    settler: Settler,
    deadline: float,
) -> AsyncGenerator[StreamEvent, None]:
    """Events of a job that `source` draws; ends the hold whichever way it is left.

    Close it, or cancel the task that waits in it, to drop what is not drawn yet.

    Raises:
        DeadlineExceeded: not all was drawn and sent in time.
        AppError: the job failed; images that were delivered before are charged.
    """
    delivery = _Delivery(plan, describe, settler)
    try:
        yield Opened(plan, plan.units, hold.available_units, deadline, hold.rate)
        async with aclosing(source):
            while len(delivery.delivered) < plan.n:
                async with asyncio.timeout_at(deadline):
                    event = await delivery.receive(await anext(source, None))
                if event is not None:
                    yield event
                if isinstance(event, CompletedImage):
                    delivery.delivered[event.index] = event
    except TimeoutError as exc:
        raise DeadlineExceeded("The image was not ready in time.") from exc
    finally:
        await settler.settle(hold, delivery.units, delivery.undelivered, delivery.reply)


class _Delivery:
    """What a stream has drawn, stored and delivered."""

    def __init__(self, plan: Plan, describe: Describe, settler: Settler) -> None:
        self._plan = plan
        self._describe = describe
        self._settler = settler
        self._puts: dict[int, list[Put]] = {}
        self.delivered: dict[int, CompletedImage] = {}

    @property
    def units(self) -> int:
        """Compute units of the delivered images."""
        return sum(image.units for image in self.delivered.values())

    @property
    def reply(self) -> str | None:
        """What is kept of the delivered images, as they were sent."""
        if not self._plan.replayable:
            return None
        return kept_reply(
            KeptImage(index=index, id=put.result(), seed=one.seed, created=one.created_s)
            for index, one in self.delivered.items()
            for put in self._puts[index]
        )

    @property
    def undelivered(self) -> list[Put]:
        """Stored images that nobody was told of."""
        lost = (puts for index, puts in self._puts.items() if index not in self.delivered)
        return [put for puts in lost for put in puts]

    async def receive(self, event: Event | None) -> StreamEvent | None:
        """Turn an event of the engine into one for the client; None when there is none."""
        if isinstance(event, Finished):
            return await self._complete(event)
        if isinstance(event, Preview):
            seed = self._plan.seeds[event.index]
            return PreviewImage(event.index, event.number, self._describe(event.image, seed))
        if isinstance(event, Queued):
            return Admitted(event.ahead, event.estimated_s)
        if isinstance(event, Step) and self._plan.progress:
            return StepDone(event.index, event.step, event.steps)
        if event is None:
            raise GenerationFailed("The model returned the wrong number of images.")
        return None

    async def _complete(self, image: Finished) -> CompletedImage:
        if image.index in self._puts or not 0 <= image.index < self._plan.n:
            raise GenerationFailed("The model returned an image that nobody asked for.")
        puts = self._puts.setdefault(image.index, [])
        data = self._describe(image.image, image.seed)
        # Streams carry the image itself, so that its URL is not what the client waits for.
        url = await self._settler.keep(
            data, self._plan.output_format, puts, needed=False, replayable=self._plan.replayable
        )
        units = self._plan.units_of_next(len(self.delivered))
        return CompletedImage(image.index, image.seed, url, units, int(time.time()), data)
