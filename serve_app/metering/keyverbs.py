"""The operator's verbs on API keys: create, limit, revoke.

Data flow: `LedgerAdmin` -> one SQL transaction each: the change, and the act that tells of it. An
act never holds a secret.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import KeyNotFound
from serve_app.metering import keys
from serve_app.metering.bounds import (
    is_storable,
    require_expiry,
    require_models,
    require_positive,
    require_scopes,
)
from serve_app.metering.desk import Desk, find_account, key_of
from serve_app.metering.limits import RPM_MAX
from serve_app.metering.records import ApiKey, NewKey
from serve_app.metering.tables import api_keys


class KeyVerbs(Desk):
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
        require_expiry(expires_at, self._clock())
        limits = _limits(rpm, images_max, models)
        secret = keys.new_secret()
        async with self._database.write() as connection:
            row = await find_account(connection, account)
            made = await self._insert_key(
                connection, row.id, secret, scopes=" ".join(scopes), expires_at=expires_at, **limits
            )
        return NewKey(made, secret)

    async def limit_key(
        self,
        key_id: str,
        *,
        rpm: int | None = None,
        images_max: int | None = None,
        models: Sequence[str] | None = None,
    ) -> ApiKey:
        """Set all limits of a key, from its next request on; None lifts one."""
        limits = _limits(rpm, images_max, models)
        async with self._database.write() as connection:
            row = await _find_key(connection, key_id)
            changed = await connection.execute(
                update(api_keys).where(api_keys.c.id == row.id).values(**limits).returning(api_keys)
            )
            await self._enter(connection, "keys limit", key_id, account=row.account_id, **limits)
            return key_of(changed.one())

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Refuse a key from now on. Revoking again changes nothing, the time included."""
        async with self._database.write() as connection:
            row = await _find_key(connection, key_id)
            revoked = await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=self._clock())
                .returning(api_keys)
            )
            changed = revoked.one_or_none()
            if changed is None:
                return key_of(row)
            await self._enter(connection, "keys revoke", key_id, account=row.account_id)
            return key_of(changed)

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
        key = key_of(made.one())
        set_to = {name: value for name, value in columns.items() if name != "expires_at"}
        expiry = None if key.expires_at is None else key.expires_at.isoformat()
        await self._enter(
            connection,
            "keys create",
            key.id,
            account=account_id,
            scopes=scopes,
            expires_at=expiry,
            **set_to,
        )
        return key


def _limits(
    rpm: int | None, images_max: int | None, models: Sequence[str] | None
) -> dict[str, object]:
    """The columns of limits, checked."""
    require_positive("rpm", rpm, RPM_MAX)
    require_positive("images_max", images_max)
    require_models(models)
    joined = None if models is None else " ".join(models)
    return {"rpm": rpm, "images_max": images_max, "models": joined}


async def _find_key(connection: AsyncConnection, key_id: str) -> Row[Any]:
    row: Row[Any] | None = None
    if is_storable(key_id):
        found = await connection.execute(select(api_keys).where(api_keys.c.id == key_id))
        row = found.one_or_none()
    if row is None:
        raise KeyNotFound(f"There is no key {key_id!r}.").at("key")
    return row
