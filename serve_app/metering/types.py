"""What the ledger takes and gives: plain frozen values. Must not import sqlalchemy.

A **hold** reserves compute units (CU) before any work; it ends exactly once: **capture** (all or part
of it is charged), **release** (nothing is) or expiry. Units are integers.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class HoldState(StrEnum):
    OPEN = "open"
    CAPTURED = "captured"
    RELEASED = "released"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Principal:
    """Who a bearer key speaks for."""

    account_id: str
    account_name: str
    key_id: str
    scopes: tuple[str, ...]


@dataclass(frozen=True)
class HoldRequest:
    """A job about to be done, with its price."""

    account_id: str
    key_id: str
    request_id: str
    model: str
    n: int
    width: int
    height: int
    steps: int
    units: int
    ttl_s: float
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Hold:
    """An open reservation."""

    id: str
    account_id: str
    units: int
    available_units: int
    """What the account could still hold after this one."""
    expires_at: datetime


@dataclass(frozen=True)
class Resolution:
    """How a hold ended. Resolving again returns the first outcome unchanged."""

    hold_id: str
    state: HoldState
    captured_units: int
    available_units: int
    """Of the account, read in the same SQL transaction."""


@dataclass(frozen=True)
class Balance:
    """An account in compute units; `available` = granted - captured - held."""

    id: str
    name: str
    granted: int
    captured: int
    held: int

    @property
    def available(self) -> int:
        return self.granted - self.captured - self.held


class Ledger(Protocol):
    """What the service needs of metering; `metering.sql.SqlLedger` is the real one.

    Every method raises `LedgerUnavailable` when the database cannot be reached: never a free picture,
    never a 401 for an outage.
    """

    async def authenticate(self, secret: str) -> Principal:
        """The principal of a bearer key, or `InvalidKey`."""
        ...

    async def hold(self, request: HoldRequest) -> Hold:
        """Reserve units in one conditional UPDATE.

        Raises `InsufficientQuota` when the account cannot cover them and `InvalidKey` when the key
        was revoked meanwhile.
        """
        ...

    async def capture(self, hold_id: str, units: int) -> Resolution:
        """Charge `units` (0 < units <= held) and give back the rest; idempotent."""
        ...

    async def release(self, hold_id: str) -> Resolution:
        """Charge nothing and give all back; idempotent."""
        ...

    async def expire_holds(self) -> int:
        """Release every open hold past its expiry; returns how many. Safe with many callers."""
        ...

    async def balance(self, account_id: str) -> Balance: ...

    async def close(self) -> None: ...
