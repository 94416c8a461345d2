"""The ledger's SQL on its hot path, built once. `sql` runs these; each says what it guarantees.

Data flow: `tables` -> statements with named parameters -> `SqlLedger`. Must not import an engine.
"""

from sqlalchemy import (
    BigInteger,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from serve_app.metering.tables import (
    KEPT,
    OPEN,
    UNRELEASED,
    UtcDateTime,
    accounts,
    api_keys,
    entries,
    holds,
    usage_days,
)
from serve_app.metering.types import UNITS_MAX as UNITS_MAX  # its users say sql.UNITS_MAX

REQUEST_COLUMNS = (
    "account_id",
    "key_id",
    "idempotency_key",
    "request_sha256",
    "request_id",
    "model",
    "n",
    "width",
    "height",
    "steps",
    "units",
)
"""Columns of `holds` that a `HoldRequest` has under the same name."""

_available = (accounts.c.granted - accounts.c.captured - accounts.c.held).label("available")
_now = bindparam("now", type_=UtcDateTime)
_take = bindparam("take", type_=BigInteger)

_live_key = and_(
    api_keys.c.id == bindparam("key_id"),
    api_keys.c.account_id == bindparam("account_id"),
    api_keys.c.revoked_at.is_(None),
    or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > _now),
)

FIND_KEY = (
    select(
        api_keys.c.id,
        api_keys.c.sha256,
        api_keys.c.scopes,
        api_keys.c.rpm,
        api_keys.c.models,
        api_keys.c.expires_at,
        api_keys.c.revoked_at,
        accounts.c.id.label("account_id"),
        accounts.c.name,
        accounts.c.disabled_at,
    )
    .join(accounts, accounts.c.id == api_keys.c.account_id)
    .where(api_keys.c.sha256 == bindparam("sha256"))
)

RESERVE = (
    update(accounts)
    .where(
        accounts.c.id == bindparam("account_id"),
        accounts.c.disabled_at.is_(None),
        accounts.c.granted - accounts.c.captured - accounts.c.held >= _take,
        select(api_keys.c.id).where(_live_key).exists(),
    )
    .values(held=accounts.c.held + _take)
    .returning(
        _available,
        accounts.c.held,
        accounts.c.day_budget,
        accounts.c.month_budget,
        select(or_(api_keys.c.rpm.is_not(None), api_keys.c.images_max.is_not(None)))
        .where(api_keys.c.id == bindparam("key_id"))
        .scalar_subquery()
        .label("limited"),
    )
)
"""No row: nothing was reserved. The check and the spending are one statement."""

KEY_LIMITS = select(
    api_keys.c.rpm,
    api_keys.c.images_max,
    api_keys.c.rate_at_ns,
    select(func.coalesce(func.sum(holds.c.n), 0))
    .where(
        holds.c.key_id == api_keys.c.id,
        OPEN,
        holds.c.id.not_in(bindparam("undecided", expanding=True)),
    )
    .scalar_subquery()
    .label("images"),
).where(api_keys.c.id == bindparam("key_id"))

KEY_RATE = select(api_keys.c.rpm, api_keys.c.rate_at_ns).where(
    api_keys.c.id == bindparam("key_id"), api_keys.c.rpm.is_not(None)
)

SET_RATE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key_id"))
    .values(rate_at_ns=bindparam("rate_at_ns", type_=BigInteger))
)

SPENT = select(
    func.coalesce(
        func.sum(case((usage_days.c.day == bindparam("today"), usage_days.c.units), else_=0)), 0
    ).label("day"),
    func.coalesce(func.sum(usage_days.c.units), 0).label("month"),
).where(usage_days.c.account_id == bindparam("account_id"), usage_days.c.day >= bindparam("month"))

_in_day = and_(
    *(
        usage_days.c[name] == bindparam(f"in_{name}")
        for name in ("account_id", "day", "key_id", "model")
    )
)

ADD_USAGE = (
    update(usage_days)
    .where(_in_day)
    .values(
        {
            name: usage_days.c[name] + bindparam(f"in_{name}", type_=BigInteger)
            for name in ("jobs", "images", "units")
        }
    )
    .returning(usage_days.c.day)
)
INSERT_USAGE = insert(usage_days)
END_USAGE = delete(usage_days).where(
    _in_day, usage_days.c.units == bindparam("in_units", type_=BigInteger)
)
"""Of a day of which all was given back: a row of no units is none."""

KEY_IS_LIVE = (
    select(api_keys.c.id)
    .join(accounts, accounts.c.id == api_keys.c.account_id)
    .where(_live_key, accounts.c.disabled_at.is_(None))
)

INSERT_HOLD = insert(holds)
FORGET_HOLD = delete(holds).where(holds.c.id == bindparam("hold_id"))
"""Of a hold that was inserted in the same SQL transaction and could not be reserved."""
INSERT_ENTRY = insert(entries)

TOUCH_KEY = (
    update(api_keys)
    .where(
        api_keys.c.id == bindparam("key_id"),
        or_(
            api_keys.c.last_used_at.is_(None),
            api_keys.c.last_used_at <= bindparam("before", type_=UtcDateTime),
        ),
    )
    .values(last_used_at=_now)
)

FIND_HOLD = select(
    holds.c.id,
    holds.c.request_id,
    holds.c.model,
    holds.c.n,
    holds.c.width,
    holds.c.height,
    holds.c.steps,
    holds.c.units,
    holds.c.captured_units,
    holds.c.state,
    holds.c.created_at,
    holds.c.expires_at,
    holds.c.resolved_at,
    holds.c.request_sha256,
    holds.c.reply,
).where(
    holds.c.account_id == bindparam("account_id"),
    holds.c.idempotency_key == bindparam("idempotency_key"),
    UNRELEASED,
)

FORGET_REPLIES = (
    update(holds)
    .where(KEPT, holds.c.resolved_at <= bindparam("before", type_=UtcDateTime))
    .values(idempotency_key=None, request_sha256=None, reply=None)
)

OPEN_WORK = (
    select(
        holds.c.model,
        func.count().label("holds"),
        func.sum(holds.c.n).label("images"),
        func.sum(holds.c.units).label("units"),
    )
    .where(OPEN)
    .group_by(holds.c.model)
)
"""The state is spelled out, so that the partial index of open holds serves it."""

HELD_BEYOND_HOLDS = select(
    select(func.coalesce(func.sum(accounts.c.held), 0)).scalar_subquery()
    - select(func.coalesce(func.sum(holds.c.units), 0)).where(OPEN).scalar_subquery()
)
"""In one statement, so at one moment: 0 as long as the books are right."""

BALANCE = select(
    accounts.c.id, accounts.c.name, accounts.c.granted, accounts.c.captured, accounts.c.held
).where(accounts.c.id == bindparam("account_id"))

ANY_ACCOUNT = select(accounts.c.id).limit(1)
"""Fails unless the tables exist; for readiness."""
