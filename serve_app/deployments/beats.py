"""Beats: a replica that draws says so every few seconds, so that one that is gone is missed.

Data flow: events of a job -> `with_beats` on the replica -> messages -> `without_beats` in the
gateway -> the same events, or `ReplicaSilent`. Must not import torch or HTTP.

Jobs travel over Serve's gRPC transport, where a process that dies closes its connections and is
noticed at once. A machine that loses power or its network closes nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

BEAT_S = 5.0
"""A replica sends something at least so often; its event loop is free while the device works."""
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


async def with_beats(events: AsyncGenerator[T, None]) -> AsyncGenerator[T | Beat, None]:
    """The events as they come, a beat before the first, and one in every long pause.

    Closing it closes `events`, which runs in a task of its own.
    """
    queue: asyncio.Queue[T | _End] = asyncio.Queue()
    pumping = asyncio.create_task(_pump(events, queue))
    try:
        yield Beat()
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    event = await queue.get()
            except TimeoutError:
                yield Beat()
                continue
            if isinstance(event, _End):
                await pumping  # raises what the events raised
                return
            yield event
    finally:
        pumping.cancel()
        await asyncio.wait([pumping])


async def _pump(events: AsyncGenerator[T, None], queue: "asyncio.Queue[T | _End]") -> None:
    try:
        async with aclosing(events):
            async for event in events:
                queue.put_nowait(event)
    finally:
        queue.put_nowait(_End())


async def without_beats(messages: AsyncIterator[T | Beat]) -> AsyncGenerator[T, None]:
    """The events among the messages.

    The first message may take long: a replica may have to start.

    Raises:
        ReplicaSilent: none came for `SILENCE_S`, after the first.
    """
    silence_s = None
    while True:
        try:
            async with asyncio.timeout(silence_s):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError as exc:
            raise ReplicaSilent(f"nothing was heard for {SILENCE_S:g} s") from exc
        silence_s = SILENCE_S
        if not isinstance(message, Beat):
            yield message
