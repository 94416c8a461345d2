"""Limits of keys and accounts, usage by day, and what an idempotency key needs to be replayed.

Revision 0002. Frozen: it must not follow later edits of `tables.py`.
"""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPEN = sa.text("state = 'open'")
KEPT = sa.text("reply IS NOT NULL")


COLUMNS: tuple[tuple[str, str, sa.types.TypeEngine[Any]], ...] = (
    ("accounts", "day_budget", sa.BigInteger()),
    ("accounts", "month_budget", sa.BigInteger()),
    ("api_keys", "models", sa.Text()),
    ("api_keys", "images_max", sa.Integer()),
    ("api_keys", "rate_at_ns", sa.BigInteger()),
    ("holds", "request_sha256", sa.String(64)),
    ("holds", "reply", sa.Text()),
)
"""Nullable and without CHECKs: SQLite adds such a column in place, and any other by a new table."""


def upgrade() -> None:
    for table, name, kind in COLUMNS:
        op.add_column(table, sa.Column(name, kind))
    op.create_index(
        "ix_holds_open_key_id", "holds", ["key_id"], sqlite_where=OPEN, postgresql_where=OPEN
    )
    op.create_index(
        "ix_holds_kept", "holds", ["resolved_at"], sqlite_where=KEPT, postgresql_where=KEPT
    )
    _create_usage()
    _fill_usage(op.get_bind())


def downgrade() -> None:
    op.drop_table("usage_days")
    op.drop_index("ix_holds_kept", "holds")
    op.drop_index("ix_holds_open_key_id", "holds")
    for table, name, _ in reversed(COLUMNS):
        op.drop_column(table, name)


def _create_usage() -> None:
    op.create_table(
        "usage_days",
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("images", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("units > 0", name=op.f("ck_usage_days_units")),
        sa.PrimaryKeyConstraint("account_id", "day", "key_id", "model", name="pk_usage_days"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_usage_days_account_id")
        ),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_usage_days_key_id")),
    )


def _fill_usage(connection: sa.Connection) -> None:
    """What was captured before this table was there, by the day in UTC on which it was."""
    if op.get_context().as_sql:
        return  # a script for later has no rows to read
    rows = connection.execute(
        sa.text(
            "SELECT account_id, key_id, model, n, units, captured_units, resolved_at"
            " FROM holds WHERE state = 'captured'"
        ).columns(resolved_at=sa.DateTime(timezone=True))
    )
    sums: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        at: datetime = row.resolved_at
        day = (at if at.tzinfo is None else at.astimezone(UTC)).date()
        total = sums.setdefault((row.account_id, day, row.key_id, row.model), [0, 0, 0])
        total[0] += 1
        total[1] += round(row.n * row.captured_units / row.units)
        total[2] += row.captured_units
    table = sa.table(
        "usage_days",
        *(sa.column(name) for name in ("account_id", "key_id", "model", "jobs", "images", "units")),
        sa.column("day", sa.Date()),
    )
    filled = [
        {
            "account_id": account_id,
            "day": day,
            "key_id": key_id,
            "model": model,
            "jobs": jobs,
            "images": images,
            "units": units,
        }
        for (account_id, day, key_id, model), (jobs, images, units) in sums.items()
    ]
    if filled:
        op.bulk_insert(table, filled)
