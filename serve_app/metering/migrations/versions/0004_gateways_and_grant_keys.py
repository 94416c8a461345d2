"""Which gateway made a hold and whether it still lives; grants that are made once.

Revision 0004. Frozen: it must not follow later edits of `tables.py`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEYED = sa.text("idempotency_key IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "gateways",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gateways")),
    )
    op.add_column("holds", sa.Column("gateway_id", sa.String(40)))
    op.add_column("entries", sa.Column("idempotency_key", sa.String(255)))
    op.create_index(
        "uq_entries_idempotency_key",
        "entries",
        ["idempotency_key"],
        unique=True,
        sqlite_where=KEYED,
        postgresql_where=KEYED,
    )


def downgrade() -> None:
    op.drop_index("uq_entries_idempotency_key", "entries")
    op.drop_column("entries", "idempotency_key")
    op.drop_column("holds", "gateway_id")
    op.drop_table("gateways")
