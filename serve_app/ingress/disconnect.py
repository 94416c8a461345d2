"""Clients that go away: noticed at once, so that nothing is drawn for nobody.

Serve cancels the handler itself in most cases; a plain ASGI server only sends a message.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, but cancel it as soon as the client goes away."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        # Also when this handler itself is cancelled: the work must see it and undo its hold.
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
