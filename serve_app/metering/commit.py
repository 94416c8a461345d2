"""GroupCommit: what waits to be written goes into one SQL transaction, each with its own answer.

Data flow: `submit(operation)` -> a queue -> a lane takes the oldest operations, at most `BATCH_MAX`
-> `run` does them together and tells the outcome of each -> the futures that `submit` gave out.
While a batch is written the next one gathers, so nothing ever waits for company. Knows nothing of
SQL or the ledger.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

BATCH_MAX = 64
"""Operations in one SQL transaction: bounds how long it keeps others from the database."""

Operation = TypeVar("Operation")
Run = Callable[[Sequence[Operation]], Awaitable[Sequence[Any]]]
"""Does operations together; one outcome each, in their order. An `Exception` there is a failure."""


class GroupCommit(Generic[Operation]):
    """A queue and the lanes that empty it. For one event loop."""

    def __init__(self, run: Run[Operation], lanes: int = 1) -> None:
        self._run = run
        self._free = lanes
        self._waiting: deque[tuple[Operation, asyncio.Future[Any]]] = deque()
        self._lanes: set[asyncio.Task[None]] = set()

    def submit(self, operation: Operation) -> "asyncio.Future[Any]":
        """The outcome to come. Cancelling the future, or whoever awaits it, stops nothing."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_seen)
        self._waiting.append((operation, future))
        if self._free:
            self._free -= 1
            lane = asyncio.create_task(self._empty())
            self._lanes.add(lane)  # the loop itself keeps only weak references to tasks
            lane.add_done_callback(self._lanes.discard)
        return future

    def withdraw(self, future: "asyncio.Future[Any]") -> bool:
        """Take an operation back; False when it has begun, and will end by itself."""
        for entry in self._waiting:
            if entry[1] is future:
                self._waiting.remove(entry)
                future.cancel()
                return True
        return False

    async def drain(self) -> None:
        """Wait until nothing is queued or under way."""
        while self._lanes:
            await asyncio.wait(self._lanes)

    async def _empty(self) -> None:
        try:
            while self._waiting:
                count = min(BATCH_MAX, len(self._waiting))
                await self._write([self._waiting.popleft() for _ in range(count)])
        finally:
            self._free += 1

    async def _write(self, batch: "list[tuple[Operation, asyncio.Future[Any]]]") -> None:
        outcomes: Sequence[Any]
        try:
            outcomes = await self._run([operation for operation, _ in batch])
        except Exception as exc:  # noqa: BLE001 - whatever it is, every waiter must learn of it
            outcomes = [exc] * len(batch)
        except BaseException:  # the loop is closing
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


def _seen(future: "asyncio.Future[Any]") -> None:
    """A failure that nobody awaits any more is no news for the event loop."""
    if not future.cancelled():
        future.exception()
