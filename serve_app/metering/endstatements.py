"""SQL that ends holds, and finds those that somebody else has to end; built once.

Data flow: `tables` -> statements with named parameters -> `endings`, `sweeps`, `deliveries`. Must
not import an engine.
"""

from sqlalchemy import BigInteger, String, Text, bindparam, select, update

from serve_app.metering.tables import OPEN, UNDELIVERED, UtcDateTime, accounts, holds

_available = (accounts.c.granted - accounts.c.captured - accounts.c.held).label("available")
_now = bindparam("now", type_=UtcDateTime)
_charge = bindparam("charge", type_=BigInteger)
_give_back = bindparam("give_back", type_=BigInteger)
_ended = (
    holds.c.account_id,
    holds.c.units,
    holds.c.key_id,
    holds.c.model,
    holds.c.n.label("images"),
)

RESOLVE = (
    update(holds)
    .where(holds.c.id == bindparam("hold_id"), holds.c.state == "open", holds.c.units >= _charge)
    .values(
        state=bindparam("to"),
        captured_units=_charge,
        resolved_at=_now,
        reply=bindparam("reply", type_=Text),
        undelivered_by=bindparam("undelivered_by", type_=String),
    )
    .returning(*_ended)
)
"""No row: the hold was resolved before. Of any number of racers exactly one gets the row."""

REFUND = (
    update(holds)
    .where(
        holds.c.id == bindparam("hold_id"),
        holds.c.state == "captured",
        holds.c.captured_units == _charge,
        UNDELIVERED,
    )
    .values(state="refunded", captured_units=0, undelivered_by=None)
    .returning(*_ended, holds.c.resolved_at)
)
"""No row: its reply went out after all, or somebody else has refunded it. `resolved_at` stays the
time of the capture, on whose day it was counted; that of the refund stands in its entry."""

DELIVERED = (
    update(holds)
    .where(
        holds.c.id.in_(
            select(holds.c.id)
            .where(holds.c.id.in_(bindparam("hold_ids", expanding=True)))
            .order_by(holds.c.id)
            .with_for_update()
        )
    )
    .values(undelivered_by=None)
    .returning(holds.c.id, holds.c.state)
)
"""Locks the rows by id, as whoever ends holds does. It does not look for `undelivered_by`, so that
it waits for a capture whose commit is in doubt and still under way, and finds what that leaves.
"""

SETTLE = (
    update(accounts)
    .where(accounts.c.id == bindparam("account_id"))
    .values(held=accounts.c.held - _give_back, captured=accounts.c.captured + _charge)
    .returning(_available)
)
"""Follows RESOLVE and REFUND in their SQL transaction, so a hold leaves `held` exactly once."""

OUTCOME = (
    select(holds.c.state, holds.c.captured_units, _available)
    .join(accounts, accounts.c.id == holds.c.account_id)
    .where(holds.c.id == bindparam("hold_id"))
)

OVERDUE = (
    select(holds.c.id)
    .where(holds.c.state == "open", holds.c.expires_at <= _now)
    .order_by(holds.c.expires_at)
    .limit(bindparam("most"))
)

ABANDONED = (
    select(holds.c.id)
    .where(OPEN, holds.c.gateway_id.in_(bindparam("gateways", expanding=True)))
    .limit(bindparam("most"))
)

LOST = (
    select(holds.c.id, holds.c.captured_units)
    .where(UNDELIVERED, holds.c.undelivered_by.in_(bindparam("gateways", expanding=True)))
    .limit(bindparam("most"))
)
"""Captures whose replies gateways have yet to send."""
