"""Confirms that replies went out, so that their charges stay when this gateway dies.

Data flow: `service` captures `undelivered` -> the reply is sent -> `Deliveries.add(hold id)` -> a
moment later one UPDATE for all that came meanwhile. What a killed gateway had not confirmed the
others refund, as `sweeps` does. Nothing here is on a reply's way, and nothing is raised to it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from contextvars import Context

from sqlalchemy import Connection

from serve_app.errors import LedgerUnavailable
from serve_app.metering.database import Database
from serve_app.metering.endstatements import DELIVERED
from serve_app.metering.types import HoldState

logger = logging.getLogger(__name__)

GATHER_S = 0.25
"""A confirmation waits for one to two of these. At least one: a reply that the server has taken is
not on the network yet, and must not be lost and charged when the process dies right then. Not much
longer: what a killed gateway delivered and had not confirmed is given away."""
RETRY_S = 1.0
"""Waits between tries while the ledger is away."""
ROWS_MAX = 500
"""Rows of one UPDATE: bounds how long it keeps others from the database."""
WAITING_MAX = 100_000
"""Confirmations remembered: far more than an outage leaves, for without a ledger nobody charges."""


class Deliveries:
    """Of one gateway, on its event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._new: list[str] = []
        """Hold ids of this interval; the next one makes them ripe."""
        self._ripe: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    def add(self, hold_id: str) -> None:
        """Confirm, soon. Cheap: this is called once a request."""
        self._new.append(hold_id)
        if self._task is None:
            # In a context of its own: its log lines are about many requests.
            self._task = asyncio.create_task(self._run(), context=Context())

    async def close(self) -> None:
        """Write what waits, now; what the ledger does not take then is left to be refunded."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._new or self._ripe:
                await self._pause(GATHER_S)
                ripe, self._ripe, self._new = self._ripe, self._new, []
                await self._confirm(ripe)
        finally:
            self._task = None

    async def _confirm(self, hold_ids: list[str]) -> None:
        for start in range(0, len(hold_ids), ROWS_MAX):
            while not await self._write(hold_ids[start : start + ROWS_MAX]):
                if self._closing.is_set():
                    return
                del self._new[:-WAITING_MAX]
                await self._pause(RETRY_S)

    async def _write(self, hold_ids: Sequence[str]) -> bool:
        """Whether to go on with others; not while the ledger is away."""

        def work(connection: Connection) -> list[str]:
            found = connection.execute(DELIVERED, {"hold_ids": hold_ids})
            return [row.id for row in found if row.state == HoldState.REFUNDED]

        try:
            given_away = await self._database.transact(work)
        except LedgerUnavailable:
            logger.warning("%d delivered replies are not confirmed yet", len(hold_ids))
            return False
        except Exception:
            logger.exception("%d delivered replies cannot be confirmed", len(hold_ids))
            return True
        for one in given_away:
            logger.error("hold %s was refunded by others, and then delivered: given away", one)
        return True

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
