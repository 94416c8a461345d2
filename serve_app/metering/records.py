"""What the admin verbs give back: plain frozen values. Must not import sqlalchemy.

Data flow: `admin` and `audit` -> these -> `cli` and the admin routes show them.
"""

import base64
import json
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from serve_app.metering.types import Balance


@dataclass(frozen=True)
class Author:
    """Who acts, and why; goes into the log of acts."""

    actor: str
    """`api:ACCOUNT/KEY`, `cli:USER` or `system`."""
    reason: str = ""


@dataclass(frozen=True)
class OpenWork:
    """Open holds of one model: exactly the jobs queued or running in the whole fleet."""

    holds: int
    images: int
    units: int


@dataclass(frozen=True)
class Pulse:
    """What metrics show of the ledger."""

    open_work: dict[str, OpenWork]
    """By model id; a model without any is left out."""
    imbalance: int
    """Units that accounts hold beyond their open holds: 0, or the books are broken."""


@dataclass(frozen=True)
class Account:
    """An account with its balance."""

    balance: Balance
    created_at: datetime
    disabled_at: datetime | None
    day_budget: int | None
    """Most units captured and held in a day of UTC; None is no limit."""
    month_budget: int | None

    @property
    def cursor(self) -> str:
        return self.balance.id


@dataclass(frozen=True)
class Granted:
    """What came of a grant."""

    account: Account
    replayed: bool
    """Its idempotency key had been used for the same grant before: nothing was added."""


@dataclass(frozen=True)
class ApiKey:
    """An API key as anyone may see it: never its secret nor its digest."""

    id: str
    account_id: str
    prefix: str
    scopes: tuple[str, ...]
    rpm: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute; set by holds, not by reads."""
    models: tuple[str, ...] | None
    """Ids of the models that it may use; None is all."""
    images_max: int | None
    """Images in the making at once."""

    @property
    def cursor(self) -> str:
        return self.id


@dataclass(frozen=True)
class NewKey:
    """A key just made: the one time that its secret is seen."""

    key: ApiKey
    secret: str


@dataclass(frozen=True)
class Entry:
    """One line of the books: a grant, a capture (negative), or a refund of one."""

    id: int
    account_id: str
    kind: str
    units: int
    hold_id: str | None
    created_at: datetime
    memo: str
    idempotency_key: str | None = None
    """Of a grant that was made under one."""

    @property
    def cursor(self) -> str:
        return str(self.id)


@dataclass(frozen=True)
class Act:
    """One thing that an operator did."""

    id: int
    at: datetime
    actor: str
    verb: str
    subject: str
    """Id of the account or key that it was done to."""
    reason: str
    detail: dict[str, Any]

    @property
    def cursor(self) -> str:
        return str(self.id)


@dataclass(frozen=True)
class UsageRow:
    """What was captured, summed up; None where the sum goes over all."""

    day: date | None
    account_id: str | None
    key_id: str | None
    model: str | None
    jobs: int
    images: int
    units: int

    @property
    def cursor(self) -> str:
        """What tells this row from others of its listing, opaque to clients."""
        day = None if self.day is None else self.day.isoformat()
        group = [one for one in (day, self.account_id, self.key_id, self.model) if one is not None]
        return base64.urlsafe_b64encode(json.dumps(group).encode()).decode().rstrip("=")


@dataclass(frozen=True)
class Allowance:
    """A budget of an account: what of it is taken, and when it begins anew."""

    budget: int | None
    """Compute units; None is no limit."""
    used: int
    """Captured since its beginning, and all that is held now."""
    resets_at: datetime

    @property
    def left(self) -> int | None:
        return None if self.budget is None else max(0, self.budget - self.used)


@dataclass(frozen=True)
class Standing:
    """What an account and one of its keys may still do."""

    day: Allowance
    month: Allowance
    rpm: int | None
    requests_left: int | None
    """That would be admitted right now; None without a limit."""
    images_max: int | None
    images_open: int
    """Images in the making with this key."""


@dataclass(frozen=True)
class Finding:
    """One broken invariant."""

    invariant: str
    account_id: str
    subject: str
    """The id of the account, hold or entry at fault."""
    detail: str


@dataclass(frozen=True)
class AuditReport:
    """All invariants, checked at one moment."""

    accounts: int
    holds: int
    entries: int
    findings: tuple[Finding, ...]
    """Broken books."""
    overdue: tuple[Finding, ...]
    """Open holds that a sweep should have expired: units are stuck, but the books are right."""

    @property
    def balanced(self) -> bool:
        return not self.findings
