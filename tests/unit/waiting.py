"""Waits for what has to be awaited, with the deadlines of `tests.machine`."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.machine import DEADLINE_S, MACHINE

POLL_S = 0.005


@asynccontextmanager
async def within(what: str, base_s: float = DEADLINE_S) -> AsyncIterator[None]:
    """Break off a block that should have ended by now, and say what it waited for."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(MACHINE.allow(base_s)) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise MACHINE.too_late(what, base_s, time.monotonic() - began) from None


async def until_asked(
    ask: Callable[[], Awaitable[Any]], what: str, base_s: float = DEADLINE_S, poll_s: float = POLL_S
) -> Any:
    """`tests.machine.until` for a question whose answer has to be awaited."""
    async with within(what, base_s):
        while not (found := await ask()):  # noqa: ASYNC110 nobody could set an event
            await asyncio.sleep(poll_s)
        return found


def skip(seconds: float) -> None:
    """Let the clock of this loop jump: what waits for less is due at once, on any machine."""
    loop = asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds  # type: ignore[method-assign]


async def turns(count: int = 5) -> None:
    """Let whatever is due in this loop run."""
    for _ in range(count):
        await asyncio.sleep(0)
