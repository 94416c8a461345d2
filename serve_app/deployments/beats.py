"""Beats: a replica that draws says so every few seconds, so that one that is gone is missed.

Data flow: events of a job -> `with_beats` on the replica -> messages -> `without_beats` in the
gateway -> the same events, or `ReplicaSilent`. Must not import torch or HTTP.

Ray notices the death of an actor. Over Serve's gRPC transport (ADR 0025) only a closed connection
is noticed, and a machine that loses power or its network closes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

BEAT_S = 5.0
"""A replica sends something at least so often; its event loop is free while the device works."""
FIRST_BEAT_S = 1.0
"""Silence counts from the first one, so it comes soon; what is drawn by then needs none."""
SILENCE_S = 30.0
"""As long as Serve waits for an answer to a health check before it gives a replica up."""

T = TypeVar("T")


@dataclass(frozen=True)
class Beat:
    """Nothing new: the job is here."""


class ReplicaSilent(Exception):
    """A replica that had taken a job has not been heard of for too long."""


class _End:
    pass


class _Ahead(Generic[T]):
    """Items read ahead in a task of its own: whoever takes them slowly holds nobody up."""

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._queue: asyncio.Queue[T | _End] = asyncio.Queue()
        self._task = asyncio.create_task(self._read(items))

    async def next(self, timeout_s: float | None) -> T | _End:
        """The next one, or the end; raises what they raised, and `_Quiet` when none comes."""
        try:
            async with asyncio.timeout(timeout_s):
                item = await self._queue.get()
        except TimeoutError as exc:
            raise _Quiet from exc
        if isinstance(item, _End):
            await self._task
        return item

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # seen, also where nobody came for it

    async def _read(self, items: AsyncIterator[T]) -> None:
        try:
            async for item in items:
                self._queue.put_nowait(item)
        finally:
            self._queue.put_nowait(_End())


class _Quiet(Exception):
    """Nothing came in time."""


async def with_beats(events: AsyncGenerator[T, None]) -> AsyncGenerator[T | Beat, None]:
    """The events as they come, a beat where the first takes long, and one in every long pause.

    Closing it ends `events`, which runs in a task of its own.
    """
    ahead = _Ahead(events)
    pause_s = FIRST_BEAT_S
    try:
        while True:
            try:
                event = await ahead.next(pause_s)
            except _Quiet:
                yield Beat()
                continue
            finally:
                pause_s = BEAT_S
            if isinstance(event, _End):
                return
            yield event
    finally:
        await ahead.close()


async def without_beats(messages: AsyncIterator[T | Beat]) -> AsyncGenerator[T, None]:
    """The events among the messages, which are read ahead: a client that reads slowly must not
    keep a place in the replica. One job's messages are few.

    The first message may take long: a replica may have to start.

    Raises:
        ReplicaSilent: none came for `SILENCE_S`, after the first.
    """
    ahead = _Ahead(messages)
    silence_s = None
    try:
        while True:
            try:
                message = await ahead.next(silence_s)
            except _Quiet as exc:
                raise ReplicaSilent(f"nothing was heard for {SILENCE_S:g} s") from exc
            if isinstance(message, _End):
                return
            silence_s = SILENCE_S
            if not isinstance(message, Beat):
                yield message
    finally:
        await ahead.close()
