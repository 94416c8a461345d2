"""What others left behind: holds past their time, and what dead gateways held or had not sent.

Data flow: `SqlLedger.expire_holds` and `beat` -> ids, a batch at a time, so that requests never
wait for a long sweep -> operations in the ledger's queue, each done once however many sweep.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, Select

from serve_app.metering import endstatements as sql
from serve_app.metering.commit import GroupCommit
from serve_app.metering.database import Database
from serve_app.metering.operations import Ending, Operation, Refund, Resolve
from serve_app.metering.types import HoldState, Inheritance

SWEEP_BATCH = 200
"""Holds fetched at once: bounds memory after a long outage."""


class Sweeps:
    """Of one gateway."""

    def __init__(self, database: Database, queue: GroupCommit[Operation]) -> None:
        self._database = database
        self._queue = queue

    async def expire(self, **values: object) -> int:
        """Expire what is past its time `now`; returns how many."""
        return await self._expire(sql.OVERDUE, **values)

    async def inherit(self, dead: list[str]) -> Inheritance:
        """End what gateways left that died: open holds, and charges for replies never sent."""
        if not dead:
            return Inheritance()
        expired = await self._expire(sql.ABANDONED, gateways=dead)
        refunded = units = 0
        while rows := await self._find(sql.LOST, gateways=dead):
            taken = await self._end(Refund(row.id, row.captured_units) for row in rows)
            refunded += len(taken)
            units += sum(one.units for one in taken if isinstance(one, Refund))
            if len(rows) < SWEEP_BATCH:
                break
        return Inheritance(expired, refunded, units)

    async def _expire(self, query: Select[Any], **values: object) -> int:
        expired = 0
        while rows := await self._find(query, **values):
            expired += len(await self._end(Resolve(row.id, HoldState.EXPIRED) for row in rows))
            if len(rows) < SWEEP_BATCH:
                break
        return expired

    async def _find(self, query: Select[Any], **values: object) -> list[Row[Any]]:
        async with self._database.read() as connection:
            found = await connection.execute(query, {**values, "most": SWEEP_BATCH})
            return list(found.all())

    async def _end(self, operations: Iterable[Ending]) -> list[Ending]:
        """Those that ended something; of the others somebody else was faster."""
        waiting = [(one, self._queue.submit(one)) for one in operations]
        return [one for one, future in waiting if await future is not None]
