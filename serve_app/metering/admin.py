"""LedgerAdmin: the verbs of an operator. Accounts, grants, keys, listings, the audit.

Data flow: `cli` and the admin routes -> `by(author)` -> these -> tables. Bad input is
`InvalidValue` with the field at fault; outages are `LedgerUnavailable`. No image waits for any of
this.
"""

from datetime import timedelta
from typing import Self

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from serve_app.config import DevelopmentConfig
from serve_app.errors import ConfigError
from serve_app.metering import keys
from serve_app.metering.accountverbs import AccountVerbs
from serve_app.metering.audit import run_audit
from serve_app.metering.bounds import require_reason
from serve_app.metering.desk import account_of
from serve_app.metering.keyverbs import KeyVerbs
from serve_app.metering.listings import Listings
from serve_app.metering.records import Account, AuditReport, Author, OpenWork
from serve_app.metering.statements import OPEN_WORK
from serve_app.metering.tables import accounts, api_keys

OVERDUE_AFTER_S = 120.0
"""Two default sweeps: a hold still open this long after its expiry has nobody sweeping it."""


class LedgerAdmin(AccountVerbs, KeyVerbs, Listings):
    """Reached as `SqlLedger.admin`. An account is named by its id or by its name."""

    def by(self, author: Author) -> Self:
        """The same, with every act in this author's name."""
        require_reason(author.reason)
        return type(self)(self._database, self._clock, author)

    async def open_work(self) -> dict[str, OpenWork]:
        """Work queued or running by model id; a model without any is left out."""
        async with self._database.read() as connection:
            found = await connection.execute(OPEN_WORK)
            return {
                row.model: OpenWork(row.holds, int(row.images), int(row.units)) for row in found
            }

    async def audit(self, overdue_after_s: float = OVERDUE_AFTER_S) -> AuditReport:
        """Every invariant, at one moment. Safe beside a working gateway."""
        overdue_before = self._clock() - timedelta(seconds=overdue_after_s)
        async with self._database.snapshot() as connection:
            return await run_audit(connection, overdue_before)

    async def ensure_development(self, config: DevelopmentConfig) -> Account:
        """Make the development account and key where missing; never grants twice.

        A key that was revoked stays so. Raises `ConfigError` when the key is another account's.
        """
        desk = self.by(Author("system", "development"))
        try:
            return await desk._ensure_development(config)
        except IntegrityError:  # another process was faster; now there is something to find
            return await desk._ensure_development(config)

    async def _ensure_development(self, config: DevelopmentConfig) -> Account:
        async with self._database.write() as connection:
            found = await connection.execute(
                select(accounts).where(accounts.c.name == config.account)
            )
            row = found.one_or_none()
            if row is None:
                made = await self._insert_account(connection, config.account)
                row = await self._add_units(connection, made.id, config.granted_units)
            owner = await connection.execute(
                select(api_keys.c.account_id).where(api_keys.c.sha256 == keys.digest(config.key))
            )
            owner_id = owner.scalar_one_or_none()
            if owner_id is None:
                # One key to try everything with, and only where it is configured.
                scopes = " ".join((*keys.KNOWN_SCOPES, keys.SCOPE_DEVELOPMENT))
                await self._insert_key(connection, row.id, config.key, scopes=scopes)
            elif owner_id != row.id:
                raise ConfigError("development.key already belongs to another account")
        return account_of(row)
