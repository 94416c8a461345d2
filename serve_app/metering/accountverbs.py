"""The operator's verbs on accounts: create, disable, enable, grant, budget.

Data flow: `LedgerAdmin` -> one SQL transaction each: the change, and the act that tells of it.
"""

from typing import Any
from uuid import uuid4

from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import IdempotencyKeyReused, InvalidValue
from serve_app.metering.bounds import (
    ACCOUNT_PREFIX,
    require_idempotency_key,
    require_name,
    require_positive,
)
from serve_app.metering.desk import Desk, account_of, find_account
from serve_app.metering.records import Account, Granted
from serve_app.metering.tables import accounts, entries
from serve_app.metering.types import UNITS_MAX


class AccountVerbs(Desk):
    async def create_account(self, name: str) -> Account:
        require_name(name)
        try:
            async with self._database.write() as connection:
                return account_of(await self._insert_account(connection, name))
        except IntegrityError as exc:
            raise InvalidValue(f"There is already an account named {name!r}.").at("name") from exc

    async def set_disabled(self, account: str, *, disabled: bool) -> Account:
        """A disabled account's keys are refused; its open holds may still be resolved."""
        async with self._database.write() as connection:
            row = await find_account(connection, account)
            if (row.disabled_at is not None) == disabled:
                return account_of(row)
            changed = await connection.execute(
                update(accounts)
                .where(accounts.c.id == row.id)
                .values(disabled_at=self._clock() if disabled else None)
                .returning(accounts)
            )
            verb = "accounts disable" if disabled else "accounts enable"
            await self._enter(connection, verb, row.id)
            return account_of(changed.one())

    async def grant(self, account: str, units: int, key: str | None = None) -> Granted:
        """Give units to an account: always more, never less. The reason is the entry's memo.

        The same grant again under the same idempotency `key`, whoever makes it, adds nothing.

        Raises:
            IdempotencyKeyReused: The key was used for another account, number or reason.
        """
        if type(units) is not int or not 0 < units <= UNITS_MAX:
            raise InvalidValue(f"A grant is a whole number from 1 to {UNITS_MAX}.").at("units")
        require_idempotency_key(key)
        try:
            return await self._grant(account, units, key)
        except IntegrityError:  # another process was faster with this key; now it is there to see
            return await self._grant(account, units, key)

    async def _grant(self, account: str, units: int, key: str | None) -> Granted:
        async with self._database.write() as connection:
            row = await find_account(connection, account)
            if key is None or not await self._was_granted(connection, row.id, units, key):
                added = await self._add_units(connection, row.id, units, key)
                return Granted(account_of(added), replayed=False)
            return Granted(account_of(row), replayed=True)

    async def _was_granted(
        self, connection: AsyncConnection, account_id: str, units: int, key: str
    ) -> bool:
        found = await connection.execute(select(entries).where(entries.c.idempotency_key == key))
        before = found.one_or_none()
        if before is None:
            return False
        if (before.account_id, before.units, before.memo) != (
            account_id,
            units,
            self._author.reason,
        ):
            raise IdempotencyKeyReused(
                "This idempotency key was used for another grant: choose a new one."
            )
        return True

    async def set_budgets(self, account: str, day: int | None, month: int | None) -> Account:
        """Bound what an account may capture and hold in a day and a month of UTC; None does not."""
        require_positive("day_budget", day, UNITS_MAX)
        require_positive("month_budget", month, UNITS_MAX)
        async with self._database.write() as connection:
            row = await find_account(connection, account)
            changed = await connection.execute(
                update(accounts)
                .where(accounts.c.id == row.id)
                .values(day_budget=day, month_budget=month)
                .returning(accounts)
            )
            budgets = {"day_budget": day, "month_budget": month}
            await self._enter(connection, "accounts budget", row.id, **budgets)
            return account_of(changed.one())

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
        await self._enter(connection, "accounts create", row.id, name=name)
        return row

    async def _add_units(
        self, connection: AsyncConnection, account_id: str, units: int, key: str | None = None
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
                "memo": self._author.reason,
                "idempotency_key": key,
            },
        )
        named = {} if key is None else {"idempotency_key": key}
        await self._enter(connection, "grant", account_id, units=units, **named)
        return row
