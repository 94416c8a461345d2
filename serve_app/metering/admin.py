"""LedgerAdmin: the verbs of an operator. Accounts, grants, keys, the audit.

Data flow: `cli` and the admin routes -> these -> tables. Bad input is `InvalidValue` with the field
at fault; outages are `LedgerUnavailable`. Nothing here is on the path of a request.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Row, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.config import DevelopmentConfig
from serve_app.errors import ConfigError, InvalidValue
from serve_app.metering import keys
from serve_app.metering.audit import run_audit
from serve_app.metering.bounds import ACCOUNT_PREFIX, require_name, require_positive, require_scopes
from serve_app.metering.database import Database
from serve_app.metering.limits import RPM_MAX
from serve_app.metering.records import Account, ApiKey, AuditReport, NewKey, OpenWork
from serve_app.metering.statements import OPEN_WORK, UNITS_MAX
from serve_app.metering.tables import accounts, api_keys, entries
from serve_app.metering.types import Balance

MEMO_CHARS_MAX = 1000
LIST_MAX = 1000
"""Rows of a listing: an operator with more looks in the database."""
OVERDUE_AFTER_S = 120.0
"""Two default sweeps: a hold still open this long after its expiry has nobody sweeping it."""


class LedgerAdmin:
    """Reached as `SqlLedger.admin`. An account is named by its id or by its name."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def create_account(self, name: str) -> Account:
        require_name(name)
        try:
            async with self._database.write() as connection:
                return _account(await self._insert_account(connection, name))
        except IntegrityError as exc:
            raise InvalidValue(f"There is already an account named {name!r}.").at("name") from exc

    async def list_accounts(self, limit: int = LIST_MAX) -> list[Account]:
        """Oldest first."""
        query = select(accounts).order_by(accounts.c.created_at, accounts.c.id).limit(limit)
        async with self._database.read() as connection:
            return [_account(row) for row in await connection.execute(query)]

    async def show_account(self, account: str) -> Account:
        async with self._database.read() as connection:
            return _account(await _find_account(connection, account))

    async def set_disabled(self, account: str, *, disabled: bool) -> Account:
        """A disabled account's keys are refused; its open holds may still be resolved."""
        async with self._database.write() as connection:
            row = await _find_account(connection, account)
            changed = await connection.execute(
                update(accounts)
                .where(accounts.c.id == row.id)
                .values(disabled_at=(row.disabled_at or self._clock()) if disabled else None)
                .returning(accounts)
            )
            return _account(changed.one())

    async def grant(self, account: str, units: int, memo: str = "") -> Account:
        """Give units to an account: always more, never less."""
        if type(units) is not int or not 0 < units <= UNITS_MAX:
            raise InvalidValue(f"A grant is a whole number from 1 to {UNITS_MAX}.").at("units")
        if len(memo) > MEMO_CHARS_MAX or "\0" in memo:
            raise InvalidValue(f"A memo is at most {MEMO_CHARS_MAX} characters.").at("memo")
        async with self._database.write() as connection:
            row = await _find_account(connection, account)
            return _account(await self._add_units(connection, row.id, units, memo))

    async def set_budgets(self, account: str, day: int | None, month: int | None) -> Account:
        """Bound what an account may capture and hold in a day and a month of UTC; None does not."""
        require_positive("day_budget", day, UNITS_MAX)
        require_positive("month_budget", month, UNITS_MAX)
        async with self._database.write() as connection:
            row = await _find_account(connection, account)
            changed = await connection.execute(
                update(accounts)
                .where(accounts.c.id == row.id)
                .values(day_budget=day, month_budget=month)
                .returning(accounts)
            )
            return _account(changed.one())

    async def create_key(
        self,
        account: str,
        *,
        scopes: Sequence[str] = keys.DEFAULT_SCOPES,
        expires_at: datetime | None = None,
        rpm: int | None = None,
        images_max: int | None = None,
        models: Sequence[str] | None = None,
    ) -> NewKey:
        """Make a key. Its secret is in the answer and nowhere else.

        `rpm` bounds its requests a minute, `images_max` its images in the making at once, `models`
        the models it may use; None does not bound.
        """
        require_scopes(scopes)
        require_positive("rpm", rpm, RPM_MAX)
        require_positive("images_max", images_max)
        if expires_at is not None and (expires_at.tzinfo is None or expires_at <= self._clock()):
            raise InvalidValue("A key expires in the future, at a time with a zone.").at(
                "expires_at"
            )
        limits = {
            "rpm": rpm,
            "images_max": images_max,
            "models": None if models is None else " ".join(models),
        }
        secret = keys.new_secret()
        async with self._database.write() as connection:
            row = await _find_account(connection, account)
            made = await self._insert_key(
                connection, row.id, secret, scopes=" ".join(scopes), expires_at=expires_at, **limits
            )
        return NewKey(made, secret)

    async def list_keys(self, account: str | None = None, limit: int = LIST_MAX) -> list[ApiKey]:
        """Oldest first, of one account or of all."""
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id).limit(limit)
        async with self._database.snapshot() as connection:
            if account is not None:
                row = await _find_account(connection, account)
                query = query.where(api_keys.c.account_id == row.id)
            return [_key(row) for row in await connection.execute(query)]

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Refuse a key from now on. Revoking again changes nothing, the time included."""
        async with self._database.write() as connection:
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
            found = await connection.execute(select(api_keys).where(api_keys.c.id == key_id))
            row = found.one_or_none()
        if row is None:
            raise InvalidValue(f"There is no key {key_id!r}.").at("key")
        return _key(row)

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
        try:
            return await self._ensure_development(config)
        except IntegrityError:  # another process was faster; now there is something to find
            return await self._ensure_development(config)

    async def _ensure_development(self, config: DevelopmentConfig) -> Account:
        async with self._database.write() as connection:
            found = await connection.execute(
                select(accounts).where(accounts.c.name == config.account)
            )
            row = found.one_or_none()
            if row is None:
                made = await self._insert_account(connection, config.account)
                row = await self._add_units(
                    connection, made.id, config.granted_units, "development"
                )
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
        return _account(row)

    async def _insert_account(self, connection: AsyncConnection, name: str) -> Row[Any]:
        made = await connection.execute(
            insert(accounts).returning(accounts),
            {
                "id": f"{ACCOUNT_PREFIX}{uuid4().hex}",
                "name": name,
                "granted": 0,
                "captured": 0,
                "held": 0,
                "created_at": self._clock(),
            },
        )
        row: Row[Any] = made.one()
        return row

    async def _add_units(
        self, connection: AsyncConnection, account_id: str, units: int, memo: str
    ) -> Row[Any]:
        added = await connection.execute(
            update(accounts)
            .where(accounts.c.id == account_id, accounts.c.granted <= UNITS_MAX - units)
            .values(granted=accounts.c.granted + units)
            .returning(accounts)
        )
        row: Row[Any] | None = added.one_or_none()
        if row is None:
            raise InvalidValue(f"An account is granted at most {UNITS_MAX} units.").at("units")
        await connection.execute(
            insert(entries),
            {
                "account_id": account_id,
                "kind": "grant",
                "units": units,
                "created_at": self._clock(),
                "memo": memo,
            },
        )
        return row

    async def _insert_key(
        self,
        connection: AsyncConnection,
        account_id: str,
        secret: str,
        *,
        scopes: str,
        **columns: object,
    ) -> ApiKey:
        made = await connection.execute(
            insert(api_keys).returning(api_keys),
            {
                "id": f"key_{uuid4().hex}",
                "account_id": account_id,
                "prefix": keys.display_prefix(secret),
                "sha256": keys.digest(secret),
                "scopes": scopes,
                "created_at": self._clock(),
                **columns,
            },
        )
        return _key(made.one())


async def _find_account(connection: AsyncConnection, account: str) -> Row[Any]:
    named: ColumnElement[bool] = or_(accounts.c.id == account, accounts.c.name == account)
    row = (await connection.execute(select(accounts).where(named))).one_or_none()
    if row is None:
        raise InvalidValue(f"There is no account {account!r}.").at("account")
    return row


def _account(row: Row[Any]) -> Account:
    balance = Balance(row.id, row.name, row.granted, row.captured, row.held)
    return Account(balance, row.created_at, row.disabled_at, row.day_budget, row.month_budget)


def _key(row: Row[Any]) -> ApiKey:
    hidden = ("sha256", "rate_at_ns")
    columns = {name: value for name, value in row._mapping.items() if name not in hidden}
    columns["scopes"] = tuple(row.scopes.split())
    columns["models"] = None if row.models is None else tuple(row.models.split())
    return ApiKey(**columns)
