"""The ledger's seven tables, as SQLAlchemy Core. `migrations/` makes them; a test holds both equal.

Data flow: `sql`, `admin` and `audit` build their statements from these. Uses nothing that
PostgreSQL or SQLite lacks. The CHECK constraints repeat what the statements guarantee, so that no
bug, script or console session can overdraw an account. Must not import an engine or a config.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

from serve_app.metering.types import (
    IDEMPOTENCY_KEY_CHARS_MAX,
    NAME_CHARS_MAX,
    TEXT_CHARS_MAX,
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in and out, in UTC. SQLite has no time zones, so there it is kept bare."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the ledger takes no datetime without a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

ID_CHARS = 40

UNRELEASED = text("state IN ('open', 'captured')")
"""Holds that own their idempotency key. Expiry is a release by the clock: it frees the key too."""
OPEN = text("state = 'open'")
KEPT = text("reply IS NOT NULL")
UNDELIVERED = text("undelivered_by IS NOT NULL")
KEYED = text("idempotency_key IS NOT NULL")

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(ID_CHARS), primary_key=True),
    Column("name", String(NAME_CHARS_MAX), nullable=False, unique=True),
    Column("granted", BigInteger, nullable=False),
    Column("captured", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled_at", UtcDateTime),
    Column("day_budget", BigInteger),
    Column("month_budget", BigInteger),
    CheckConstraint("granted >= 0", name="granted"),
    CheckConstraint("captured >= 0", name="captured"),
    CheckConstraint("held >= 0", name="held"),
    CheckConstraint("granted - captured - held >= 0", name="available"),
)
"""`day_budget` and `month_budget`: most units captured and held in a day or month of UTC."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(ID_CHARS), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scopes", String(TEXT_CHARS_MAX), nullable=False),
    Column("rpm", Integer),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("models", Text),
    Column("images_max", Integer),
    Column("rate_at_ns", BigInteger),
    CheckConstraint("rpm IS NULL OR rpm > 0", name="rpm"),
    Index("ix_api_keys_account_id", "account_id"),
)
"""`models`: ids that the key may use, separated by spaces; NULL is all. `images_max`: samples in
open holds at once. `rate_at_ns`: the rate limit's state, as `limits.py` tells.
"""

holds = Table(
    "holds",
    metadata,
    Column("id", String(ID_CHARS), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("key_id", ForeignKey("api_keys.id"), nullable=False),
    Column("idempotency_key", String(IDEMPOTENCY_KEY_CHARS_MAX)),
    Column("request_id", String(TEXT_CHARS_MAX), nullable=False),
    Column("model", String(TEXT_CHARS_MAX), nullable=False),
    Column("n", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("captured_units", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("resolved_at", UtcDateTime),
    Column("request_sha256", String(64)),
    Column("reply", Text),
    Column("gateway_id", String(ID_CHARS)),
    Column("undelivered_by", String(ID_CHARS)),
    CheckConstraint("units > 0", name="units"),
    CheckConstraint("captured_units >= 0 AND captured_units <= units", name="captured_units"),
    CheckConstraint(
        "state IN ('open', 'captured', 'released', 'expired', 'refunded')", name="state"
    ),
    CheckConstraint("(state = 'captured') = (captured_units > 0)", name="charged"),
    CheckConstraint("(state = 'open') = (resolved_at IS NULL)", name="resolved"),
    CheckConstraint("undelivered_by IS NULL OR state = 'captured'", name="undelivered_by"),
    Index(
        "uq_holds_idempotency_key",
        "account_id",
        "idempotency_key",
        unique=True,
        sqlite_where=UNRELEASED,
        postgresql_where=UNRELEASED,
    ),
    Index("ix_holds_open", "expires_at", sqlite_where=OPEN, postgresql_where=OPEN),
    Index("ix_holds_open_key_id", "key_id", sqlite_where=OPEN, postgresql_where=OPEN),
    Index("ix_holds_kept", "resolved_at", sqlite_where=KEPT, postgresql_where=KEPT),
    Index(
        "ix_holds_undelivered",
        "undelivered_by",
        sqlite_where=UNDELIVERED,
        postgresql_where=UNDELIVERED,
    ),
    Index("ix_holds_account_id", "account_id"),
)
"""`request_sha256` and `reply` stand beside an idempotency key only: what was asked and, once it is
captured, what was answered. Both are forgotten with the key, a day later. `gateway_id`: which one
made the hold, so that others may end it when that one is dead, as `leases.py` tells.
`undelivered_by`: which one has captured it and has yet to send the only reply, as `deliveries.py`
tells. `resolved_at` of a refunded hold is the time of its capture.
"""

entries = Table(
    "entries",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("hold_id", ForeignKey("holds.id")),
    Column("created_at", UtcDateTime, nullable=False),
    Column("memo", Text, nullable=False),
    Column("idempotency_key", String(IDEMPOTENCY_KEY_CHARS_MAX)),
    CheckConstraint(
        "(kind = 'grant' AND units > 0 AND hold_id IS NULL)"
        " OR (kind = 'capture' AND units < 0 AND hold_id IS NOT NULL)"
        " OR (kind = 'refund' AND units > 0 AND hold_id IS NOT NULL)",
        name="kind",
    ),
    Index("ix_entries_account_id", "account_id"),
    Index("uq_entries_hold_id_kind", "hold_id", "kind", unique=True),
    Index(
        "uq_entries_idempotency_key",
        "idempotency_key",
        unique=True,
        sqlite_where=KEYED,
        postgresql_where=KEYED,
    ),
)
"""`idempotency_key` is a grant's, and for ever: whoever sends it again grants nothing."""

usage_days = Table(
    "usage_days",
    metadata,
    Column("account_id", ForeignKey("accounts.id"), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("key_id", ForeignKey("api_keys.id"), primary_key=True),
    Column("model", String(TEXT_CHARS_MAX), primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),
    CheckConstraint("units > 0", name="units"),
    Index("ix_usage_days_day", "day"),
)
"""Captured units by day of UTC: what budgets and reports would otherwise add up from every hold.

Written in the SQL transaction of the capture, under the lock of the account's row.
"""

acts = Table(
    "acts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(TEXT_CHARS_MAX), nullable=False),
    Column("verb", String(32), nullable=False),
    Column("subject", String(ID_CHARS), nullable=False),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index("ix_acts_subject", "subject"),
)
"""What operators did: written in the SQL transaction of the act, never changed, never deleted.

`subject` is the id of an account or a key, `detail` a JSON object: what was set, never a secret.
"""

gateways = Table(
    "gateways",
    metadata,
    Column("id", String(ID_CHARS), primary_key=True),
    Column("beats", BigInteger, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)
"""Signs of life: each gateway counts its own up, as `leases.py` tells. `seen_at` is for people, and
for throwing old rows away: nobody is declared dead by a clock.
"""
