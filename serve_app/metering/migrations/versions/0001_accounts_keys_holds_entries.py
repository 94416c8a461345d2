"""Accounts, API keys, holds and entries.

Revision 0001, the first. Frozen: it must not follow later edits of `tables.py`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UNRELEASED = sa.text("state IN ('open', 'captured')")
OPEN = sa.text("state = 'open'")
INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_accounts()
    _create_api_keys()
    _create_holds()
    _create_entries()


def downgrade() -> None:
    for table in ("entries", "holds", "api_keys", "accounts"):
        op.drop_table(table)


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("granted", sa.BigInteger(), nullable=False),
        sa.Column("captured", sa.BigInteger(), nullable=False),
        sa.Column("held", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("disabled_at", INSTANT),
        sa.CheckConstraint("granted >= 0", name=op.f("ck_accounts_granted")),
        sa.CheckConstraint("captured >= 0", name=op.f("ck_accounts_captured")),
        sa.CheckConstraint("held >= 0", name=op.f("ck_accounts_held")),
        sa.CheckConstraint("granted - captured - held >= 0", name=op.f("ck_accounts_available")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(200), nullable=False),
        sa.Column("rpm", sa.Integer()),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.Column("last_used_at", INSTANT),
        sa.CheckConstraint("rpm IS NULL OR rpm > 0", name=op.f("ck_api_keys_rpm")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_api_keys_account_id")
        ),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )
    op.create_index("ix_api_keys_account_id", "api_keys", ["account_id"])


def _create_holds() -> None:
    op.create_table(
        "holds",
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
        sa.CheckConstraint("units > 0", name=op.f("ck_holds_units")),
        sa.CheckConstraint(
            "captured_units >= 0 AND captured_units <= units",
            name=op.f("ck_holds_captured_units"),
        ),
        sa.CheckConstraint(
            "state IN ('open', 'captured', 'released', 'expired')", name=op.f("ck_holds_state")
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
    op.create_index(
        "uq_holds_idempotency_key",
        "holds",
        ["account_id", "idempotency_key"],
        unique=True,
        sqlite_where=UNRELEASED,
        postgresql_where=UNRELEASED,
    )
    op.create_index(
        "ix_holds_open", "holds", ["expires_at"], sqlite_where=OPEN, postgresql_where=OPEN
    )
    op.create_index("ix_holds_account_id", "holds", ["account_id"])


def _create_entries() -> None:
    op.create_table(
        "entries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("hold_id", sa.String(40)),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("memo", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(kind = 'grant' AND units > 0 AND hold_id IS NULL)"
            " OR (kind = 'capture' AND units < 0 AND hold_id IS NOT NULL)",
            name=op.f("ck_entries_kind"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entries")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name=op.f("fk_entries_account_id")
        ),
        sa.ForeignKeyConstraint(["hold_id"], ["holds.id"], name=op.f("fk_entries_hold_id")),
    )
    op.create_index("ix_entries_account_id", "entries", ["account_id"])
    op.create_index("uq_entries_hold_id", "entries", ["hold_id"], unique=True)
