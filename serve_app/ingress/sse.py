"""Streams: a job's events as server-sent events, in OpenAI's shapes.

Data flow: `ImageService.stream` -> `EventStream` -> `event:` and `data:` lines, or a comment every
few seconds. Up to the moment a replica has taken the job, a failure is an ordinary error reply.
"""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncGenerator

from starlette.datastructures import MutableHeaders
from starlette.types import Receive, Scope, Send

from serve_app.errors import AppError
from serve_app.eventschema import CompletedEvent, PartialImageEvent, ProgressEvent, QueuedEvent
from serve_app.ingress.disconnect import disconnected
from serve_app.ingress.errors import error_body
from serve_app.ingress.headers import job_headers
from serve_app.ingress.requestmetrics import note_error
from serve_app.schema import Usage
from serve_app.streaming import (
    Admitted,
    CompletedImage,
    Opened,
    PreviewImage,
    StepDone,
    StreamEvent,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
HEARTBEAT = b": keep-alive\n\n"
"""A comment, which clients skip: it tells everything on the way that the stream lives."""
HEARTBEAT_S = 10.0
"""Well under the idle timeouts of proxies, which begin at 30 s."""
SEND_GRACE_S = 5.0
"""What a write may take in any case; before the job's deadline it may take until then."""

_WireEvent = PartialImageEvent | CompletedEvent | QueuedEvent | ProgressEvent


class ClientGone(Exception):
    """Nobody reads the stream any more."""


class EventStream:
    """The reply of one request, as an ASGI application.

    An event is asked for only when the one before has been sent whole: asking is how the service
    learns that it was delivered, see `streaming.deliver`.
    """

    def __init__(self, events: AsyncGenerator[StreamEvent, None]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = _Reader(self._events, receive)
        try:
            opened = await reader.next()
            assert isinstance(opened, Opened)
            first = await reader.next(HEARTBEAT_S)  # None: the models are busy, or starting
        except ClientGone:
            raise asyncio.CancelledError from None  # as when Serve cancels the handler
        else:
            await _Writer(opened, scope, send).run(reader, first)
        finally:
            # Twice cancelled, it goes on by itself: the hold must be settled.
            await asyncio.shield(asyncio.create_task(reader.close()))


class _Writer:
    """Sends the headers and the events of a stream that was opened."""

    def __init__(self, opened: Opened, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._plan = opened.plan
        self._deadline = opened.deadline
        self._opened = opened
        self._send = send

    async def run(self, reader: "_Reader", event: StreamEvent | None) -> None:
        try:
            await self._start()
            await self._write(HEARTBEAT)  # proxies may keep headers back until something follows
            if event is None:
                event = await self._next(reader)
            while not reader.ended:
                if frame := self._frame(event):
                    await self._write(frame)
                    if isinstance(event, CompletedImage):  # asking for the next one charges it
                        await self._write(b"")  # returns when the client has most of the frame
                event = await self._next(reader)
            await self._write(b"", more=False)
        except ClientGone:
            logger.info("the client left the stream")
        except TimeoutError:
            logger.info("the client reads too slowly: the stream is cut off")

    async def _next(self, reader: "_Reader") -> StreamEvent | None:
        """The next event to send; a failure of the job is sent here, and ends the stream."""
        try:
            return await reader.next(HEARTBEAT_S)
        except AppError as exc:
            logger.info("the stream ends with %s: %s", type(exc).__name__, exc.message)
            error = exc
        except ClientGone:
            raise
        except Exception:
            logger.exception("the stream failed")
            error = AppError()
        reader.ended = True
        note_error(self._scope, error)
        await self._write(b"data: %b\n\n" % error_body(error).model_dump_json().encode())
        return None

    async def _start(self) -> None:
        opened = self._opened
        headers = MutableHeaders(
            {
                "content-type": f"{MEDIA_TYPE}; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",  # nginx would keep events back to fill its buffer
                **job_headers(
                    opened.plan.model.config.id,
                    opened.units,
                    opened.available_units,
                    opened.rate,
                    replayed=opened.replayed,
                ),
            }
        )
        await self._send({"type": "http.response.start", "status": 200, "headers": headers.raw})

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        now = asyncio.get_running_loop().time()
        async with asyncio.timeout_at(max(self._deadline, now + SEND_GRACE_S)):
            await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _frame(self, event: StreamEvent | None) -> bytes:
        if event is None:
            return HEARTBEAT
        wire = self._wire(event)
        return f"event: {wire.type}\ndata: {wire.model_dump_json()}\n\n".encode() if wire else b""

    def _wire(self, event: StreamEvent) -> _WireEvent | None:
        """What the client is sent; None for what it did not ask to know."""
        plan = self._plan
        if isinstance(event, StepDone):
            return ProgressEvent(image_index=event.index, step=event.step, steps=event.steps)
        if isinstance(event, Admitted) and plan.progress:
            seconds = event.estimated_s
            rounded = None if seconds is None else round(seconds, 2)
            return QueuedEvent(ahead=event.ahead, estimated_s=rounded)
        if not isinstance(event, PreviewImage | CompletedImage):
            return None
        common = {
            "b64_json": base64.b64encode(event.data).decode("ascii"),
            "size": plan.size,
            "quality": plan.quality,
            "output_format": plan.output_format,
            "image_index": event.index,
        }
        if isinstance(event, PreviewImage):
            now = int(time.time())
            return PartialImageEvent(**common, created_at=now, partial_image_index=event.number)
        return CompletedEvent(
            **common,
            created_at=event.created_s,
            usage=Usage.of(event.units),
            seed=event.seed,
            url=event.url,
        )


class _Reader:
    """The next event of a stream, waited for in slices: a wait that ends early loses nothing."""

    def __init__(self, events: AsyncGenerator[StreamEvent, None], receive: Receive) -> None:
        self._events = events
        self._gone = asyncio.create_task(disconnected(receive))
        self._pending: asyncio.Task[StreamEvent | None] | None = None
        self.ended = False

    async def next(self, timeout_s: float | None = None) -> StreamEvent | None:
        """The next event; None when there is none yet, or none any more (`ended`).

        Raises:
            ClientGone: whatever there was to send, there is nobody to send it to.
        """
        if self._pending is None:
            self._pending = asyncio.create_task(self._take())
        waiting = {self._pending, self._gone}
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._gone.done():
            raise ClientGone
        if not self._pending.done():
            return None
        done, self._pending = self._pending, None
        return done.result()

    async def _take(self) -> StreamEvent | None:
        event = await anext(self._events, None)
        self.ended = event is None
        return event

    async def close(self) -> None:
        """Stop the job and wait until its hold is settled."""
        self._gone.cancel()
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.wait({self._pending})
            if not self._pending.cancelled():
                self._pending.exception()  # seen: there is nobody left to tell
        await self._events.aclose()
