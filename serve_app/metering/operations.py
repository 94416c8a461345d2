"""What is done to holds, one value each: `sql` and `sweeps` queue these, `batch` does them.

Data flow: `SqlLedger` -> an operation -> `GroupCommit` -> `run_batch` -> its outcome. Must not
import sqlalchemy.
"""

from dataclasses import dataclass, field
from uuid import uuid4

from serve_app.metering.types import Hold, HoldRequest, HoldState, Resolution


@dataclass(frozen=True)
class Reserve:
    """Make a hold. Its id is chosen here, so that an operation that is repeated makes one."""

    request: HoldRequest
    gateway_id: str | None = None
    hold_id: str = field(default_factory=lambda: f"hold_{uuid4().hex}")


@dataclass(frozen=True)
class Resolve:
    """End an open hold, or find how it ended before; an expiry answers None then."""

    hold_id: str
    state: HoldState
    units: int = 0
    reply: str | None = None
    undelivered_by: str | None = None
    """The gateway that has yet to send what a capture is for."""


@dataclass(frozen=True)
class Refund:
    """Take a capture back whose reply nobody will send any more; None where it is not there."""

    hold_id: str
    units: int
    """As they were captured."""


Ending = Resolve | Refund
Operation = Reserve | Ending
Outcome = Hold | Resolution | Exception | None
