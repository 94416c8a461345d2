"""What the ledger takes and gives: plain frozen values. Must not import sqlalchemy.

A **hold** reserves compute units (CU) before any work; it ends exactly once: **capture** (all or
part of it is charged), **release** (nothing is) or expiry. A capture whose gateway died before it
had sent the reply is **refunded**, once. Units are integers.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from serve_app.metering.limits import Rate

IDEMPOTENCY_KEY_CHARS_MAX = 255
"""What other payment APIs take; a UUID has 36."""
TEXT_CHARS_MAX = 200
"""Longest request id and model name on file."""
NAME_CHARS_MAX = 200
REASON_CHARS_MAX = 1000
"""A sentence or two and the number of an invoice."""
MODELS_MAX = 100
"""Models that one key may be bounded to: more than a server has."""
LIST_MAX = 1000
"""Rows of one page of a listing."""
UNITS_MAX = 2**53 - 1
"""Most units that an account may be granted or a job cost: JSON readers count no further exactly.

Far below a BIGINT, so that no sum inside the database can overflow.
"""


class HoldState(StrEnum):
    OPEN = "open"
    CAPTURED = "captured"
    RELEASED = "released"
    EXPIRED = "expired"
    REFUNDED = "refunded"


@dataclass(frozen=True)
class Principal:
    """Who a bearer key speaks for."""

    account_id: str
    account_name: str
    key_id: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None = None
    """Ids of the models that this key may use; None is all."""


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
    request_sha256: str | None = None
    """What was asked for under the idempotency key, as a digest in hex."""

    def require_bounds(self) -> None:
        """`ValueError` unless this is bounded: negative units, say, would mint balance.

        The service has checked what the client sent; a slip of ours must not cost money either.
        """
        numbers = (self.n, self.width, self.height, self.steps, self.units)
        if any(type(number) is not int or number <= 0 for number in numbers):
            raise ValueError("a hold needs positive integers")
        if self.ttl_s <= 0:
            raise ValueError("a hold needs a time to live")
        if len(self.idempotency_key or "") > IDEMPOTENCY_KEY_CHARS_MAX:
            raise ValueError("the idempotency key is too long")
        if max(len(self.request_id), len(self.model)) > TEXT_CHARS_MAX:
            raise ValueError("the request id or the model's name is too long")


@dataclass(frozen=True)
class Hold:
    """An open reservation."""

    id: str
    account_id: str
    units: int
    available_units: int
    """What the account could still hold after this one."""
    expires_at: datetime
    rate: Rate | None = None
    """Where its API key stands; None where it has no request limit."""


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


@dataclass(frozen=True)
class HoldRecord:
    """A hold as it is on file: what a retry with the same idempotency key ran into."""

    id: str
    request_id: str
    model: str
    n: int
    width: int
    height: int
    steps: int
    units: int
    captured_units: int
    state: HoldState
    created_at: datetime
    expires_at: datetime
    resolved_at: datetime | None
    request_sha256: str | None
    reply: str | None
    """What was kept of the answer when it was captured."""


@dataclass(frozen=True)
class Inheritance:
    """What was taken from gateways that died."""

    expired: int = 0
    """Open holds."""
    refunded: int = 0
    """Captures."""
    refunded_units: int = 0


class UnknownHold(LookupError):
    """A hold id that this ledger never gave out: a bug of the caller, or a restored backup."""


class Ledger(Protocol):
    """What the service needs of metering; `metering.sql.SqlLedger` is the real one.

    Every method raises `LedgerUnavailable` when the database cannot be reached: never a free
    picture, never a 401 for an outage.
    """

    async def authenticate(self, secret: str) -> Principal:
        """The principal of a bearer key, or `InvalidKey`."""
        ...

    async def hold(self, request: HoldRequest) -> Hold:
        """Reserve units in one conditional UPDATE.

        Raises `InsufficientQuota` when the account cannot cover them, `InvalidKey` when the key was
        revoked or the account disabled meanwhile, `RateLimitExceeded` or `BudgetExceeded` when a
        limit of the key or the account is reached, and `IdempotencyKeyReused` when an open or
        captured hold of the account has the same idempotency key: `find_hold` tells which.
        """
        ...

    async def capture(
        self, hold_id: str, units: int, reply: str | None = None, *, undelivered: bool = False
    ) -> Resolution:
        """Charge `units` (0 < units <= held) and give back the rest; idempotent.

        `reply` is kept with the charge, in one SQL transaction, for replays of its idempotency key.

        `undelivered`: the client has nothing yet and cannot fetch it either, so the charge is given
        back if this process dies before it has called `delivered`.

        A hold that has expired or was released meanwhile is not charged: the answer's state says
        so, and the caller must then treat the job as failed and hand out no images.

        Of a `LedgerUnavailable` that is `in_doubt` nobody knows whether it charged: ask again.
        """
        ...

    def delivered(self, hold_id: str) -> None:
        """What an `undelivered` capture was for is out, or cannot be sent: the charge stays.

        Returns at once; it is written soon, together with others. Never raises.
        """
        ...

    async def release(self, hold_id: str) -> Resolution:
        """Charge nothing and give all back; idempotent."""
        ...

    async def expire_holds(self) -> int:
        """Release every open hold past its expiry; returns how many. Safe with many callers."""
        ...

    async def beat(self) -> Inheritance:
        """Give a sign of life. Of gateways that gave none for a lease, release the holds and refund
        the captures whose replies they had yet to send.

        To be called some times in a lease, by whoever makes holds; the holds of
        one that never calls it wait for their expiry.
        """
        ...

    async def forget_replies(self, before: datetime) -> int:
        """Free the idempotency keys of holds captured before then; returns how many."""
        ...

    async def find_hold(self, account_id: str, idempotency_key: str) -> HoldRecord | None:
        """The open or captured hold that owns this idempotency key."""
        ...

    async def balance(self, account_id: str) -> Balance: ...

    async def rate(self, key_id: str) -> Rate | None:
        """Where a key stands now; None where it has no request limit."""
        ...

    async def ping(self) -> None:
        """Return if the database answers and has its tables; for readiness."""
        ...

    async def close(self) -> None: ...
