"""What the admin verbs give back: plain frozen values. Must not import sqlalchemy.

Data flow: `admin` and `audit` -> these -> `cli` and the admin routes show them.
"""

from dataclasses import dataclass
from datetime import datetime

from serve_app.metering.types import Balance


@dataclass(frozen=True)
class OpenWork:
    """Open holds of one model: exactly the jobs queued or running in the whole fleet."""

    holds: int
    images: int
    units: int


@dataclass(frozen=True)
class Account:
    """An account with its balance."""

    balance: Balance
    created_at: datetime
    disabled_at: datetime | None
    day_budget: int | None
    """Most units captured and held in a day of UTC; None is no limit."""
    month_budget: int | None


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


@dataclass(frozen=True)
class NewKey:
    """A key just made: the one time that its secret is seen."""

    key: ApiKey
    secret: str


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
