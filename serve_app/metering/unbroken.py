"""Work that runs to its end, whatever becomes of whoever asked for it.

Data flow: `SqlLedger` hands its writes to one `Unbroken` -> tasks, shielded from the cancellation
of their callers -> `drain` at close. A write cut in half would leave its connection in an unknown
state. Knows nothing of the ledger.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Unbroken:
    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run `work` as a task that nothing but its own end stops."""
        task = asyncio.create_task(work)
        self._running.add(task)  # the loop itself keeps only weak references to tasks
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self, work: "Coroutine[Any, Any, Result] | asyncio.Future[Result]") -> Result:
        """Await `work`; if the caller is cancelled, let it end and log how it failed.

        A future is of something that runs already, and that somebody else waits for in the end.
        """
        task = work if isinstance(work, asyncio.Future) else self.start(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_failure)
            raise

    async def drain(self) -> None:
        """Wait for all that is running, and for what that starts."""
        while self._running:
            await asyncio.wait(self._running)


def _log_failure(task: "asyncio.Future[Any]") -> None:
    failure = None if task.cancelled() else task.exception()
    if failure is not None:
        logger.error("the ledger failed after its caller had left", exc_info=failure)
