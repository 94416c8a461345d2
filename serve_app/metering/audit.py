"""The audit: every invariant of the ledger, checked in SQL at one moment of the data.

Data flow: `LedgerAdmin.audit` -> one snapshot -> `AuditReport`. Each check is a SELECT of what
breaks an invariant, so a sound ledger gives no rows whatever its size. Reads only.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.metering.records import AuditReport, Finding
from serve_app.metering.tables import accounts, api_keys, entries, holds, usage_days

FINDINGS_MAX = 1000
"""Rows shown for each invariant: a ledger that is broken everywhere need not list it all."""


def _account_sums() -> Select[Any]:
    entered = (
        select(entries.c.account_id, func.sum(entries.c.units).label("units"))
        .group_by(entries.c.account_id)
        .subquery()
    )
    total = func.coalesce(entered.c.units, 0)
    booked = accounts.c.granted - accounts.c.captured
    return (
        select(accounts.c.id, accounts.c.id, total, booked)
        .outerjoin(entered, entered.c.account_id == accounts.c.id)
        .where(total != booked)
    )


def _held_sums() -> Select[Any]:
    reserved = (
        select(holds.c.account_id, func.sum(holds.c.units).label("units"))
        .where(holds.c.state == "open")
        .group_by(holds.c.account_id)
        .subquery()
    )
    total = func.coalesce(reserved.c.units, 0)
    return (
        select(accounts.c.id, accounts.c.id, total, accounts.c.held)
        .outerjoin(reserved, reserved.c.account_id == accounts.c.id)
        .where(total != accounts.c.held)
    )


def _charged_holds() -> Select[Any]:
    """Captured: an entry of its units. Refunded: that entry, and one that takes it back."""
    captures, refunds = (
        func.count(case((entries.c.kind == kind, 1))).label(kind) for kind in ("capture", "refund")
    )
    charged = (
        select(entries.c.hold_id, captures, refunds, func.sum(-entries.c.units).label("units"))
        .where(entries.c.hold_id.is_not(None))
        .group_by(entries.c.hold_id)
        .subquery()
    )
    units = func.coalesce(charged.c.units, 0)
    made, undone = (func.coalesce(charged.c[kind], 0) for kind in ("capture", "refund"))
    return (
        select(holds.c.account_id, holds.c.id, units, holds.c.captured_units)
        .outerjoin(charged, charged.c.hold_id == holds.c.id)
        .where(
            holds.c.state.in_(("captured", "refunded")),
            or_(
                made != 1,
                undone != case((holds.c.state == "refunded", 1), else_=0),
                units != holds.c.captured_units,
            ),
        )
    )


def _stray_entries() -> Select[Any]:
    kind = entries.c.kind
    charged, undone = holds.c.state == "captured", holds.c.state == "refunded"
    agree = or_(and_(kind == "capture", or_(charged, undone)), and_(kind == "refund", undone))
    return (
        select(entries.c.account_id, entries.c.id, entries.c.units, holds.c.state)
        .outerjoin(holds, holds.c.id == entries.c.hold_id)
        .where(
            kind != "grant",
            or_(
                holds.c.id.is_(None),
                ~agree,
                holds.c.account_id != entries.c.account_id,
            ),
        )
    )


def _usage_sums() -> Select[Any]:
    counted = (
        select(usage_days.c.account_id, func.sum(usage_days.c.units).label("units"))
        .group_by(usage_days.c.account_id)
        .subquery()
    )
    total = func.coalesce(counted.c.units, 0)
    return (
        select(accounts.c.id, accounts.c.id, total, accounts.c.captured)
        .outerjoin(counted, counted.c.account_id == accounts.c.id)
        .where(total != accounts.c.captured)
    )


def _negative_accounts() -> Select[Any]:
    available = accounts.c.granted - accounts.c.captured - accounts.c.held
    return select(accounts.c.id, accounts.c.id, available, accounts.c.held).where(
        or_(available < 0, accounts.c.granted < 0, accounts.c.captured < 0, accounts.c.held < 0)
    )


def _impossible_holds() -> Select[Any]:
    is_open = holds.c.state == "open"
    is_captured = holds.c.state == "captured"
    return (
        select(holds.c.account_id, holds.c.id, holds.c.units, holds.c.captured_units)
        .outerjoin(api_keys, api_keys.c.id == holds.c.key_id)
        .where(
            or_(
                holds.c.units <= 0,
                holds.c.captured_units < 0,
                holds.c.captured_units > holds.c.units,
                and_(is_captured, holds.c.captured_units == 0),
                and_(~is_captured, holds.c.captured_units != 0),
                and_(is_open, holds.c.resolved_at.is_not(None)),
                and_(~is_open, holds.c.resolved_at.is_(None)),
                and_(~is_captured, holds.c.undelivered_by.is_not(None)),
                api_keys.c.id.is_(None),
                api_keys.c.account_id != holds.c.account_id,
            )
        )
    )


CHECKS: tuple[tuple[str, Select[Any], str], ...] = (
    ("sum(entries) = granted - captured", _account_sums(), "entries {0}, account {1}"),
    ("held = sum(open holds)", _held_sums(), "open holds {0}, account {1}"),
    ("a charged or refunded hold has its entries", _charged_holds(), "entries {0}, hold {1}"),
    ("a capture or refund entry has its hold", _stray_entries(), "entry {0}, hold {1}"),
    ("sum(usage by day) = captured", _usage_sums(), "usage {0}, account {1}"),
    ("nothing is negative", _negative_accounts(), "available {0}, held {1}"),
    ("a hold's columns agree", _impossible_holds(), "units {0}, captured {1}"),
)
"""Name, rows that break it as (account, subject, two values), and how the values read."""


async def run_audit(connection: AsyncConnection, overdue_before: datetime) -> AuditReport:
    """Check everything on `connection`, which must be a snapshot."""
    findings: list[Finding] = []
    for invariant, query, reading in CHECKS:
        findings += await _find(connection, invariant, query, reading)
    overdue = await _find(
        connection,
        "an expired hold is swept",
        select(holds.c.account_id, holds.c.id, holds.c.units, holds.c.expires_at).where(
            holds.c.state == "open", holds.c.expires_at < overdue_before
        ),
        "{0} units since {1}",
    )
    sizes = [
        (await connection.execute(select(func.count()).select_from(table))).scalar_one()
        for table in (accounts, holds, entries)
    ]
    n_accounts, n_holds, n_entries = sizes
    return AuditReport(
        n_accounts, n_holds, n_entries, findings=tuple(findings), overdue=tuple(overdue)
    )


async def _find(
    connection: AsyncConnection, invariant: str, query: Select[Any], reading: str
) -> Sequence[Finding]:
    rows = (await connection.execute(query.limit(FINDINGS_MAX))).all()
    return [
        Finding(invariant, str(account), str(subject), reading.format(*values))
        for account, subject, *values in rows
    ]
