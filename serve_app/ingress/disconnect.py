"""Clients that go away: noticed at once, so that nothing is drawn for nobody.

Serve cancels the handler itself in most cases; a plain ASGI server only sends a message.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Finally:
    """A response, and what is done once it was sent, or could not be: whatever ends it.

    A server may take the whole body into its memory at once, and waits for the client only before
    the next message. So the last message is an empty one.
    """

    def __init__(self, response: ASGIApp, then: Callable[[], None]) -> None:
        self._response = response
        self._then = then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_two(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not last:
                await send(message)
                return
            await send({**message, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self._response(scope, receive, send_in_two)
        finally:
            self._then()


async def until_disconnect(
    receive: Receive, work: Coroutine[Any, Any, T], unread: Callable[[T], None]
) -> T:
    """Run `work`, but cancel it as soon as the client goes away.

    `unread` is given what it returned where nobody is left to take it.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    except asyncio.CancelledError:
        if task.done() and not task.cancelled() and task.exception() is None:
            unread(task.result())
        raise
    finally:
        # Also when this handler itself is cancelled: the work must see it and undo its hold.
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
