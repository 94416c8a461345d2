"""MeasuredLedger: any ledger, with each operation timed and each unit counted.

Data flow: `service` -> `MeasuredLedger` -> the ledger; what came of it -> `Recorder`. What a hold
is for is remembered from its making to its end, so that a capture that was tried twice counts once.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable
from datetime import datetime
from typing import TypeVar

from serve_app.errors import LedgerUnavailable
from serve_app.metering.limits import Rate
from serve_app.metering.types import (
    Balance,
    Hold,
    HoldRecord,
    HoldRequest,
    HoldState,
    Inheritance,
    Ledger,
    Principal,
    Resolution,
)
from serve_app.metrics import (
    ACCOUNT_UNITS,
    HOLDS,
    HOLDS_ENDED,
    HOLDS_EXPIRED,
    HOLDS_REFUNDED,
    IMAGES,
    LEDGER_OUTAGES,
    LEDGER_SECONDS,
    UNITS_CAPTURED,
    UNITS_REFUNDED,
    Recorder,
)
from serve_app.observability import traced
from serve_app.tracing import AUTH, CAPTURE, HOLD, RELEASE

HOLDS_MAX = 10_000
"""Holds remembered: those that a lost ledger left to their expiry are never heard of again."""

T = TypeVar("T")


class MeasuredLedger:
    """A `Ledger` around another one."""

    def __init__(self, ledger: Ledger, record: Recorder, *, by_account: bool = False) -> None:
        self._ledger = ledger
        self._record = record
        self._by_account = by_account
        self._open: OrderedDict[str, HoldRequest] = OrderedDict()

    async def authenticate(self, secret: str) -> Principal:
        with traced(AUTH):
            return await self._timed("authenticate", self._ledger.authenticate(secret))

    async def hold(self, request: HoldRequest) -> Hold:
        with traced(
            HOLD,
            account_id=request.account_id,
            model=request.model,
            images=request.n,
            size=f"{request.width}x{request.height}",
            steps=request.steps,
            units=request.units,
        ) as span:
            hold = await self._timed("hold", self._ledger.hold(request))
            span.set(hold_id=hold.id)
        self._open[hold.id] = request
        if len(self._open) > HOLDS_MAX:
            self._open.popitem(last=False)
        self._record.count(HOLDS, model=request.model)
        return hold

    async def capture(
        self, hold_id: str, units: int, reply: str | None = None, *, undelivered: bool = False
    ) -> Resolution:
        with traced(CAPTURE, hold_id=hold_id, units=units):
            work = self._ledger.capture(hold_id, units, reply, undelivered=undelivered)
            return self._ended(await self._timed("capture", work))

    def delivered(self, hold_id: str) -> None:
        self._ledger.delivered(hold_id)

    async def release(self, hold_id: str) -> Resolution:
        with traced(RELEASE, hold_id=hold_id):
            return self._ended(await self._timed("release", self._ledger.release(hold_id)))

    async def expire_holds(self) -> int:
        expired = await self._timed("expire", self._ledger.expire_holds())
        self._record.count(HOLDS_EXPIRED, expired)
        return expired

    async def beat(self) -> Inheritance:
        taken = await self._timed("beat", self._ledger.beat())
        self._record.count(HOLDS_EXPIRED, taken.expired)
        self._record.count(HOLDS_REFUNDED, taken.refunded)
        self._record.count(UNITS_REFUNDED, taken.refunded_units)
        return taken

    async def forget_replies(self, before: datetime) -> int:
        return await self._timed("forget", self._ledger.forget_replies(before))

    async def find_hold(self, account_id: str, idempotency_key: str) -> HoldRecord | None:
        return await self._timed("find", self._ledger.find_hold(account_id, idempotency_key))

    async def balance(self, account_id: str) -> Balance:
        return await self._timed("balance", self._ledger.balance(account_id))

    async def rate(self, key_id: str) -> Rate | None:
        return await self._timed("rate", self._ledger.rate(key_id))

    async def ping(self) -> None:
        await self._timed("ping", self._ledger.ping())

    async def close(self) -> None:
        await self._ledger.close()

    def _ended(self, resolution: Resolution) -> Resolution:
        request = self._open.pop(resolution.hold_id, None)
        if request is None:  # counted already
            return resolution
        state, units = resolution.state, resolution.captured_units
        self._record.count(HOLDS_ENDED, model=request.model, state=state.value)
        if state is HoldState.CAPTURED:
            images = round(request.n * units / request.units)
            self._record.count(IMAGES, images, model=request.model)
            self._record.count(UNITS_CAPTURED, units, model=request.model)
            if self._by_account:
                self._record.count(ACCOUNT_UNITS, units, account=request.account_id)
        return resolution

    async def _timed(self, operation: str, work: Awaitable[T]) -> T:
        """Refusals are answers, too, and a client that leaves says nothing about the ledger."""
        started = time.perf_counter()
        try:
            return await work
        except LedgerUnavailable:
            self._record.count(LEDGER_OUTAGES, operation=operation)
            raise
        finally:
            seconds = time.perf_counter() - started
            self._record.observe(LEDGER_SECONDS, seconds, operation=operation)
