"""Captures whose reply has yet to be sent, and refunds of those that nobody will send.

Revision 0005. Frozen: it must not follow later edits of `tables.py`.

CHECKs change, which SQLite cannot do in place: there both tables are made anew. Dropping a table
whose rows others refer to is refused, so the entries go first and come back last.
"""

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UNRELEASED = sa.text("state IN ('open', 'captured')")
OPEN = sa.text("state = 'open'")
KEPT = sa.text("reply IS NOT NULL")
KEYED = sa.text("idempotency_key IS NOT NULL")
UNDELIVERED = sa.text("undelivered_by IS NOT NULL")
INSTANT = sa.DateTime(timezone=True)

OLD_STATES = "state IN ('open', 'captured', 'released', 'expired')"
NEW_STATES = "state IN ('open', 'captured', 'released', 'expired', 'refunded')"
SENDER = "undelivered_by IS NULL OR state = 'captured'"
OLD_KINDS = (
    "(kind = 'grant' AND units > 0 AND hold_id IS NULL)"
    " OR (kind = 'capture' AND units < 0 AND hold_id IS NOT NULL)"
)
NEW_KINDS = OLD_KINDS + " OR (kind = 'refund' AND units > 0 AND hold_id IS NOT NULL)"


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        _rebuild(_new_holds, _new_entries)
        return
    op.add_column("holds", sa.Column("undelivered_by", sa.String(40)))
    _replace_check("holds", "state", NEW_STATES)
    op.create_check_constraint(op.f("ck_holds_undelivered_by"), "holds", SENDER)
    _index_undelivered()
    _replace_check("entries", "kind", NEW_KINDS)
    op.drop_index("uq_entries_hold_id", "entries")
    _index_entries_new()


def downgrade() -> None:
    """A refunded hold becomes one that was released: neither has cost anything."""
    op.execute(
        "DELETE FROM entries WHERE hold_id IN (SELECT id FROM holds WHERE state = 'refunded')"
    )
    op.execute("UPDATE holds SET state = 'released' WHERE state = 'refunded'")
    if op.get_context().dialect.name == "sqlite":
        _rebuild(_old_holds, _old_entries)
        return
    op.drop_index("uq_entries_hold_id_kind", "entries")
    _index_entries_old()
    _replace_check("entries", "kind", OLD_KINDS)
    op.drop_index("ix_holds_undelivered", "holds")
    op.drop_constraint(op.f("ck_holds_undelivered_by"), "holds", type_="check")
    _replace_check("holds", "state", OLD_STATES)
    op.drop_column("holds", "undelivered_by")


def _replace_check(table: str, name: str, rule: str) -> None:
    full = op.f(f"ck_{table}_{name}")
    op.drop_constraint(full, table, type_="check")
    op.create_check_constraint(full, table, rule)


def _index_undelivered() -> None:
    op.create_index(
        "ix_holds_undelivered",
        "holds",
        ["undelivered_by"],
        sqlite_where=UNDELIVERED,
        postgresql_where=UNDELIVERED,
    )


def _index_entries_new() -> None:
    op.create_index("uq_entries_hold_id_kind", "entries", ["hold_id", "kind"], unique=True)


def _index_entries_old() -> None:
    op.create_index("uq_entries_hold_id", "entries", ["hold_id"], unique=True)


def _rebuild(make_holds: Callable[[], list[str]], make_entries: Callable[[], list[str]]) -> None:
    """SQLite only. What makes a table returns the columns that it has in common with the old."""
    for table in ("entries", "holds"):
        op.execute(f"CREATE TABLE old_{table} AS SELECT * FROM {table}")
        op.drop_table(table)
    for table, make in (("holds", make_holds), ("entries", make_entries)):
        columns = ", ".join(make())
        op.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM old_{table}")
        op.drop_table(f"old_{table}")


def _new_holds() -> list[str]:
    columns = _create_holds(
        sa.Column("undelivered_by", sa.String(40)),
        sa.CheckConstraint(NEW_STATES, name=op.f("ck_holds_state")),
        sa.CheckConstraint(SENDER, name=op.f("ck_holds_undelivered_by")),
    )
    _index_undelivered()
    return columns


def _old_holds() -> list[str]:
    return _create_holds(sa.CheckConstraint(OLD_STATES, name=op.f("ck_holds_state")))


def _create_holds(*more: sa.schema.SchemaItem) -> list[str]:
    columns = [
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("captured_units", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.Column("resolved_at", INSTANT),
        sa.Column("request_sha256", sa.String(64)),
        sa.Column("reply", sa.Text()),
        sa.Column("gateway_id", sa.String(40)),
    ]
    op.create_table(
        "holds",
        *columns,
        *more,
        sa.CheckConstraint("units > 0", name=op.f("ck_holds_units")),
        sa.CheckConstraint(
            "captured_units >= 0 AND captured_units <= units",
            name=op.f("ck_holds_captured_units"),
        ),
        sa.CheckConstraint(
            "(state = 'captured') = (captured_units > 0)", name=op.f("ck_holds_charged")
        ),
        sa.CheckConstraint(
            "(state = 'open') = (resolved_at IS NULL)", name=op.f("ck_holds_resolved")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_holds_account_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_holds_key_id")),
    )
    key = ["account_id", "idempotency_key"]
    op.create_index("uq_holds_idempotency_key", "holds", key, unique=True, sqlite_where=UNRELEASED)
    op.create_index("ix_holds_open", "holds", ["expires_at"], sqlite_where=OPEN)
    op.create_index("ix_holds_open_key_id", "holds", ["key_id"], sqlite_where=OPEN)
    op.create_index("ix_holds_kept", "holds", ["resolved_at"], sqlite_where=KEPT)
    op.create_index("ix_holds_account_id", "holds", ["account_id"])
    return [str(column.name) for column in columns]


def _new_entries() -> list[str]:
    columns = _create_entries(NEW_KINDS)
    _index_entries_new()
    return columns


def _old_entries() -> list[str]:
    columns = _create_entries(OLD_KINDS)
    _index_entries_old()
    return columns


def _create_entries(kinds: str) -> list[str]:
    columns = [
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("hold_id", sa.String(40)),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("memo", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
    ]
    op.create_table(
        "entries",
        *columns,
        sa.CheckConstraint(kinds, name=op.f("ck_entries_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entries")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_entries_account_id")
        ),
        sa.ForeignKeyConstraint(["hold_id"], ["holds.id"], name=op.f("fk_entries_hold_id")),
    )
    op.create_index("ix_entries_account_id", "entries", ["account_id"])
    op.create_index(
        "uq_entries_idempotency_key",
        "entries",
        ["idempotency_key"],
        unique=True,
        sqlite_where=KEYED,
    )
    return [str(column.name) for column in columns]
