"""SqlLedger: the ledger on SQLite or PostgreSQL, one code path.

Data flow: `service` -> `hold` reserves -> images are made -> `capture` or `release`; sweeps
end what a dead process left. All of these queue in a `GroupCommit`, and `batch.run_batch`
writes what waits in one SQL transaction. Every balance check sits inside the UPDATE that spends,
every resolution inside an UPDATE that requires an open hold: any number of processes may race.

A write that has begun runs to its end even when its caller is cancelled (a client that hangs up). A
hold whose caller is gone is released.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Self
from uuid import uuid4

from sqlalchemy import Connection

from serve_app.config import DevelopmentConfig, LedgerConfig
from serve_app.errors import AppError, InvalidValue, LedgerUnavailable
from serve_app.metering import keys, migrate
from serve_app.metering import statements as sql
from serve_app.metering.admin import LedgerAdmin
from serve_app.metering.batch import run_batch
from serve_app.metering.commit import GroupCommit
from serve_app.metering.database import Database, is_outage
from serve_app.metering.deliveries import Deliveries
from serve_app.metering.leases import Leases, Watch
from serve_app.metering.limits import Rate, nanoseconds, standing
from serve_app.metering.operations import Operation, Outcome, Reserve, Resolve
from serve_app.metering.quota import invalid_key, no_quota
from serve_app.metering.records import Pulse
from serve_app.metering.sweeps import Sweeps
from serve_app.metering.types import (
    UNITS_MAX,
    Balance,
    Hold,
    HoldRecord,
    HoldRequest,
    HoldState,
    Inheritance,
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
WITHDRAW_BACKOFF_S = (0.2, 1, 2, 5, 10, 20, 30)
"""Waits before the tries to withdraw a hold in doubt: about a minute, then it is left to expire."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class SqlLedger:
    """`Ledger` over one `Database`. Use it on one event loop; use several for several processes."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime] = utc_now,
        watch: Watch | None = None,
    ) -> None:
        self._id = f"gw_{uuid4().hex}"
        self._leases = Leases(database, clock, self._id, watch or Watch(database.lease_s))
        self._database = database
        self._clock = clock
        self._touched: dict[str, datetime] = {}
        self._writes = Unbroken()
        self._closing = asyncio.Event()
        self._queue = GroupCommit(self._run, database.lanes)
        self._sweeps = Sweeps(database, self._queue)
        self._deliveries = Deliveries(database)
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
            raise invalid_key()
        async with self._database.read() as connection:
            found = await connection.execute(sql.FIND_KEY, {"sha256": keys.digest(secret)})
            row = found.one_or_none()
        if row is None or not keys.matches(secret, row.sha256):
            raise invalid_key()
        expired = row.expires_at is not None and row.expires_at <= self._clock()
        if expired or row.revoked_at is not None or row.disabled_at is not None:
            raise invalid_key()
        models = None if row.models is None else tuple(row.models.split())
        return Principal(row.account_id, row.name, row.id, tuple(row.scopes.split()), models)

    async def hold(self, request: HoldRequest) -> Hold:
        """Reserve units, or say why not. `ValueError`: the caller did not bound its request."""
        request.require_bounds()
        if request.units > UNITS_MAX:
            raise no_quota()  # no account can have so many, nor a BIGINT hold them
        reserve = Reserve(request, self._id if self._leases.alive else None)
        future: asyncio.Future[Hold] = self._queue.submit(reserve)
        try:
            return await asyncio.shield(future)
        except LedgerUnavailable as exc:
            if exc.in_doubt:
                self._writes.start(self._withdraw(reserve.hold_id))
            raise
        except asyncio.CancelledError:
            if not self._queue.withdraw(future):
                self._writes.start(self._release_orphan(future))
            raise

    async def capture(
        self, hold_id: str, units: int, reply: str | None = None, *, undelivered: bool = False
    ) -> Resolution:
        if type(units) is not int or units <= 0:
            raise ValueError("a capture charges at least one unit; release a job that made nothing")
        # Nobody watches over a gateway that has given no sign of life.
        sender = self._id if undelivered and self._leases.alive else None
        return await self._writes.finish(
            self._end(Resolve(hold_id, HoldState.CAPTURED, units, reply, sender))
        )

    def delivered(self, hold_id: str) -> None:
        if self._leases.alive:
            self._deliveries.add(hold_id)

    async def release(self, hold_id: str) -> Resolution:
        return await self._writes.finish(self._end(Resolve(hold_id, HoldState.RELEASED)))

    async def expire_holds(self) -> int:
        return await self._writes.finish(self._sweeps.expire(now=self._clock()))

    async def beat(self) -> Inheritance:
        return await self._writes.finish(self._beat())

    async def forget_replies(self, before: datetime) -> int:
        async with self._database.write() as connection:
            return (await connection.execute(sql.FORGET_REPLIES, {"before": before})).rowcount

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

    async def rate(self, key_id: str) -> Rate | None:
        async with self._database.read() as connection:
            row = (await connection.execute(sql.KEY_RATE, {"key_id": key_id})).one_or_none()
        if row is None:
            return None
        return standing(row.rate_at_ns, nanoseconds(self._clock()), row.rpm)

    async def ping(self) -> None:
        async with self._database.read() as connection:
            await connection.execute(sql.ANY_ACCOUNT)

    async def pulse(self) -> Pulse:
        """Cheap enough for every few seconds: reads open holds and accounts, never the entries."""
        return await self._writes.finish(self._pulse())  # a stopping gateway cancels its caller

    async def close(self) -> None:
        """Let writes that were left running end, then close the connections."""
        self._closing.set()
        await self._deliveries.close()
        await self._writes.drain()
        await self._queue.drain()
        await self._database.close()

    async def _beat(self) -> Inheritance:
        return await self._sweeps.inherit(await self._leases.beat())

    async def _pulse(self) -> Pulse:
        async with self._database.read() as connection:
            imbalance = (await connection.execute(sql.HELD_BEYOND_HOLDS)).scalar_one()
        return Pulse(await self.admin.open_work(), int(imbalance))

    def _end(self, operation: Resolve) -> "asyncio.Future[Resolution]":
        """Runs whatever becomes of the caller; the queue waits for it at close."""
        return self._queue.submit(operation)

    async def _withdraw(self, hold_id: str) -> None:
        """Release a hold of which nobody knows whether it was made, and that nobody will use."""
        for wait_s in WITHDRAW_BACKOFF_S:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), wait_s)
            try:
                await self._end(Resolve(hold_id, HoldState.RELEASED))
            except LedgerUnavailable:
                continue
            except UnknownHold:
                logger.info("hold %s, which was in doubt, was not made", hold_id)
            return
        logger.warning("hold %s, if it was made, is left to its expiry", hold_id)

    async def _release_orphan(self, future: "asyncio.Future[Hold]") -> None:
        """Give back the units of a hold that nobody is waiting for any more."""
        try:
            hold = await future
            await self._end(Resolve(hold.id, HoldState.RELEASED))
        except AppError as exc:
            logger.info("an abandoned hold was not made, or is left to expire: %s", exc.message)

    async def _run(self, operations: Sequence[Operation]) -> list[Outcome]:
        """All of them in one SQL transaction; one by one if any spoils it for the others."""
        now = self._clock()
        wrote = False

        def work(connection: Connection) -> list[Outcome]:
            nonlocal wrote
            outcomes = run_batch(connection, operations, now, touch)
            wrote = True
            return outcomes

        touch = self._to_touch(operations, now)
        try:
            outcomes = await self._database.transact(work)
        except Exception as exc:
            # Once all was written only the commit can have failed, and perhaps it did not.
            if wrote and isinstance(exc, LedgerUnavailable):
                exc.in_doubt = True
            if wrote or len(operations) == 1 or is_outage(exc.__cause__ or exc):
                raise
            logger.warning("a ledger batch was spoilt and is done one by one", exc_info=True)
            return [await self._run_alone(one) for one in operations]
        for one, outcome in zip(operations, outcomes, strict=True):
            if isinstance(one, Reserve) and isinstance(outcome, Hold):
                self._remember(one.request.key_id, now)
        return outcomes

    async def _run_alone(self, operation: Operation) -> Outcome:
        try:
            (outcome,) = await self._run([operation])
        except Exception as exc:  # noqa: BLE001 - its own waiter gets it, and nobody else
            return exc
        return outcome

    def _to_touch(self, operations: Sequence[Operation], now: datetime) -> dict[str, datetime]:
        """Keys whose use was not noted lately, each with the time before which a note is old."""
        before = now - TOUCH_INTERVAL
        keys = {one.request.key_id for one in operations if isinstance(one, Reserve)}
        return {key: before for key in keys if self._touched.get(key, before) <= before}

    def _remember(self, key_id: str, now: datetime) -> None:
        last = self._touched.get(key_id)
        if last is not None and now - last < TOUCH_INTERVAL:
            return
        if len(self._touched) >= TOUCHED_MAX:
            self._touched.clear()
        self._touched[key_id] = now
