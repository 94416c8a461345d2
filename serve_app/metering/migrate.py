"""Bring the ledger's schema to a revision: Alembic, packaged and run from here.

Data flow: CLI, start of the gateway (`migrate_on_start`) or a cluster's job -> `upgrade(url)` ->
one locked SQL transaction. Processes that upgrade at once take turns; the later find nothing to do.

The functions are synchronous and start their own event loop; call them through a thread from async
code, as `SqlLedger.open` does.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from serve_app.config import LedgerConfig
from serve_app.errors import LedgerUnavailable
from serve_app.metering.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_WAIT_S = 60.0
"""How long one process waits for another's upgrade."""
RETRY_S = 0.05
"""Pause between attempts to open a database that another process is just creating."""
POSTGRES_LOCK = 0x666C7578  # "flux": any constant that other users of the database do not take


def upgrade(url: str, revision: str = "head", wait_s: float = LOCK_WAIT_S) -> None:
    """Migrate up. Safe to run from several processes at once, and again when nothing is due."""
    asyncio.run(_migrate(url, wait_s, lambda config: command.upgrade(config, revision)))


def downgrade(url: str, revision: str = "base", wait_s: float = LOCK_WAIT_S) -> None:
    """Migrate down; `base` drops every table and what they hold."""
    asyncio.run(_migrate(url, wait_s, lambda config: command.downgrade(config, revision)))


def current(url: str) -> str | None:
    """The revision that the database is at; None before the first upgrade."""
    return asyncio.run(_current(url))


def head() -> str:
    """The newest revision that this package knows."""
    return str(ScriptDirectory(str(MIGRATIONS)).get_current_head())


async def _migrate(url: str, wait_s: float, act: Callable[[Config], None]) -> None:
    database = Database(LedgerConfig(url=url, busy_timeout_s=wait_s, pool_size=1))
    attempts = max(1, round(wait_s / RETRY_S))
    try:
        for left in reversed(range(attempts)):
            if await _attempt(database, act, last=left == 0):
                return
            await asyncio.sleep(RETRY_S)
    finally:
        await database.close()


async def _attempt(database: Database, act: Callable[[Config], None], *, last: bool) -> bool:
    """Migrate once; False when the file was locked in a way that waiting inside SQLite cannot mend.

    Turning WAL on for a new file does not honour the busy timeout, so two processes that create
    one ledger may collide there.
    """
    try:
        async with database.write() as connection:
            if not database.is_sqlite:
                await connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": POSTGRES_LOCK}
                )
            await connection.run_sync(_run_alembic, act)
    except LedgerUnavailable as exc:
        if last or "database is locked" not in str(exc.__cause__):
            raise
        return False
    return True


def _run_alembic(connection: Connection, act: Callable[[Config], None]) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    act(config)


async def _current(url: str) -> str | None:
    database = Database(LedgerConfig(url=url, pool_size=1))
    try:
        async with database.snapshot() as connection:
            return await connection.run_sync(
                lambda sync: MigrationContext.configure(sync).get_current_revision()
            )
    finally:
        await database.close()
