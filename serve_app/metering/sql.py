"""SqlLedger: the ledger on SQLite or PostgreSQL, one code path.

Data flow: `service` -> `hold` reserves -> images are made -> `capture` or `release`; a sweep
expires what a dead process left open. Every balance check sits inside the UPDATE that spends, every
resolution inside an UPDATE that requires an open hold: any number of processes may race.

A write that has begun runs to its end even when its caller is cancelled (a client that hangs up). A
hold whose caller is gone is released.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import uuid4

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import DevelopmentConfig, LedgerConfig
from serve_app.errors import (
    AppError,
    IdempotencyKeyReused,
    InsufficientQuota,
    InvalidKey,
    InvalidValue,
)
from serve_app.metering import keys, migrate
from serve_app.metering import statements as sql
from serve_app.metering.admin import LedgerAdmin
from serve_app.metering.database import Database
from serve_app.metering.types import (
    Balance,
    Hold,
    HoldRecord,
    HoldRequest,
    HoldState,
    Principal,
    Resolution,
    UnknownHold,
)
from serve_app.metering.unbroken import Unbroken

logger = logging.getLogger(__name__)

TOUCH_INTERVAL = timedelta(seconds=60)
"""`last_used_at` is this coarse: a busy key costs one more UPDATE a minute, not one a request."""
TOUCHED_MAX = 10_000
"""Keys whose last write is remembered; beyond it the memory starts anew and a few write early."""
SWEEP_BATCH = 200
"""Expired holds fetched at once: bounds memory after a long outage."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class SqlLedger:
    """`Ledger` over one `Database`. Use it on one event loop; use several for several processes."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock
        self._touched: dict[str, datetime] = {}
        self._writes = Unbroken()
        self.admin = LedgerAdmin(database, clock)

    @classmethod
    async def open(cls, config: LedgerConfig, clock: Callable[[], datetime] = utc_now) -> Self:
        """The ledger of a configuration, migrated first when it says so.

        Raises:
            ConfigError: If the URL cannot be used.
            LedgerUnavailable: If the migration could not reach the database.
        """
        if config.migrate_on_start:
            await asyncio.to_thread(migrate.upgrade, config.url)
        return cls(Database(config), clock)

    async def ensure_development(self, config: DevelopmentConfig) -> None:
        """See `LedgerAdmin.ensure_development`."""
        await self.admin.ensure_development(config)

    async def authenticate(self, secret: str) -> Principal:
        """One SELECT and no write. Why a key is refused is not told: only that it is."""
        if not 0 < len(secret) <= keys.SECRET_CHARS_MAX:
            raise _invalid_key()
        async with self._database.read() as connection:
            found = await connection.execute(sql.FIND_KEY, {"sha256": keys.digest(secret)})
            row = found.one_or_none()
        if row is None or not keys.matches(secret, row.sha256):
            raise _invalid_key()
        expired = row.expires_at is not None and row.expires_at <= self._clock()
        if expired or row.revoked_at is not None or row.disabled_at is not None:
            raise _invalid_key()
        return Principal(row.account_id, row.name, row.id, tuple(row.scopes.split()), row.rpm)

    async def hold(self, request: HoldRequest) -> Hold:
        """Reserve units, or say why not. `ValueError`: the caller did not bound its request."""
        request.require_bounds()
        if request.units > sql.UNITS_MAX:
            raise _no_quota()  # no account can have so many, nor a BIGINT hold them
        task = self._writes.start(self._hold(request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._writes.start(self._release_orphan(task))
            raise

    async def capture(self, hold_id: str, units: int) -> Resolution:
        if type(units) is not int or units <= 0:
            raise ValueError("a capture charges at least one unit; release a job that made nothing")
        return await self._writes.finish(self._resolve(hold_id, HoldState.CAPTURED, units))

    async def release(self, hold_id: str) -> Resolution:
        return await self._writes.finish(self._resolve(hold_id, HoldState.RELEASED, 0))

    async def expire_holds(self) -> int:
        return await self._writes.finish(self._expire_holds())

    async def find_hold(self, account_id: str, idempotency_key: str) -> HoldRecord | None:
        values = {"account_id": account_id, "idempotency_key": idempotency_key}
        async with self._database.read() as connection:
            row = (await connection.execute(sql.FIND_HOLD, values)).one_or_none()
        if row is None:
            return None
        return HoldRecord(**{**row._mapping, "state": HoldState(row.state)})

    async def balance(self, account_id: str) -> Balance:
        async with self._database.read() as connection:
            found = await connection.execute(sql.BALANCE, {"account_id": account_id})
            row = found.one_or_none()
        if row is None:
            raise InvalidValue("There is no such account.").at("account")
        return Balance(row.id, row.name, row.granted, row.captured, row.held)

    async def ping(self) -> None:
        async with self._database.read() as connection:
            await connection.execute(sql.ANY_ACCOUNT)

    async def close(self) -> None:
        """Let writes that were left running end, then close the connections."""
        await self._writes.drain()
        await self._database.close()

    async def _hold(self, request: HoldRequest) -> Hold:
        now = self._clock()
        expires_at = now + timedelta(seconds=request.ttl_s)
        hold_id = f"hold_{uuid4().hex}"
        try:
            async with self._database.write() as connection:
                spent = await connection.execute(
                    sql.RESERVE,
                    {
                        "account_id": request.account_id,
                        "key_id": request.key_id,
                        "take": request.units,
                        "now": now,
                    },
                )
                available = spent.scalar_one_or_none()
                if available is None:
                    raise await _refusal(connection, request, now)
                await connection.execute(
                    sql.INSERT_HOLD,
                    {
                        "id": hold_id,
                        **{name: getattr(request, name) for name in sql.REQUEST_COLUMNS},
                        "captured_units": 0,
                        "state": HoldState.OPEN.value,
                        "created_at": now,
                        "expires_at": expires_at,
                    },
                )
                touched = await self._touch(connection, request.key_id, now)
        except IntegrityError as exc:
            raise IdempotencyKeyReused(
                "This idempotency key belongs to a request that is running or was charged."
            ) from exc
        if touched:
            self._remember(request.key_id, now)
        return Hold(hold_id, request.account_id, request.units, available, expires_at)

    async def _touch(self, connection: AsyncConnection, key_id: str, now: datetime) -> bool:
        last = self._touched.get(key_id)
        if last is not None and now - last < TOUCH_INTERVAL:
            return False
        await connection.execute(
            sql.TOUCH_KEY, {"key_id": key_id, "now": now, "before": now - TOUCH_INTERVAL}
        )
        return True

    def _remember(self, key_id: str, now: datetime) -> None:
        if len(self._touched) >= TOUCHED_MAX:
            self._touched.clear()
        self._touched[key_id] = now

    async def _resolve(self, hold_id: str, state: HoldState, units: int) -> Resolution:
        """End an open hold, or find how it ended before."""
        async with self._database.write() as connection:
            ended = await self._end(connection, hold_id, state, units)
            return ended or await _first_outcome(connection, hold_id)

    async def _end(
        self, connection: AsyncConnection, hold_id: str, state: HoldState, units: int
    ) -> Resolution | None:
        """None when the hold is not open, or holds less than `units`."""
        now = self._clock()
        row = (
            await connection.execute(
                sql.RESOLVE,
                {"hold_id": hold_id, "to": state.value, "charge": units, "now": now},
            )
        ).one_or_none()
        if row is None:
            return None
        settled = await connection.execute(
            sql.SETTLE, {"account_id": row.account_id, "give_back": row.units, "charge": units}
        )
        if units:
            await connection.execute(
                sql.INSERT_ENTRY,
                {
                    "account_id": row.account_id,
                    "kind": "capture",
                    "units": -units,
                    "hold_id": hold_id,
                    "created_at": now,
                    "memo": "",
                },
            )
        return Resolution(hold_id, state, units, settled.scalar_one())

    async def _expire_holds(self) -> int:
        """One SQL transaction a hold, so that requests never wait for a long sweep."""
        expired = 0
        while True:
            async with self._database.read() as connection:
                found = await connection.execute(
                    sql.OVERDUE, {"now": self._clock(), "most": SWEEP_BATCH}
                )
                overdue = found.scalars().all()
            for hold_id in overdue:
                async with self._database.write() as connection:
                    ended = await self._end(connection, hold_id, HoldState.EXPIRED, 0)
                expired += ended is not None
            if len(overdue) < SWEEP_BATCH:
                return expired

    async def _release_orphan(self, task: asyncio.Task[Hold]) -> None:
        """Give back the units of a hold that nobody is waiting for any more."""
        try:
            hold = await task
            await self._resolve(hold.id, HoldState.RELEASED, 0)
        except AppError as exc:
            logger.info("an abandoned hold was not made, or is left to expire: %s", exc.message)


async def _refusal(connection: AsyncConnection, request: HoldRequest, now: datetime) -> AppError:
    """Why RESERVE took nothing, asked inside the same SQL transaction."""
    live = await connection.execute(
        sql.KEY_IS_LIVE, {"account_id": request.account_id, "key_id": request.key_id, "now": now}
    )
    return _invalid_key() if live.one_or_none() is None else _no_quota()


async def _first_outcome(connection: AsyncConnection, hold_id: str) -> Resolution:
    found = await connection.execute(sql.OUTCOME, {"hold_id": hold_id})
    row = found.one_or_none()
    if row is None:
        raise UnknownHold(hold_id)
    if row.state == HoldState.OPEN:
        raise ValueError("a capture may not charge more than its hold")
    return Resolution(hold_id, HoldState(row.state), row.captured_units, row.available)


def _invalid_key() -> InvalidKey:
    return InvalidKey("Incorrect API key provided.")


def _no_quota() -> InsufficientQuota:
    return InsufficientQuota("The account has too few compute units left for this request.")
