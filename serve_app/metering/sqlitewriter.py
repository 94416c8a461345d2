"""SqliteWriter: the one thread of a gateway that writes to a SQLite ledger, on one open connection.

Data flow: `Database.transact(work)` -> this thread: `BEGIN IMMEDIATE`, `work`, `COMMIT` -> its
result. Knows no table.

A hold and its capture are six short statements, so what surrounds them counts: a connection fetched
from its pool and reset for each, or a listener for the connection's events, because of which
SQLAlchemy asks for more listeners at every statement, cost a third of all of it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import URL

Result = TypeVar("Result")


class SqliteWriter:
    """Cheap to make: it connects on first use."""

    def __init__(
        self, url: URL, busy_timeout_s: float, prepare: Callable[[Any, object], None]
    ) -> None:
        """`prepare` is given each new connection of the driver."""
        self._engine = create_engine(
            url.set(drivername="sqlite"),
            pool_size=1,
            max_overflow=0,
            # The driver begins nothing by itself.
            connect_args={"timeout": busy_timeout_s, "isolation_level": None},
        )
        event.listen(self._engine, "connect", prepare)  # of the pool: no statement pays for it
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], Result]) -> Result:
        """Do `work` in one SQL transaction that holds the write lock from its start."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._transact, work)

    async def close(self) -> None:
        """Wait for what runs, then close the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._engine.dispose()

    def _transact(self, work: Callable[[Connection], Result]) -> Result:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._engine.connect()
        try:
            with connection.begin():
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return work(connection)
        except BaseException:
            self._disconnect()  # whatever state it is in, nothing of it is left
            raise

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
