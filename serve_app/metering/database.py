"""Connections to the ledger's database: how SQL transactions begin, and what counts as an outage.

Data flow: `LedgerConfig` -> `Database` -> `read()`, `write()` or `snapshot()` give `sql`, `admin`,
`audit` and `migrate` one connection each; `transact()` runs a function of many statements as one
SQL transaction. Knows no table and no rule of the ledger.

Every failure to reach or use the database leaves here as `LedgerUnavailable`; the cause is chained,
for logs. Only `IntegrityError` passes, because a refused row is an answer, not an outage.
"""

import asyncio
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from serve_app.config import LedgerConfig
from serve_app.errors import ConfigError, LedgerUnavailable
from serve_app.metering.sqlitewriter import SqliteWriter

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
BEGIN_OPTION = "ledger_begin"
"""Execution option: the statement that opens this connection's SQL transaction on SQLite."""
IMMEDIATE = {BEGIN_OPTION: "BEGIN IMMEDIATE"}
POSTGRESQL_LANES = 2
"""Batches under way at once: one waits for its commit to reach the disk while the next one runs."""

Result = TypeVar("Result")


class Database:
    """One engine and its pool. Cheap to make: it connects on first use."""

    def __init__(self, config: LedgerConfig) -> None:
        self._url = parse_url(config.url)
        self._wait_s = config.busy_timeout_s
        self.lease_s = config.gateway_lease_s
        self._engine = _make_engine(self._url, config)
        self._writer = self._engine.execution_options(**IMMEDIATE)
        self._snapshots = self._engine.execution_options(
            **(
                {BEGIN_OPTION: "BEGIN"}
                if self.is_sqlite
                else {"isolation_level": "REPEATABLE READ"}
            )
        )
        self._turn = asyncio.Lock()
        self.lanes = 1 if self.is_sqlite else min(POSTGRESQL_LANES, config.pool_size)
        self._sqlite: SqliteWriter | None = None
        if self.is_sqlite:
            self._sqlite = SqliteWriter(self._url, config.busy_timeout_s, _prepare_sqlite)

    @property
    def is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one SELECT. Several would not see one moment of the data."""
        with outages():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose SELECTs all see the same moment."""
        with outages():
            async with self._snapshots.begin() as connection:
                yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A connection inside a SQL transaction that holds the write lock from its start.

        A SQLite transaction that begins as a reader and then writes fails at once when another
        writer was faster, whatever the busy timeout: hence BEGIN IMMEDIATE.
        """
        with outages():
            async with self._my_turn(), self._writer.begin() as connection:
                yield connection

    async def transact(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` inside one SQL transaction that holds the write lock from its start.

        On SQLite all of it runs in one thread: a statement that has to change threads costs more
        than the statement, and ten times that while other threads want the interpreter.
        """
        with outages():
            if self._sqlite is None:
                async with self._writer.begin() as connection:
                    return await connection.run_sync(work)
            async with self._my_turn():
                return await self._sqlite.run(work)

    async def close(self) -> None:
        """Close every connection and wait for their threads."""
        with outages():
            await self._engine.dispose()
            if self._sqlite is not None:
                await self._sqlite.close()

    @asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        """Queue this process's SQLite writers here, in order, and not in SQLite.

        SQLite has one writer and polls for its lock with growing sleeps, so a busy process would
        starve itself. The sleep remains only between processes.
        """
        if not self.is_sqlite:
            yield
            return
        if self._turn.locked():
            async with asyncio.timeout(self._wait_s):
                await self._turn.acquire()
        else:
            await self._turn.acquire()  # at once: no clock needs to be set
        try:
            yield
        finally:
            self._turn.release()


@contextmanager
def outages() -> Iterator[None]:
    """Turn whatever a database does when it is away, locked, full or unmigrated into one error."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeout, OSError) as exc:  # TimeoutError is an OSError
        raise LedgerUnavailable("The ledger is unavailable right now.") from exc


def is_outage(exc: BaseException) -> bool:
    """Whether the database is to blame for a failure, rather than the statement that met it."""
    if isinstance(exc, DBAPIError):
        away = isinstance(exc, OperationalError | InterfaceError)
        return away or exc.connection_invalidated
    return isinstance(exc, LedgerUnavailable | PoolTimeout | OSError)


def parse_url(text: str) -> URL:
    """The SQLAlchemy URL, with `${NAME}` taken from the environment.

    Raises:
        ConfigError: If a variable is unset, or the URL names no async driver or no file.
    """
    try:
        url = make_url(VARIABLE.sub(_from_environment, text))
    except ArgumentError as exc:  # the URL may hold a password: never repeat it
        raise ConfigError("ledger.url is not a database URL") from exc
    if url.drivername == "sqlite":
        url = url.set(drivername="sqlite+aiosqlite")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+asyncpg")
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError("ledger.url needs a file: a ledger in memory would forget every charge")
    return url


def _from_environment(match: re.Match[str]) -> str:
    try:
        return os.environ[match[1]]
    except KeyError:
        raise ConfigError(f"ledger.url needs the environment variable {match[1]}") from None


def _make_engine(url: URL, config: LedgerConfig) -> AsyncEngine:
    sqlite = url.get_backend_name() == "sqlite"
    connect: dict[str, Any] = {"timeout": config.busy_timeout_s}
    if sqlite:
        with outages():
            Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        connect["isolation_level"] = None  # the driver begins nothing; `_begin` does
    elif url.drivername == "postgresql+asyncpg":
        connect["command_timeout"] = config.busy_timeout_s
        # A gateway whose machine vanished in the middle must not keep an account locked.
        stalled_ms = str(round(1000 * config.busy_timeout_s))
        connect["server_settings"] = {"idle_in_transaction_session_timeout": stalled_ms}
    try:
        engine = create_async_engine(
            url,
            pool_size=config.pool_size,
            max_overflow=0,
            pool_timeout=config.busy_timeout_s,
            pool_pre_ping=not sqlite,
            connect_args=connect,
        )
    except (SQLAlchemyError, ModuleNotFoundError) as exc:
        raise ConfigError(f"ledger.url: no usable driver for {url.drivername!r}") from exc
    if sqlite:
        event.listen(engine.sync_engine, "do_connect", _try_to_open)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _try_to_open(
    _dialect: object, _record: object, arguments: tuple[Any, ...], _options: object
) -> None:
    """Fail here where the file cannot be opened, before aiosqlite starts a thread for it.

    That thread would outlive the failure and, once the event loop is closed, die with a traceback.
    """
    sqlite3.connect(arguments[0]).close()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    """Readers beside one writer (WAL); a crash of the process loses nothing, a power cut may."""
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    statement = connection.get_execution_options().get(BEGIN_OPTION)
    if statement is not None:
        connection.exec_driver_sql(statement)
